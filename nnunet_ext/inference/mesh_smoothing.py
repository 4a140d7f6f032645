"""Label maps without their stairs: a smooth field, and for each piece the level that encloses what its voxels do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

HALVINGS = 14
HIGHEST_LEVEL = 0.9
LEAST_GRADIENT = 0.04  # a voxel, at a deviation of one; where a peak or a saddle has none


@dataclass(frozen=True)
class Smooth:
    """Blurred voxels, and their separate pieces (26 neighbours), which are numbered from 1 on.

    Attributes:
        field: (D, H, W), float32.
        owner: (D, H, W), int32; the nearest piece of each voxel.
        voxels: of each piece; the first number is that of all voxels outside.
        levels: of the field, at which each piece has about the volume of its voxels.
        peaks: the field's highest value in each piece.
    """

    field: np.ndarray
    owner: np.ndarray
    voxels: np.ndarray
    levels: np.ndarray
    peaks: np.ndarray

    @property
    def above_levels(self) -> np.ndarray:
        """(D, H, W), float32, positive inside."""
        return np.asarray(self.field - self.levels.astype(np.float32)[self.owner])


def smoothed(inside: np.ndarray, deviations: Sequence[float]) -> Smooth:
    """Voxels without their stairs.

    A Gaussian of the voxels alone would shrink what is round and lose what is thin. So every separate piece gets a
    level of its own at which it has the volume of its voxels: here as far as voxels tell; `mesh_levels` measures it.

    Args:
        inside: (D, H, W), bool; some are True.
        deviations: standard deviations of the Gaussian, in voxels of each axis; some are positive.
    """
    field = ndimage.gaussian_filter(inside.astype(np.float32), deviations, mode="nearest")
    pieces, count = ndimage.label(inside, np.ones((3,) * inside.ndim))
    voxels, peaks = np.bincount(pieces.ravel(), minlength=count + 1), np.zeros(count + 1, np.float32)
    np.maximum.at(peaks, pieces[inside], field[inside])
    if count > 1:  # every voxel belongs to the nearest piece
        nearest = ndimage.distance_transform_edt(pieces == 0, return_distances=False, return_indices=True)
        owner = pieces[tuple(nearest)]
    else:
        owner = np.ones(inside.shape, np.int32)
    return Smooth(field, owner, voxels, _levels(field, owner, voxels, max(deviations)), peaks)


def _levels(field: np.ndarray, owner: np.ndarray, voxels: np.ndarray, deviation: float) -> np.ndarray:
    """For each piece, the level above which its field has so many voxels, parts of voxels included."""
    gradient = np.zeros_like(field)
    for axis, edge in enumerate(field.shape):
        if edge > 1:
            gradient += np.gradient(field, axis=axis) ** 2
    gradient = np.maximum(np.sqrt(gradient), LEAST_GRADIENT / deviation)
    near = field > 0
    values, slopes, owners = field[near], gradient[near], owner[near]
    low, high = np.zeros(len(voxels)), np.full(len(voxels), HIGHEST_LEVEL)
    for _ in range(HALVINGS):
        level = (low + high) / 2
        parts = np.clip(0.5 + (values - level[owners]) / slopes, 0, 1)
        too_many = np.bincount(owners, parts, minlength=len(voxels)) > voxels
        low, high = np.where(too_many, level, low), np.where(too_many, high, level)
    return (low + high) / 2
