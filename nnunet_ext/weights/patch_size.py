"""UNETR++ weights for another patch size, as a start for fine-tuning (specification unetrpp 6.4)."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.nn import functional

from nnunet_ext.architectures.grids import token_grids
from nnunet_ext.architectures.unetrpp import UNETRPP
from nnunet_ext.architectures.unetrpp_checks import check_patch_size

_STAGE = re.compile(r"(encoder|decoder)\.stages\.(\d+)\.\d+\.(?:attention\.)?([\w.]+)")
_PROJECTIONS = ("key_projection.weight", "value_projection.weight")
_MODES = {2: "bilinear", 3: "trilinear"}

Grid = tuple[int, ...]


def adapt_patch_size(
    state: Mapping[str, Tensor], strides: Sequence[Sequence[int]], old: Sequence[int], new: Sequence[int]
) -> dict[str, Tensor]:
    """Re-sample what depends on the position in a UNETR++'s weights.

    Position embeddings are interpolated linearly over the grid of tokens; projections too, times the ratio of old to
    new tokens, so that sums over tokens stay; the spatial temperature grows with the square root of the tokens, since
    queries are normalised over them. The result is a start for fine-tuning, not the same function; weights with the
    published spatial layout ("legacy"), which mixes positions by their number, lose more.

    Args:
        state: a `UNETRPP`'s state dict.
        strides: of its stages.
        old: the patch size in voxels that the weights are for, (D, H, W) or (H, W).
        new: the wished patch size, same order.

    Returns:
        A new state dict; everything else is the same tensor.

    Raises:
        ValueError: a patch size that the strides do not divide, or weights that are not for the old one.
    """
    check_patch_size(old, strides)
    check_patch_size(new, strides)
    _check_old(state, old)
    before, after = token_grids(old, strides), token_grids(new, strides)
    adapted = {key: _adapted(key, value, before, after) for key, value in state.items()}
    marker = state[UNETRPP.patch_size_key]
    adapted[UNETRPP.patch_size_key] = marker.new_empty(0, marker.shape[1], *new)
    return adapted


def _check_old(state: Mapping[str, Tensor], old: Sequence[int]) -> None:
    if UNETRPP.patch_size_key not in state:
        raise ValueError(f"the weights have no entry {UNETRPP.patch_size_key}, which every UNETR++ of this package has")
    own = tuple(state[UNETRPP.patch_size_key].shape[2:])
    if own != tuple(old):
        raise ValueError(
            f"the weights are for patches of {own} voxels, and the checkpoint's own plans name {tuple(old)}: they were "
            "edited; give the checkpoint as it was trained"
        )


def _adapted(key: str, value: Tensor, before: Sequence[Grid], after: Sequence[Grid]) -> Tensor:
    match = _STAGE.fullmatch(key)
    if match is None:
        return value
    part, stage, name = match[1], int(match[2]), match[3]
    level = stage if part == "encoder" else len(before) - 2 - stage
    if level < 0:  # the decoder's full resolution has no tokens
        return value
    old, new = before[level] if level < len(before) else (), after[level] if level < len(after) else ()
    if name in ("pos_embed", *_PROJECTIONS):
        _check_tokens(key, value, old)
    fewer = math.prod(old) / math.prod(new)
    if name == "pos_embed":
        return _interpolated(value[0].T, old, new).T[None].contiguous()
    if name in _PROJECTIONS:
        return _interpolated(value, old, new) * fewer
    if name == "spatial_temperature":
        return value / math.sqrt(fewer)
    return value


def _check_tokens(key: str, value: Tensor, grid: Grid) -> None:
    axes = 3 if key.endswith("pos_embed") else 2
    if not grid or value.dim() != axes or value.shape[1] != math.prod(grid):
        tokens = f"{' x '.join(map(str, grid))} = {math.prod(grid)} tokens" if grid else "no tokens"
        raise ValueError(
            f"{key} has the shape {tuple(value.shape)}, and by the patch size and the strides in the checkpoint's own "
            f"plans this stage has {tokens}: weights or plans were edited; give the checkpoint as it was trained"
        )


def _interpolated(rows: Tensor, old: Grid, new: Grid) -> Tensor:
    """(rows, tokens of the old grid) to (rows, tokens of the new one)."""
    volume = rows.float().reshape(1, rows.shape[0], *old)
    resized = functional.interpolate(volume, new, mode=_MODES[len(old)], align_corners=False)
    return resized.flatten(2)[0].to(rows.dtype)


def changed_arguments(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Names of the `arch_kwargs` that decide what other weights are or mean, and differ between two networks."""
    free = ("patch_size", "attention_dropout", "block_dropout", "float32", "nonlin", "nonlin_kwargs")
    defaults = {name: parameter.default for name, parameter in inspect.signature(UNETRPP).parameters.items()}
    first, second = ({**defaults, **arguments} for arguments in (old, new))
    return sorted(name for name in {*old, *new} - {*free} if _plain(first.get(name)) != _plain(second.get(name)))


def _plain(value: Any) -> Any:
    """Lists for tuples, so that values from JSON and from Python are equal."""
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value
