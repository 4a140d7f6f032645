"""Grids of tokens of networks with patch embeddings, from the strides in plans."""

from __future__ import annotations

import math
from collections.abc import Sequence


def total_stride(strides: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """The product of the strides of each axis."""
    return tuple(math.prod(axis) for axis in zip(*strides, strict=True))


def token_grids(patch_size: Sequence[int], strides: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    """Grid of tokens of each stage but the first; the patch must be divisible by the strides."""
    grids, grid = [], tuple(int(edge) for edge in patch_size)
    for stride in strides[1:]:
        grid = tuple(n // s for n, s in zip(grid, stride, strict=True))
        grids.append(grid)
    return grids
