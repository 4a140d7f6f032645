"""Regular lattices of points in a grid: refining them, what lies around a point, and going through points in blocks.

A lattice of stride s has the points 0, s, 2 s, ... of each axis of a grid up to the first at or beyond its last index,
so that every point of the grid lies between points of the lattice. All strides are powers of two: the lattice of half
the stride holds all points of this one.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

BLOCK_EDGE = {1: 2**15, 2: 128, 3: 32}
"""Dimensions -> points along the edge of a block."""
BATCH = 2**12
"""Points below which blocks are put together."""


def first_strides(wanted: Sequence[int], shape: Sequence[int]) -> tuple[int, ...]:
    """The strides rounded down to powers of two, and no larger than they need be to span the grid."""
    return tuple(
        1 << max(0, min(int(stride).bit_length() - 1, (int(edge) - 1 - 1).bit_length() if edge > 1 else 0))
        for stride, edge in zip(wanted, shape, strict=True)
    )


def lattice_shape(shape: Sequence[int], strides: Sequence[int]) -> tuple[int, ...]:
    """Points along each axis of the lattice in a grid of `shape`."""
    return tuple(-(-(edge - 1) // stride) + 1 for edge, stride in zip(shape, strides, strict=True))


def refine(values: Tensor, shape: Sequence[int], between: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Values on a lattice (channels, *points) on that of half the stride.

    Args:
        values: (channels, *points).
        shape: points along each axis of the finer lattice; axes that have as many points already stay.
        between: makes the value of a new point from those of its two neighbours along an axis.
    """
    for axis in range(values.dim() - 1, 0, -1):  # the last axis, whose steps in memory are small, while there are few
        points = shape[axis - 1]
        if values.shape[axis] == points:
            continue
        lower, upper = values.narrow(axis, 0, points // 2), values.narrow(axis, 1, points // 2)
        finer = values.new_empty((*values.shape[:axis], points, *values.shape[axis + 1 :]))
        every_other(finer, axis, 0).copy_(values.narrow(axis, 0, (points + 1) // 2))
        every_other(finer, axis, 1).copy_(between(lower, upper))
        values = finer
    return values


def every_other(x: Tensor, axis: int, start: int) -> Tensor:
    """A view of every second point along the axis."""
    return x[(slice(None),) * axis + (slice(start, None, 2),)]


def halfway(lower: Tensor, upper: Tensor) -> Tensor:
    """Linear interpolation, for `refine`."""
    return torch.lerp(lower, upper, 0.5)


def only_old(values: Tensor, shape: Sequence[int]) -> Tensor:
    """A mask (*points) on the lattice of half the stride, false at its new points."""
    return refine(values[None], shape, lambda lower, upper: torch.zeros_like(lower))[0]


def near_any(mask: Tensor, shape: Sequence[int]) -> Tensor:
    """Of each point of the finer lattice, whether any of the coarser points around it is in the mask (*points)."""
    return refine(mask[None], shape, torch.logical_or)[0]


def mixed(labels: Tensor) -> Tensor:
    """Whether labels (channels, *points) differ within one step of a point, in any channel: bool (*points)."""
    low, high = labels, labels
    for axis in range(1, labels.dim()):
        low, high = _along(low, axis, torch.minimum), _along(high, axis, torch.maximum)
    return (low != high).any(0)


def _along(x: Tensor, axis: int, choose: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Of each point and its two neighbours along an axis, the one that `choose` chooses."""
    steps = x.shape[axis] - 1
    if steps == 0:
        return x
    result = x.clone()
    after, before = result.narrow(axis, 1, steps), result.narrow(axis, 0, steps)
    after.copy_(choose(after, x.narrow(axis, 0, steps)))
    before.copy_(choose(before, x.narrow(axis, 1, steps)))
    return result


def in_blocks(mask: Tensor) -> Iterator[Tensor]:
    """Indices (N, dim) of the points in the mask, block by block; blocks with few points are put together."""
    waiting: list[Tensor] = []
    edge = BLOCK_EDGE[mask.dim()]
    for corner in itertools.product(*(range(0, points, edge) for points in mask.shape)):
        index = mask[tuple(slice(start, start + edge) for start in corner)].nonzero()
        if len(index) == 0:
            continue
        index += torch.tensor(corner, device=mask.device)
        if len(index) >= BATCH:  # goes alone: as a box it is well filled
            yield index
            continue
        waiting.append(index)
        if sum(map(len, waiting)) >= BATCH:
            yield torch.cat(waiting)
            waiting = []
    if waiting:
        yield torch.cat(waiting)
