"""Levels of smooth fields at which surfaces enclose the volumes that they should, measured on the surfaces themselves.

Counted in voxels, a field's volume is not that of its triangles where it is small or thin: those of one voxel would
enclose a quarter of it at the image's spacing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import sparse
from scipy.sparse import csgraph

from nnunet_ext.inference.mesh import closed_marching_cubes, signed_volumes

STEPS = 12
TOLERANCE = 0.01
NARROWEST = 1e-4  # range of levels, in shares of the peak
FARTHEST = 1.5  # of the logarithm of a volume's ratio, while steps are planned


def levelled(
    field: np.ndarray,
    owner: np.ndarray,
    levels: np.ndarray,
    peaks: np.ndarray,
    volumes: np.ndarray,
    ends: Sequence[tuple[float, float]],
) -> np.ndarray:
    """The field above the level of each piece, positive inside, so that each piece's surface has its volume.

    Pieces whose surfaces have grown together share the sum of their volumes. At most `STEPS` surfaces are made, of
    those pieces only that are not within 1 %; the nearest that was found is kept.

    Args:
        field: (D, H, W), float32, at the points of the surface's grid; not negative but for rounding.
        owner: (D, H, W), int32: the piece that each point belongs to, from 1 on.
        levels: where to begin, by piece; the first is of no piece.
        peaks: the field's highest values, by piece.
        volumes: wanted, in cells of the grid, by piece.
        ends: see `mesh.ends_of`.
    """
    level, best, least = levels.copy(), levels.copy(), np.full(len(levels), np.inf)
    low, high = np.zeros_like(levels), peaks.astype(np.float64)
    above, below = np.full(len(levels), FARTHEST), np.full(len(levels), -FARTHEST)
    active = np.bincount(owner.ravel(), minlength=len(levels)) > 0
    active[0] = False
    for step in range(STEPS):
        values = _above(field, owner, level, peaks)
        if step:
            values[~active[owner]] = -1
        error = _log_ratios(values, owner, volumes, ends)
        better = active & (np.abs(error) < least)
        best[better], least[better] = level[better], np.abs(error[better])
        active &= np.abs(error) > np.log1p(TOLERANCE)
        active &= high - low > NARROWEST * peaks
        if not active.any():
            break
        error = np.clip(error, -FARTHEST, FARTHEST)
        too_much, too_little = active & (error > 0), active & (error < 0)
        low[too_much], above[too_much] = level[too_much], error[too_much]
        high[too_little], below[too_little] = level[too_little], error[too_little]
        share = above / (above - below) if step % 3 < 2 else np.full(len(levels), 0.5)
        level[active] = (low + np.clip(share, 0.05, 0.95) * (high - low))[active]
    return _above(field, owner, best, peaks)


def _above(field: np.ndarray, owner: np.ndarray, level: np.ndarray, peaks: np.ndarray) -> np.ndarray:
    """In shares of the peaks, so that low ones are not taken for zero."""
    values = field - level.astype(np.float32)[owner]
    values /= np.maximum(peaks, 1e-6).astype(np.float32)[owner]
    return values


def _log_ratios(
    values: np.ndarray, owner: np.ndarray, volumes: np.ndarray, ends: Sequence[tuple[float, float]]
) -> np.ndarray:
    """For each piece, the logarithm of what its surface encloses by what it should; -inf if it has none."""
    pieces = len(volumes)
    if not (values > 0).any():
        return np.full(pieces, -np.inf)
    vertices, faces = closed_marching_cubes(values, ends)
    start = np.clip(np.floor(vertices), 0, np.array(values.shape) - 1).astype(np.int64)
    stop = np.clip(np.ceil(vertices), 0, np.array(values.shape) - 1).astype(np.int64)
    links = [faces[:, [0, 1]] + pieces, faces[:, [1, 2]] + pieces]
    for corner in (start, stop):  # a vertex lies between a point inside and one outside
        where = tuple(corner.T)
        inside = np.flatnonzero(values[where] > 0)
        links.append(np.stack([owner[where][inside], inside + pieces], 1))
    pairs, size = np.concatenate(links), pieces + len(vertices)
    graph = sparse.coo_matrix((np.ones(len(pairs), np.int8), (pairs[:, 0], pairs[:, 1])), shape=(size, size))
    count, group = csgraph.connected_components(graph, directed=False)
    found = np.bincount(group[faces[:, 0] + pieces], signed_volumes(vertices, faces), minlength=count)
    wanted = np.bincount(group[:pieces], volumes, minlength=count)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.log(np.maximum(found, 0) / wanted)
    return ratios[group[:pieces]]
