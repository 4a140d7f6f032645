"""Averages over blocks of voxels that keep nothing for the backward pass."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def pooled(x: Tensor, stride: Sequence[int]) -> Tensor:
    """Averages of x (B, C, *spatial) over blocks of `stride` voxels, which divide it; keeps nothing for backward."""
    for axis, step in enumerate(stride):
        if step > 1:
            x = x.unflatten(axis + 2, (-1, step)).mean(axis + 3)
    return x
