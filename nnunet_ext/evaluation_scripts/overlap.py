"""Overlap of two label maps from one joint histogram (specification evaluation, section 1)."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

_CHUNK = 1 << 22  # voxels counted at once


@dataclass(frozen=True)
class Overlap:
    """Voxel counts of a reference mask G and a predicted mask P.

    Attributes:
        tp, fp, fn, tn: voxels of both, of P alone, of G alone, of neither.
    """

    tp: int
    fp: int
    fn: int
    tn: int

    @property
    def reference(self) -> int:
        """Voxels of G."""
        return self.tp + self.fn

    @property
    def predicted(self) -> int:
        """Voxels of P."""
        return self.tp + self.fp

    @property
    def state(self) -> str:
        """Which is empty: "both_present", "both_empty", "gt_empty" (only P has voxels) or "pred_empty" (only G has)."""
        if self.reference and self.predicted:
            return "both_present"
        if self.reference:
            return "pred_empty"
        return "gt_empty" if self.predicted else "both_empty"

    @property
    def dice(self) -> float:
        """2TP / (2TP + FP + FN); NaN if both are empty."""
        return ratio(2 * self.tp, 2 * self.tp + self.fp + self.fn)

    @property
    def jaccard(self) -> float:
        """TP / (TP + FP + FN); NaN if both are empty."""
        return ratio(self.tp, self.tp + self.fp + self.fn)

    @property
    def precision(self) -> float:
        """TP / (TP + FP); NaN if nothing is predicted."""
        return ratio(self.tp, self.predicted)

    @property
    def recall(self) -> float:
        """TP / (TP + FN), also called sensitivity; NaN if the reference is empty."""
        return ratio(self.tp, self.reference)

    @property
    def specificity(self) -> float:
        """TN / (TN + FP); NaN if the reference is everywhere."""
        return ratio(self.tn, self.tn + self.fp)

    @property
    def volume_similarity(self) -> float:
        """1 - |FN - FP| / (2TP + FP + FN); NaN if both are empty."""
        return 1 - ratio(abs(self.fn - self.fp), 2 * self.tp + self.fp + self.fn)

    @property
    def relative_volume_difference(self) -> float:
        """(|P| - |G|) / |G|; NaN if the reference is empty."""
        return ratio(self.predicted - self.reference, self.reference)


def ratio(numerator: float, denominator: float) -> float:
    """The quotient; NaN for 0 / 0 and anything else by 0."""
    return numerator / denominator if denominator else math.nan


class JointHistogram:
    """How many voxels have each pair of reference and predicted label; only labels that occur take room."""

    def __init__(self, reference: np.ndarray, predicted: np.ndarray) -> None:
        """Count, a few million voxels at a time.

        Args:
            reference: label map of any shape, unsigned integers.
            predicted: of the same shape.

        Raises:
            ValueError: the shapes differ.
        """
        if reference.shape != predicted.shape:
            raise ValueError(f"shapes differ: reference {reference.shape}, prediction {predicted.shape}")
        flat = reference.reshape(-1), predicted.reshape(-1)
        self._rows, self._columns = (occurring(labels) for labels in flat)
        places = [_places(values) for values in (self._rows, self._columns)]
        counts = np.zeros(len(self._rows) * len(self._columns), np.int64)
        for start in range(0, reference.size, _CHUNK):
            part = slice(start, start + _CHUNK)
            pairs = places[0][flat[0][part]]
            pairs *= len(self._columns)
            pairs += places[1][flat[1][part]]
            counts += np.bincount(pairs, minlength=len(counts))
        self._counts = counts.reshape(len(self._rows), len(self._columns))

    def labels(self) -> tuple[set[int], set[int]]:
        """The labels that occur in the reference and in the prediction."""
        return {int(value) for value in self._rows}, {int(value) for value in self._columns}

    def leave_out(self, voxels: int) -> None:
        """Do not count so many voxels that are background in both maps."""
        self._counts[self._rows == 0, self._columns == 0] -= voxels

    def overlap(self, labels: Collection[int]) -> Overlap:
        """The counts of a label, or of a region that consists of several."""
        wanted = sorted(set(labels))
        rows, columns = np.isin(self._rows, wanted), np.isin(self._columns, wanted)
        tp = int(self._counts[np.ix_(rows, columns)].sum())
        reference, predicted = int(self._counts[rows].sum()), int(self._counts[:, columns].sum())
        total = int(self._counts.sum())
        return Overlap(tp, predicted - tp, reference - tp, total - reference - predicted + tp)


def occurring(labels: np.ndarray) -> np.ndarray:
    """The values that occur in a flat label map, sorted."""
    counts = np.zeros(int(labels.max(initial=0)) + 1, np.int64)
    for start in range(0, labels.size, _CHUNK):
        counts += np.bincount(labels[start : start + _CHUNK], minlength=len(counts))
    return np.flatnonzero(counts)


def _places(values: np.ndarray) -> np.ndarray:
    """Label -> its place among the values that occur."""
    table = np.zeros(int(values.max(initial=0)) + 1, np.int64)
    table[values] = np.arange(len(values))
    return table
