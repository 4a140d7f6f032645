"""Grids along the patient's axes, and images sampled on them, for the anatomical embedding.

Every grid has the axes (z, y, x) towards superior, posterior and left, as nearly as the array's own axes allow: a
volume stored in another orientation, or transposed by the plans, gives the same samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from nnunet_ext.pretraining.frames import Array, Frame, apply

_POSITIONS_AT_ONCE = 1 << 22
_SIGMA = 0.4  # of the blur before coarser sampling, in units of the coarser voxel


def canonical_grid(frame: Frame, spacing: float) -> Frame:
    """The grid of isotropic voxels over a volume, centred on it, along its own axes, ordered and turned to LPS+.

    Args:
        frame: of the volume's array.
        spacing: mm.
    """
    directions = frame.matrix[:3, :3] / frame.spacing  # (LPS component, array axis)
    order = max(permutations(range(3)), key=lambda axes: sum(abs(directions[2 - i, axes[i]]) for i in range(3)))
    turned = directions[:, order] * [1.0 if directions[2 - i, axis] >= 0 else -1.0 for i, axis in enumerate(order)]
    extent = np.asarray(frame.shape)[list(order)] * frame.spacing[list(order)]
    shape = np.maximum(1, np.round(extent / spacing)).astype(int)
    centre = frame.to_lps((np.asarray(frame.shape) - 1) / 2)
    return grid_around(centre, turned, spacing, shape)


def grid_around(centre: Array, directions: Array, spacing: float, shape: Sequence[int] | np.ndarray) -> Frame:
    """A grid of isotropic voxels around a point.

    Args:
        centre: LPS mm (3,).
        directions: (3, 3), a unit vector in each column, one for each axis of the grid.
        spacing: mm.
        shape: voxels.
    """
    matrix = np.eye(4)
    matrix[:3, :3] = directions * spacing
    matrix[:3, 3] = centre - matrix[:3, :3] @ ((np.asarray(shape) - 1) / 2)
    first, second, third = (int(edge) for edge in shape)
    return Frame((first, second, third), matrix)


def strided(frame: Frame, stride: Sequence[int]) -> Frame:
    """The grid of blocks of `stride` voxels: a block's index is at the middle of its voxels; the last may be cut."""
    step = np.asarray(stride, np.float64)
    scale = np.diag([*step, 1.0])
    scale[:3, 3] = (step - 1) / 2
    z, y, x = (-(-edge // size) for edge, size in zip(frame.shape, stride, strict=True))
    return Frame((z, y, x), frame.matrix @ scale)


def positions(frame: Frame) -> Array:
    """LPS mm (*shape, 3) of a grid's voxels."""
    index = np.stack(np.meshgrid(*(np.arange(edge) for edge in frame.shape), indexing="ij"), axis=-1)
    return frame.to_lps(index)


def minima(image: Any) -> Tensor:
    """What is outside of an image, (C,): its channels' least values, on a coarse grid of large images."""
    first, *others = (max(1, edge // 64) for edge in image.shape[1:])
    within = (slice(None), slice(None), *(slice(None, None, step) for step in others))
    least = [np.asarray(image[:, z : z + 1], np.float32)[within] for z in range(0, image.shape[1], first)]
    return torch.from_numpy(np.concatenate(least, axis=1).min(axis=(1, 2, 3)))


def sample(image: Any, frame: Frame, grid: Frame, outside: Tensor, smooth: bool = True) -> Tensor:
    """An image on another grid, linearly interpolated; of arrays on a disk only the needed part is read.

    Args:
        image: (C, *frame.shape), an array or something that can be indexed like one.
        frame: of the image.
        grid: where to sample.
        outside: (C,) values outside of the image.
        smooth: blur before, where the grid is coarser than the image.

    Returns:
        (C, *grid.shape) float32.
    """
    steps = np.abs(frame.inverse[:3, :3] @ grid.matrix[:3, :3]).max(axis=1)  # voxels of the array from sample to sample
    sigma = _SIGMA * np.sqrt(np.maximum(steps**2 - 1, 0)) if smooth else np.zeros(3)
    reach = apply(frame.inverse, grid.corners())
    margin = np.ceil(3 * sigma) + 2
    lower = np.clip(np.floor(reach.min(axis=0) - margin), 0, np.asarray(frame.shape) - 1).astype(int)
    upper = np.clip(np.ceil(reach.max(axis=0) + margin) + 1, lower + 1, frame.shape).astype(int)
    box = (slice(None), *(slice(int(low), int(high)) for low, high in zip(lower, upper, strict=True)))
    part = torch.from_numpy(np.array(image[box], np.float32))  # a copy, writable
    to_part = frame.inverse.copy()
    to_part[:3, 3] -= lower
    return _interpolated(_blurred(part, sigma), to_part @ grid.matrix, grid.shape, outside)


def sample_at(image: Tensor, frame: Frame, points: Array, outside: Tensor) -> Tensor:
    """An image (C, *frame.shape) at points (*grid, 3) in LPS mm, linearly interpolated -> (C, *grid)."""
    return _looked_up(image, torch.from_numpy(frame.to_index(points).astype(np.float32)), outside)


def _interpolated(image: Tensor, matrix: Array, shape: Sequence[int], outside: Tensor) -> Tensor:
    """`matrix` (4, 4) takes an index of the grid to one of the image; a few slices of the grid at a time."""
    slices = max(1, _POSITIONS_AT_ONCE // (shape[1] * shape[2]))
    linear = torch.from_numpy(matrix[:3, :3])
    parts = []
    for start in range(0, shape[0], slices):
        axes = [torch.arange(start, min(start + slices, shape[0])), torch.arange(shape[1]), torch.arange(shape[2])]
        index = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).double()
        where = index @ linear.T + torch.from_numpy(matrix[:3, 3])
        parts.append(_looked_up(image, where.float(), outside))
    return torch.cat(parts, dim=1)


def _looked_up(image: Tensor, index: Tensor, outside: Tensor) -> Tensor:
    """`image` (C, *shape) at fractional indices (*grid, 3)."""
    size = torch.tensor(image.shape[1:], dtype=index.dtype)
    relative = ((2 * index + 1) / size - 1).flip(-1)  # torch's grid_sample: (x, y, z), -1 and 1 at the outer edges
    level = outside.reshape(-1, 1, 1, 1)
    sampled = F.grid_sample((image - level)[None], relative[None], padding_mode="zeros", align_corners=False)[0]
    return sampled + level


def _blurred(image: Tensor, sigma: Array) -> Tensor:
    """`image` (C, z, y, x) after a Gaussian of `sigma` voxels along each axis, its borders continued."""
    for axis, width in enumerate(sigma):
        if width > 0.1:
            image = gaussian(image, axis + 1, float(width))
    return image


def gaussian(image: Tensor, axis: int, sigma: float) -> Tensor:
    """An image (C, z, y, x) after a Gaussian of `sigma` voxels along one axis (1, 2 or 3), its borders continued."""
    radius = max(1, int(np.ceil(3 * sigma)))
    offsets = torch.arange(-radius, radius + 1, dtype=image.dtype)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    shape, padding = [1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0]
    shape[axis + 1] = len(kernel)
    padding[2 * (3 - axis)] = padding[2 * (3 - axis) + 1] = radius
    padded = F.pad(image[:, None], padding, mode="replicate")
    return F.conv3d(padded, (kernel / kernel.sum()).reshape(shape))[:, 0]
