"""How well paired measurements agree: Pearson's correlation, bias and limits of agreement (Bland and Altman)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LIMITS = 1.96
"""Standard deviations of the differences on each side of the bias: 95 % of normally distributed ones."""


@dataclass(frozen=True)
class Agreement:
    """Of predicted and reference measurements, in their unit.

    Attributes:
        n: pairs used.
        dropped: pairs of which one or both are NaN.
        correlation: Pearson's r; NaN for fewer than two pairs or a constant.
        bias: mean of predicted less reference.
        deviation: standard deviation of the differences (ddof 1); NaN for fewer than two pairs.
        lower, upper: limits of agreement, bias ± 1.96 standard deviations.
        mean_absolute_error: mean of the differences without sign.
    """

    n: int
    dropped: int
    correlation: float
    bias: float
    deviation: float
    lower: float
    upper: float
    mean_absolute_error: float


def agreement(reference: Sequence[float] | np.ndarray, predicted: Sequence[float] | np.ndarray) -> Agreement:
    """Compare two measurements of each patient.

    Args:
        reference: a value of each.
        predicted: in the same order.

    Raises:
        ValueError: as many references as predictions are needed.
    """
    ours, theirs = np.asarray(reference, float), np.asarray(predicted, float)
    if ours.shape != theirs.shape or ours.ndim != 1:
        raise ValueError(f"one prediction for each reference; got {theirs.shape} and {ours.shape}")
    used = ~(np.isnan(ours) | np.isnan(theirs))
    ours, theirs = ours[used], theirs[used]
    differences = theirs - ours
    n = len(differences)
    bias = float(differences.mean()) if n else math.nan
    deviation = float(differences.std(ddof=1)) if n > 1 else math.nan
    return Agreement(
        n,
        int((~used).sum()),
        _pearson(ours, theirs),
        bias,
        deviation,
        bias - LIMITS * deviation,
        bias + LIMITS * deviation,
        float(np.abs(differences).mean()) if n else math.nan,
    )


def _pearson(one: np.ndarray, other: np.ndarray) -> float:
    if len(one) < 2 or np.ptp(one) == 0 or np.ptp(other) == 0:
        return math.nan
    one, other = one - one.mean(), other - other.mean()
    r = float((one * other).sum() / math.sqrt(float((one**2).sum() * (other**2).sum())))
    return min(1.0, max(-1.0, r))
