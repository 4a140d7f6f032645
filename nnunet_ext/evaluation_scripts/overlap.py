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
    """How many voxels have each pair of reference and predicted label."""

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
        rows, columns = (int(labels.max(initial=0)) + 1 for labels in (reference, predicted))
        counts = np.zeros(rows * columns, np.int64)
        flat = reference.reshape(-1), predicted.reshape(-1)
        for start in range(0, reference.size, _CHUNK):
            part = slice(start, start + _CHUNK)
            pairs = flat[0][part].astype(np.int64)
            pairs *= columns
            pairs += flat[1][part]
            counts += np.bincount(pairs, minlength=len(counts))
        self.counts = counts.reshape(rows, columns)
        """(reference label, predicted label) -> voxels."""

    def labels(self) -> tuple[set[int], set[int]]:
        """The labels that occur in the reference and in the prediction."""
        return (
            {int(value) for value in np.flatnonzero(self.counts.sum(axis=1))},
            {int(value) for value in np.flatnonzero(self.counts.sum(axis=0))},
        )

    def overlap(self, labels: Collection[int]) -> Overlap:
        """The counts of a label, or of a region that consists of several."""
        rows = [label for label in set(labels) if label < self.counts.shape[0]]
        columns = [label for label in set(labels) if label < self.counts.shape[1]]
        tp = int(self.counts[np.ix_(rows, columns)].sum())
        reference, predicted = int(self.counts[rows].sum()), int(self.counts[:, columns].sum())
        total = int(self.counts.sum())
        return Overlap(tp, predicted - tp, reference - tp, total - reference - predicted + tp)
