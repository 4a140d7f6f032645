"""Distances between two surfaces, by k-d trees over their points; and what is computed of them.

Definitions: specification evaluation, sections 2.1 (border voxels: medpy, MONAI, SciPy) and 2.2 (surface elements,
weighted by area: DeepMind's ``surface_distance``). Everything is float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree


@dataclass(frozen=True)
class SurfaceDistances:
    """Distances of each point of one surface to the nearest of the other, both ways.

    Attributes:
        to_reference: of the prediction's points, in the unit of the spacing.
        to_prediction: of the reference's points.
        predicted_sizes, reference_sizes: of the prediction's and the reference's surface elements; None for border
            voxels, which all count alike.
    """

    to_reference: np.ndarray
    to_prediction: np.ndarray
    predicted_sizes: np.ndarray | None = None
    reference_sizes: np.ndarray | None = None

    def hausdorff(self) -> float:
        """HD: the largest of all distances; infinite if a surface is empty."""
        if not len(self.to_reference) or not len(self.to_prediction):
            return math.inf
        return float(max(self.to_reference.max(), self.to_prediction.max()))

    def pooled_percentile(self, percent: float) -> float:
        """HD95 of medpy: percentile of both ways' distances in one list, interpolated linearly."""
        if not len(self.to_reference) or not len(self.to_prediction):
            return math.inf
        return float(np.percentile(np.concatenate([self.to_reference, self.to_prediction]), percent))

    def larger_percentile(self, percent: float) -> float:
        """HD95 of MONAI: the larger of the two ways' percentiles, each interpolated linearly."""
        if not len(self.to_reference) or not len(self.to_prediction):
            return math.inf
        return float(max(np.percentile(way, percent) for way in (self.to_reference, self.to_prediction)))

    def weighted_percentile(self, percent: float) -> float:
        """DeepMind's robust Hausdorff distance: the distance within which that share of each surface's area lies.

        The larger of the two ways; infinite if a surface is empty.
        """
        if not len(self.to_reference) or not len(self.to_prediction):
            return math.inf
        ways = (self.to_reference, self.predicted_sizes), (self.to_prediction, self.reference_sizes)
        return max(_weighted_quantile(distances, sizes, percent / 100) for distances, sizes in ways)

    def mean_pooled(self) -> float:
        """ASSD of medpy since 0.5: mean of both ways' distances in one list."""
        if not len(self.to_reference) or not len(self.to_prediction):
            return math.inf
        return float(np.concatenate([self.to_reference, self.to_prediction]).mean())

    def mean_of_ways(self) -> float:
        """ASSD of medpy up to 0.4: mean of the two ways' means."""
        return (self.mean_to_reference() + self.mean_to_prediction()) / 2

    def mean_to_reference(self) -> float:
        """Mean distance of the prediction's surface, weighted by size; NaN if it is empty, infinite if the other is."""
        return _mean(self.to_reference, self.predicted_sizes)

    def mean_to_prediction(self) -> float:
        """Mean distance of the reference's surface, weighted by size; NaN if it is empty, infinite if the other is."""
        return _mean(self.to_prediction, self.reference_sizes)

    def surface_dice(self, tolerance: float) -> float:
        """NSD: the share of both surfaces that lies within `tolerance` of the other; NaN if both are empty."""
        within = total = 0.0
        ways = (self.to_reference, self.predicted_sizes), (self.to_prediction, self.reference_sizes)
        for distances, sizes in ways:
            weights = np.ones(len(distances)) if sizes is None else sizes
            within += float(weights[distances <= tolerance].sum())
            total += float(weights.sum())
        return within / total if total else math.nan

    def overlap_of_reference(self, tolerance: float) -> float:
        """The share of the reference's surface within `tolerance` of the prediction's; NaN if it is empty."""
        return _share(self.to_prediction, self.reference_sizes, tolerance)

    def overlap_of_prediction(self, tolerance: float) -> float:
        """The share of the prediction's surface within `tolerance` of the reference's; NaN if it is empty."""
        return _share(self.to_reference, self.predicted_sizes, tolerance)


def _mean(distances: np.ndarray, sizes: np.ndarray | None) -> float:
    if not len(distances):
        return math.nan
    if np.isinf(distances).any():
        return math.inf
    return float(distances.mean() if sizes is None else (distances * sizes).sum() / sizes.sum())


def _share(distances: np.ndarray, sizes: np.ndarray | None, tolerance: float) -> float:
    if not len(distances):
        return math.nan
    weights = np.ones(len(distances)) if sizes is None else sizes
    return float(weights[distances <= tolerance].sum() / weights.sum())


def _weighted_quantile(distances: np.ndarray, sizes: np.ndarray | None, share: float) -> float:
    weights = np.ones(len(distances)) if sizes is None else sizes
    order = np.lexsort((weights, distances))
    cumulated = np.cumsum(weights[order]) / weights.sum()
    return float(distances[order][min(int(np.searchsorted(cumulated, share)), len(order) - 1)])


def directed(
    points: np.ndarray, others: np.ndarray, shape: Sequence[int], spacing: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Distance of each point of two sets to the nearest of the other set.

    Args:
        points: flat indices into a grid, sorted, each once.
        others: likewise.
        shape: of the grid.
        spacing: along its axes.

    Returns:
        Distances of `points` and of `others`, in their order; infinite where the other set is empty.
    """
    if not len(points) or not len(others):
        return np.full(len(points), math.inf), np.full(len(others), math.inf)
    found = np.zeros(len(points)), np.zeros(len(others))
    apart = ~np.isin(points, others, assume_unique=True), ~np.isin(others, points, assume_unique=True)
    if not apart[0].any() and not apart[1].any():
        return found
    places = [_places(flat, shape, spacing) for flat in (points, others)]
    for way, target in ((0, 1), (1, 0)):
        if apart[way].any():
            tree = cKDTree(places[target], balanced_tree=False, compact_nodes=False)
            found[way][apart[way]] = tree.query(places[way][apart[way]])[0]
    return found


def _places(flat: np.ndarray, shape: Sequence[int], spacing: Sequence[float]) -> np.ndarray:
    """Flat indices as places in millimetres (points, axes)."""
    return np.stack(np.unravel_index(flat, tuple(shape)), axis=1) * np.asarray(spacing, float)
