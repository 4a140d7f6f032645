"""Parts of grids: where something lies, and what voxels say at their points."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from nnunet_ext.architectures.blocks.point_grid import PointGrid

Box = tuple[tuple[int, ...], tuple[int, ...]]  # first grid index, and number of points, of each axis


def along_axes(inside: np.ndarray) -> list[np.ndarray]:
    """For each axis, at which of its indices anything is True."""
    return [np.asarray(inside.any(axis=others)) for others in ((1, 2), (0, 2), (0, 1))]


def box_around(occupied: Sequence[np.ndarray], own: PointGrid, grid: PointGrid, margin: float) -> Box:
    """The points of `grid` around what is True on the grid `own`, so many steps of the coarser grid beyond it.

    Args:
        occupied: as `along_axes` has it, on `own`.
        own: the grid on which it is known.
        grid: the grid of the result.
        margin: steps of the coarser grid.
    """
    start, shape = [], []
    for axis, limit in enumerate(grid.shape):
        along = np.flatnonzero(occupied[axis])
        reach = margin * max(own.scale[axis], grid.scale[axis])
        ends = [own.offset[axis] + own.scale[axis] * end for end in (along[0], along[-1])]
        first = int(np.floor((ends[0] - reach - grid.offset[axis]) / grid.scale[axis]))
        last = int(np.ceil((ends[1] + reach - grid.offset[axis]) / grid.scale[axis]))
        start.append(min(max(first, 0), limit - 1))
        shape.append(max(1, min(last, limit - 1) - start[-1] + 1))
    return tuple(start), tuple(shape)


def interpolated(field: np.ndarray, grid: PointGrid, order: int) -> np.ndarray:
    """A field of voxels at a grid's points, float32; beyond the outermost voxels as they are."""
    if all(scale == 1 for scale in grid.scale) and all(float(offset).is_integer() for offset in grid.offset):
        first = [int(offset) for offset in grid.offset]
        ends = [begin + n for begin, n in zip(first, grid.shape, strict=True)]
        if min(first) >= 0 and all(end <= n for end, n in zip(ends, field.shape, strict=True)):
            cut = tuple(slice(begin, end) for begin, end in zip(first, ends, strict=True))
            return np.asarray(field[cut], dtype=np.float32)
    return np.asarray(
        ndimage.affine_transform(
            field, grid.scale, grid.offset, grid.shape, output=np.float32, order=order, mode="nearest"
        )
    )
