"""UNETR++ weights for another patch size, as a start for fine-tuning (specification unetrpp 6.4)."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from nnunet_ext.architectures.unetrpp import UNETRPP
from nnunet_ext.architectures.unetrpp_checks import check_patch_size
from nnunet_ext.architectures.unetrpp_plans import token_grids

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
        ValueError: a patch size that the strides do not divide.
    """
    check_patch_size(new, strides)
    before, after = token_grids(old, strides), token_grids(new, strides)
    adapted = {key: _adapted(key, value, before, after) for key, value in state.items()}
    adapted[UNETRPP.patch_size_key] = torch.empty(0, 1, *new)
    return adapted


def _adapted(key: str, value: Tensor, before: Sequence[Grid], after: Sequence[Grid]) -> Tensor:
    match = _STAGE.fullmatch(key)
    if match is None:
        return value
    part, stage, name = match[1], int(match[2]), match[3]
    level = stage if part == "encoder" else len(before) - 2 - stage
    if level < 0:  # the decoder's full resolution has no tokens
        return value
    old, new = before[level], after[level]
    fewer = math.prod(old) / math.prod(new)
    if name == "pos_embed":
        return _interpolated(value[0].T, old, new).T[None].contiguous()
    if name in _PROJECTIONS:
        return _interpolated(value, old, new) * fewer
    if name == "spatial_temperature":
        return value / math.sqrt(fewer)
    return value


def _interpolated(rows: Tensor, old: Grid, new: Grid) -> Tensor:
    """(rows, tokens of the old grid) to (rows, tokens of the new one)."""
    volume = rows.float().reshape(1, rows.shape[0], *old)
    resized = functional.interpolate(volume, new, mode=_MODES[len(old)], align_corners=False)
    return resized.flatten(2)[0].to(rows.dtype)


def changed_arguments(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Names of the `arch_kwargs` that decide about other weights' shapes and differ between two networks."""
    free = ("patch_size", "sa_layout", "attention_dropout", "block_dropout", "float32", "nonlin", "nonlin_kwargs")
    return sorted(name for name in {*old, *new} - {*free} if _plain(old.get(name)) != _plain(new.get(name)))


def _plain(value: Any) -> Any:
    """Lists for tuples, so that values from JSON and from Python are equal."""
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value
