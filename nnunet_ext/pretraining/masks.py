"""Which blocks of a patch are hidden from the student (specification alice 1.4, 4.4)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

Style = Literal["blocks", "tube"]
STYLES: tuple[Style, ...] = ("blocks", "tube")
LEAST_BLOCKS = 4
"""So many blocks an axis are wanted, where it is long enough."""
ANISOTROPY = 1.5
"""A block is at most so many times as long, in millimetres, as along the finest axis."""


def mask_block(
    patch_size: Sequence[int], spacing: Sequence[float], total_stride: Sequence[int], block: int = 16
) -> tuple[int, ...]:
    """Edges of a mask's blocks, in voxels: about cubes in millimetres.

    `block` voxels, halved along coarse axes until a block is no longer than 1.5 blocks of the finest axis, and at
    least four blocks an axis; then the longest divisor of the patch that is a multiple or a part of the network's
    stride, so that the borders of blocks are borders of the coarsest features too.

    Args:
        patch_size: (3,) voxels.
        spacing: (3,) millimetres, of the same axes.
        total_stride: (3,) product of the network's strides.
        block: voxels along the finest axis.

    Returns:
        A divisor of the patch for each axis.
    """
    finest = min(spacing)
    edges = []
    for size, millimetres, stride in zip(patch_size, spacing, total_stride, strict=True):
        longest = block
        while longest > 1 and longest * millimetres > ANISOTROPY * block * finest:
            longest //= 2
        longest = max(1, min(longest, size // LEAST_BLOCKS))
        fits = (n for n in range(longest, 0, -1) if size % n == 0 and (stride % n == 0 or n % stride == 0))
        edges.append(next(fits))
    return tuple(edges)


def mask_grid(patch_size: Sequence[int], block: Sequence[int]) -> tuple[int, ...]:
    """Number of blocks of each axis."""
    return tuple(size // edge for size, edge in zip(patch_size, block, strict=True))


def draw_hidden(
    random: np.random.Generator, grid: Sequence[int], ratio: float, style: Style = "blocks", tube_axis: int = 0
) -> np.ndarray:
    """Draw the hidden blocks of one view.

    Args:
        random: what is drawn depends on its state alone.
        grid: number of blocks of each axis.
        ratio: part of the blocks that is hidden, rounded up; but one block stays visible and one is hidden.
        style: "blocks" draws each block; "tube" draws columns along `tube_axis`, as the published code does.
        tube_axis: axis of the array along which columns run: the first one is the body's long axis in nnU-Net's
            (z, y, x); the published code reads arrays as (x, y, z) and takes the last.

    Returns:
        (*grid,) bool, True = hidden.

    Raises:
        ValueError: a ratio outside of (0, 1) or another style.
    """
    if not 0 < ratio < 1 or style not in STYLES:
        raise ValueError(f"a ratio between 0 and 1 and a style of {STYLES} are needed, got {ratio} and {style!r}")
    if style == "blocks":
        return _chosen(random, math.prod(grid), ratio).reshape(tuple(grid))
    columns = [cells for axis, cells in enumerate(grid) if axis != tube_axis]
    hidden = _chosen(random, math.prod(columns), ratio).reshape(columns)
    return np.repeat(np.expand_dims(hidden, tube_axis), grid[tube_axis], tube_axis)


def _chosen(random: np.random.Generator, number: int, ratio: float) -> np.ndarray:
    """(number,) bool with so many True that at least one of each is there, if there are two."""
    count = min(max(1, math.ceil(ratio * number - 1e-9)), max(1, number - 1))
    chosen = np.zeros(number, bool)
    chosen[random.permutation(number)[:count]] = True
    return chosen
