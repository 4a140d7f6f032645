"""nnFormer's weights for another patch size (specification alice 2): what depends on the grid of tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from nnunet_ext.architectures.blocks.shifted_windows import LEGACY
from nnunet_ext.architectures.blocks.window_attention import WindowBlock
from nnunet_ext.architectures.grids import token_grids
from nnunet_ext.weights.nnformer import POSITIONS
from nnunet_ext.weights.nnformer_tables import TABLE
from nnunet_ext.weights.transfer import build_network


def adapt_patch_size(
    state: Mapping[str, Tensor], architecture: Mapping[str, Any], old: Sequence[int], new: Sequence[int]
) -> dict[str, Tensor]:
    """Interpolate the position table over the tokens, and bias tables of windows that grow or shrink with the grid.

    Both linearly: positions as the network itself does for other grids, biases over the offsets, ends to ends.

    Args:
        state: an `NNFormer`'s state dict.
        architecture: its block of plans.
        old: the patch size in voxels that the weights are for, (D, H, W).
        new: the wished patch size, same order.

    Returns:
        A new state dict; everything else is the same tensor.

    Raises:
        ValueError: a patch that the strides do not divide; or tables with the published index, in which offsets share
            biases, of a window that changes.
    """
    before, after = _windows(architecture, old), _windows(architecture, new)
    adapted = dict(state)
    for name, window in before.items():
        key = f"{name}.attn.{TABLE}"
        if window != after[name]:
            if architecture["arch_kwargs"].get("relative_index") == LEGACY:
                raise ValueError(
                    f"{name} has windows of {after[name]} tokens instead of {window}, and relative_index 'legacy' in "
                    "the plans: set it to 'aligned' for pre-training"
                )
            adapted[key] = _interpolated(
                state[key].mT, _sides(window), _sides(after[name]), corners=True
            ).mT.contiguous()
    strides = architecture["arch_kwargs"]["strides"]
    grids = (token_grids(old, strides)[0], token_grids(new, strides)[0])
    if POSITIONS in state and grids[0] != grids[1]:
        table = state[POSITIONS]
        adapted[POSITIONS] = _interpolated(table[0].mT, *grids, corners=False).mT[None].contiguous()
    return adapted


def _windows(architecture: Mapping[str, Any], patch_size: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """Name of each block -> its window, for a patch."""
    arguments = {**architecture["arch_kwargs"], "patch_size": list(patch_size)}
    with torch.device("meta"):
        network: nn.Module = build_network({**architecture, "arch_kwargs": arguments}, 1, 2)
    return {name: block.window for name, block in network.named_modules() if isinstance(block, WindowBlock)}


def _sides(window: Sequence[int]) -> tuple[int, ...]:
    return tuple(2 * edge - 1 for edge in window)


def _interpolated(rows: Tensor, old: Sequence[int], new: Sequence[int], *, corners: bool) -> Tensor:
    """(rows, cells of the old grid) to (rows, cells of the new one)."""
    volume = rows.float().reshape(1, rows.shape[0], *old)
    resized = functional.interpolate(volume, tuple(new), mode="trilinear", align_corners=corners)
    return resized.flatten(2)[0].to(rows.dtype)
