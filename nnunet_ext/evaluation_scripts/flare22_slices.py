"""FLARE22's scores: three long organs are scored in the reference's slices alone (specification evaluation, 3.3)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from nnunet_ext.evaluation_scripts.metrics import CasePair
from nnunet_ext.evaluation_scripts.overlap import Overlap
from nnunet_ext.evaluation_scripts.tolerances import FLARE22

SLICED = (5, 6, 10)
"""Aorta, inferior vena cava, esophagus: the reference does not follow them over the whole image."""


def reference_slices(reference: np.ndarray, label: int, corrected: bool = False) -> slice:
    """The slices in which a label is scored.

    Args:
        reference: label map (z, y, x).
        label: which.
        corrected: with the label's last slice, which the challenge's code leaves out.

    Returns:
        Of the first axis; no slices if the label does not occur.
    """
    labelled = np.flatnonzero((reference == label).any(axis=tuple(range(1, reference.ndim))))
    if not len(labelled):
        return slice(0, 0)
    return slice(int(labelled[0]), int(labelled[-1]) + (1 if corrected else 0))


def flare22_scores(
    reference: np.ndarray,
    predicted: np.ndarray,
    spacing: Sequence[float],
    tolerances: Mapping[int, float] = FLARE22,
    corrected: bool = False,
    pair: CasePair | None = None,
) -> dict[int, tuple[float, float]]:
    """DSC and NSD of each organ, rounded to 4 digits as the challenge does before it averages.

    Args:
        reference: label map (z, y, x), unsigned integers.
        predicted: of the same shape.
        spacing: millimetres along (z, y, x).
        tolerances: label -> mm, for NSD on surface elements.
        corrected: score `SLICED` organs in all of the reference's slices, the last one included, and do not round.
        pair: of the two maps, if there is one already, so that its surfaces are used.

    Returns:
        Label -> (DSC, NSD). Both 1 where neither has the organ, both 0 where the prediction alone has it. NaN where
        there is nothing to score: the organ is in a single slice of the reference, which the challenge's code leaves
        out.

    Raises:
        ValueError: maps that do not fit each other or the spacing.
    """
    pair = pair or CasePair(reference, predicted, spacing)
    scores = {}
    for label, tolerance in tolerances.items():
        part = _sliced(reference, predicted, pair, label, corrected) if label in SLICED else pair
        dice, nsd = _scores(pair.overlap([label]), part, label, tolerance)
        scores[label] = (dice, nsd) if corrected else (round(dice, 4), round(nsd, 4))
    return scores


def _sliced(
    reference: np.ndarray, predicted: np.ndarray, pair: CasePair, label: int, corrected: bool
) -> CasePair | None:
    """One organ in the reference's slices; None if there are none."""
    used = reference_slices(reference, label, corrected)
    if used.start == used.stop:
        return None
    masks = [(labels[used] == label).astype(np.uint8) * np.uint8(label) for labels in (reference, predicted)]
    return CasePair(masks[0], masks[1], pair.spacing)


def _scores(whole: Overlap, part: CasePair | None, label: int, tolerance: float) -> tuple[float, float]:
    if not whole.reference:
        return (0.0, 0.0) if whole.predicted else (1.0, 1.0)
    if part is None:
        return math.nan, math.nan
    return part.overlap([label]).dice, part.element_distances([label]).surface_dice(tolerance)
