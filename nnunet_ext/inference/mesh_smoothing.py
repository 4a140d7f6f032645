"""Label maps without their stairs: a smooth field whose surface encloses what the voxels do."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

HALVINGS = 14
HIGHEST_LEVEL = 0.9
LEAST_GRADIENT = 0.04  # a voxel, at a deviation of one; where a peak or a saddle has none


def smoothed_indicator(inside: np.ndarray, deviations: Sequence[float]) -> np.ndarray:
    """A smooth field, positive inside.

    A Gaussian of the voxels alone would shrink what is round and lose what is thin. So every separate piece (26
    neighbours) gets a level of its own at which it has the volume of its voxels.

    Args:
        inside: (D, H, W), bool; some are True.
        deviations: standard deviations of the Gaussian, in voxels of each axis; 0 for the voxels as they are.

    Returns:
        (D, H, W), float32.
    """
    if max(deviations) <= 0:
        return inside.astype(np.float32) - 0.5
    field = ndimage.gaussian_filter(inside.astype(np.float32), deviations, mode="nearest")
    pieces, count = ndimage.label(inside, np.ones((3,) * inside.ndim))
    if count > 1:  # every voxel belongs to the nearest piece
        nearest = ndimage.distance_transform_edt(pieces == 0, return_distances=False, return_indices=True)
        owner = pieces[tuple(nearest)]
    else:
        owner = np.ones(inside.shape, np.int32)
    levels = _levels(field, owner, np.bincount(pieces.ravel(), minlength=count + 1), max(deviations))
    field -= levels[owner].astype(np.float32)
    return field


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
