"""Volumes on a coarse regular grid along the patient's axes: what registration and matching look at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from nnunet_ext.pretraining.frames import Array, Frame, apply

SLAB = 1 << 24  # voxels that are read at once: 64 MiB of float32

Read = Callable[[int, int], npt.NDArray[np.float32]]
"""Slices [first, last) of the array's first axis: (last - first, y, x) float32."""


@dataclass(frozen=True, eq=False)
class Coarse:
    """One channel of a volume; the same, but for rounding, in whatever orientation the volume was stored.

    Attributes:
        values: (z, y, x) float32, in the units of what was read; outside of the image the nearest voxel's.
        inside: (z, y, x) bool: in the image.
        frame: a regular grid along the patient's axes.
    """

    values: npt.NDArray[np.float32]
    inside: npt.NDArray[np.bool_]
    frame: Frame

    def sample(self, points: Array) -> tuple[Array, Array]:
        """Linearly interpolated values (...,) float64 at LPS points (..., 3), and whether (1, 0) these are inside."""
        index = self.frame.to_index(points)
        coordinates = np.moveaxis(index, -1, 0)
        values = ndimage.map_coordinates(self.values, coordinates, np.float64, order=1, mode="nearest")
        nearest = np.clip(np.floor(index + 0.5).astype(np.int64), 0, np.asarray(self.frame.shape) - 1)
        inside = self.inside[tuple(np.moveaxis(nearest, -1, 0))] & self.frame.holds(points)
        return values, inside.astype(np.float64)


def coarse(read: Read, frame: Frame, grid: float) -> Coarse:
    """A volume on a grid of `grid` mm; finer voxels are averaged first.

    Args:
        read: gives slices of the array.
        frame: of the array.
        grid: mm.
    """
    return resampled(read, frame, coarse_frame(frame, grid))


def coarse_frame(frame: Frame, grid: float) -> Frame:
    """The regular grid of `grid` mm about the centre of an array's extent: half a cell at most is missing or added."""
    corners = frame.corners()
    low, high = corners.min(0), corners.max(0)
    cells = np.maximum(1, np.floor((high - low) / grid + 0.501))
    lower = (low + high) / 2 - (cells - 1) / 2 * grid
    return Frame.regular([int(edge) for edge in cells[::-1]], (grid, grid, grid), lower)


def resampled(read: Read, frame: Frame, target: Frame) -> Coarse:
    """A volume on a given regular grid.

    The array is averaged over boxes of about half the grid's cells along its own axes, then interpolated linearly.

    Args:
        read: gives slices of the array.
        frame: of the array.
        target: where values are wanted.
    """
    half = float(target.spacing.min()) / 2
    averaged, matrix = _averaged(read, frame, half)
    index = np.stack(np.meshgrid(*map(np.arange, target.shape), indexing="ij"), -1)
    to_array = frame.inverse @ target.matrix
    to_averaged = np.linalg.inv(matrix) @ target.matrix
    coordinates = np.moveaxis(apply(to_averaged, index), -1, 0)
    values = ndimage.map_coordinates(averaged, coordinates, np.float32, order=1, mode="nearest")
    in_array = apply(to_array, index)
    inside = np.asarray(((in_array >= -0.5 - 1e-6) & (in_array <= np.asarray(frame.shape) - 0.5 + 1e-6)).all(-1))
    return Coarse(values, inside, target)


def _averaged(read: Read, frame: Frame, wanted: float) -> tuple[npt.NDArray[np.float32], Array]:
    """The array with voxels of about `wanted` mm or its own, and the matrix from its indices to LPS mm."""
    new = [max(1, min(n, round(n * mm / wanted))) for n, mm in zip(frame.shape, frame.spacing, strict=True)]
    weights = [averaging(old, n) for old, n in zip(frame.shape, new, strict=True)]
    total = np.zeros(new, np.float32)
    thickness = max(1, SLAB // max(1, frame.shape[1] * frame.shape[2]))
    for first in range(0, frame.shape[0], thickness):
        last = min(first + thickness, frame.shape[0])
        slab = np.nan_to_num(np.asarray(read(first, last), np.float32), copy=False)
        total += np.tensordot(weights[0][:, first:last], weights[1] @ slab @ weights[2].T, 1)
    ratio = np.asarray(frame.shape) / np.asarray(new)
    from_averaged = np.diag([*ratio, 1.0])
    from_averaged[:3, 3] = 0.5 * ratio - 0.5
    return total, frame.matrix @ from_averaged


def averaging(old: int, new: int) -> npt.NDArray[np.float32]:
    """(new, old) float32: weights of `old` voxels in each of `new` equal parts of their extent; rows add up to 1."""
    edges = np.linspace(0, old, new + 1)
    voxel = np.arange(old)
    shared = np.minimum(edges[1:, None], voxel + 1) - np.maximum(edges[:-1, None], voxel)
    return (np.maximum(shared, 0) * (new / old)).astype(np.float32)


def extent(frame: Frame) -> Array:
    """(3,) float64: mm along the patient's axes (x, y, z) that an array covers."""
    corners = frame.corners()
    return np.asarray(corners.max(0) - corners.min(0), np.float64)


def reading(array: npt.NDArray[np.float32]) -> Read:
    """Slices of an array (z, y, x) in memory."""
    return lambda first, last: array[first:last]


def median_extent(frames: Sequence[Frame]) -> float:
    """Mm: the median of the volumes' largest edges."""
    return float(np.median([extent(frame).max() for frame in frames]))
