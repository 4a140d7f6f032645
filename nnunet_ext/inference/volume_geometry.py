"""Where the voxels of a case that nnU-Net preprocessed lie in the original image; exact, axis by axis.

nnU-Net transposes the axes, crops to what is not zero, resamples from shape to shape (voxel edges stay, so
preprocessed voxel j has its centre at ``(j + 0.5) * old / new - 0.5``), and pads what is smaller than the patch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nnunet_ext.architectures.blocks.point_grid import PointGrid

_EPSILON = 1e-6  # of a voxel: a point on the edge of the crop belongs to it


@dataclass(frozen=True)
class CaseGeometry:
    """From voxel indices of an image (its reader's axis order) to those of the padded preprocessed case.

    Attributes:
        shape: voxels of the original image.
        forward: nnU-Net's transpose_forward: axis of the image for each axis of the case.
        crop: first and one past the last voxel of the crop, for each axis of the case, in voxels of the image.
        resampled: voxels of the case, before padding.
        padding: zeros before the case's first voxel, of each of its axes.
    """

    shape: tuple[int, ...]
    forward: tuple[int, ...]
    crop: tuple[tuple[int, int], ...]
    resampled: tuple[int, ...]
    padding: tuple[int, ...]

    @classmethod
    def of(
        cls, properties: dict[str, Any], forward: Sequence[int], resampled: Sequence[int], patch: Sequence[int]
    ) -> CaseGeometry:
        """Of a case with nnU-Net's properties, preprocessed to `resampled` voxels and to be padded to `patch`."""
        before = [int(edge) for edge in properties["shape_before_cropping"]]
        return cls(
            shape=tuple(before[list(forward).index(axis)] for axis in range(len(before))),
            forward=tuple(int(axis) for axis in forward),
            crop=tuple((int(low), int(high)) for low, high in properties["bbox_used_for_cropping"]),
            resampled=tuple(int(edge) for edge in resampled),
            padding=tuple(max(0, int(p) - int(n)) // 2 for p, n in zip(patch, resampled, strict=True)),
        )

    @property
    def backward(self) -> tuple[int, ...]:
        """Axis of the case for each axis of the image."""
        return tuple(self.forward.index(axis) for axis in range(len(self.forward)))

    @property
    def ratio(self) -> tuple[float, ...]:
        """Voxels of the case in a voxel of the image, for each axis of the case."""
        return tuple(new / (high - low) for new, (low, high) in zip(self.resampled, self.crop, strict=True))

    @property
    def shift(self) -> tuple[float, ...]:
        """Where the image's first voxel lies in the case, for each axis of the case."""
        given = zip(self.crop, self.ratio, self.padding, strict=True)
        return tuple((0.5 - low) * ratio - 0.5 + padding for (low, _), ratio, padding in given)

    def grid(self, grid: PointGrid) -> PointGrid:
        """The same points in the case; the grid's axes are transposed with it."""
        given = list(zip(self.forward, self.ratio, self.shift, strict=True))
        return PointGrid(
            tuple(grid.shape[axis] for axis, _, _ in given),
            tuple(grid.scale[axis] * ratio for axis, ratio, _ in given),
            tuple(grid.offset[axis] * ratio + shift for axis, ratio, shift in given),
        )

    def coordinates(self, coords: Tensor) -> Tensor:
        """The same points (N, dim), float32, in the case; differentiable."""
        ratio = torch.tensor(self.ratio, dtype=torch.float64, device=coords.device)
        shift = torch.tensor(self.shift, dtype=torch.float64, device=coords.device)
        return (coords[:, list(self.forward)].double() * ratio + shift).float()

    def holds(self, coords: Tensor) -> Tensor:
        """Which points (N, dim) of the image lie in the crop (N,)."""
        low, high = (
            torch.tensor([self.crop[axis][side] for axis in self.backward], dtype=torch.float64, device=coords.device)
            for side in (0, 1)
        )
        exact = coords.detach().double()
        return ((exact >= low - 0.5 - _EPSILON) & (exact <= high - 0.5 + _EPSILON)).all(1)

    def inside(self, grid: PointGrid) -> tuple[slice, ...]:
        """Which of a grid's points lie in the crop, of each axis of the image; empty where none does."""
        parts = []
        for axis, (edge, scale, offset) in enumerate(zip(grid.shape, grid.scale, grid.offset, strict=True)):
            low, high = self.crop[self.backward[axis]]
            first = math.ceil((low - 0.5 - _EPSILON - offset) / scale)
            last = math.floor((high - 0.5 + _EPSILON - offset) / scale)
            start = min(max(first, 0), edge)
            parts.append(slice(start, max(start, min(last + 1, edge))))
        return tuple(parts)

    def index_of(self, grid: PointGrid, axis: int, position: float) -> int:
        """The first index of a grid, along an axis of the image, that lies at or behind a position in the case."""
        across = self.backward[axis]
        in_image = (position - self.shift[across]) / self.ratio[across]
        return math.ceil((in_image - grid.offset[axis]) / grid.scale[axis] - _EPSILON)
