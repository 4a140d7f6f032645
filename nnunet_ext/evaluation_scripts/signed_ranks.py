"""Wilcoxon's signed ranks: of one sample of differences, and of many resamples of it at once."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import stats
from scipy.special import ndtr

ZERO_METHODS = ("wilcox", "pratt")
ALTERNATIVES = ("two-sided", "greater", "less")
EXACT_UP_TO = 25
"""Differences; for more, the normal approximation serves."""


@dataclass(frozen=True)
class SignedRanks:
    """Sums of the ranks of the absolute differences.

    Attributes:
        positive, negative: sums over positive and negative differences; equal absolute values share their mean rank.
        nonzero: how many differences are not 0.
        zeros: how many are.
        distinct: whether no two absolute differences other than 0 are equal.
        mean, deviation: of `positive` if either sign is as likely.
    """

    positive: float
    negative: float
    nonzero: int
    zeros: int
    distinct: bool
    mean: float
    deviation: float

    @property
    def effect(self) -> float:
        """Matched-pairs rank-biserial correlation (Kerby 2014): 1 if all differences are positive, -1 if negative.

        0 if none differs from 0.
        """
        total = self.positive + self.negative
        return (self.positive - self.negative) / total if total else 0.0


def signed_ranks(differences: np.ndarray, zero_method: str = "wilcox") -> SignedRanks:
    """Rank the absolute differences.

    Args:
        differences: finite.
        zero_method: "wilcox": differences of 0 are dropped before ranking; "pratt": they are ranked, then dropped.

    Raises:
        ValueError: an unknown method.
    """
    if zero_method not in ZERO_METHODS:
        raise ValueError(f"zero method {zero_method!r}; allowed are {', '.join(ZERO_METHODS)}")
    zeros = int((differences == 0).sum())
    ranked = differences[differences != 0] if zero_method == "wilcox" else differences
    ranks = stats.rankdata(np.abs(ranked))
    nonzero = len(differences) - zeros
    _, tied = np.unique(np.abs(differences[differences != 0]), return_counts=True)
    left_out = zeros if zero_method == "pratt" else 0
    squares = sum(sign * n * (n + 1) * (2 * n + 1) for sign, n in ((1, len(ranked)), (-1, left_out)))
    return SignedRanks(
        float(ranks[ranked > 0].sum()),
        float(ranks[ranked < 0].sum()),
        nonzero,
        zeros,
        bool((tied == 1).all()),
        (len(ranked) * (len(ranked) + 1) - left_out * (left_out + 1)) / 4,
        math.sqrt((squares - float((tied**3 - tied).sum()) / 2) / 24),
    )


def wilcoxon_p(
    differences: np.ndarray, zero_method: str = "wilcox", alternative: str = "two-sided"
) -> tuple[float, bool]:
    """Wilcoxon's signed-rank test.

    Args:
        differences: finite.
        zero_method: "wilcox" or "pratt".
        alternative: "two-sided", "greater" (differences tend to be positive) or "less".

    Returns:
        p, and whether it is exact: for up to 25 differences without equal absolute values, and for "pratt" without 0.
        Otherwise by the normal approximation, corrected for ties. 1 if no difference is other than 0; NaN for none at
        all.

    Raises:
        ValueError: an unknown method or alternative.
    """
    if alternative not in ALTERNATIVES:
        raise ValueError(f"alternative {alternative!r}; allowed are {', '.join(ALTERNATIVES)}")
    ranks = signed_ranks(differences, zero_method)
    if not len(differences):
        return math.nan, False
    if not ranks.nonzero:
        return 1.0, False
    if ranks.nonzero <= EXACT_UP_TO and ranks.distinct and not (ranks.zeros and zero_method == "pratt"):
        nonzero = differences[differences != 0]
        return float(stats.wilcoxon(nonzero, alternative=alternative, method="exact").pvalue), True
    z = (ranks.positive - ranks.mean) / ranks.deviation
    p = {"two-sided": 2 * ndtr(-abs(z)), "greater": ndtr(-z), "less": ndtr(z)}[alternative]
    return float(p), False


def resampled_p_greater(differences: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """One-sided p of the signed-rank test ("wilcox", normal approximation) in each resample.

    Args:
        differences: (n,), finite.
        weights: (b, n), how often each is in a resample.

    Returns:
        (b,); 1 where no difference other than 0 is in the resample.
    """
    used = differences != 0
    sizes, which = np.unique(np.abs(differences[used]), return_inverse=True)
    counts, positive = np.zeros((2, len(weights), len(sizes)))
    chosen = weights[:, used].astype(float)
    for column, (index, above) in enumerate(zip(which.reshape(-1), differences[used] > 0, strict=True)):
        counts[:, index] += chosen[:, column]
        if above:
            positive[:, index] += chosen[:, column]
    ranks = np.cumsum(counts, axis=1) - (counts - 1) / 2
    n = counts.sum(axis=1)
    variance = (n * (n + 1) * (2 * n + 1) - (counts**3 - counts).sum(axis=1) / 2) / 24
    with np.errstate(invalid="ignore", divide="ignore"):
        z = ((ranks * positive).sum(axis=1) - n * (n + 1) / 4) / np.sqrt(variance)
    p: np.ndarray = np.where(n > 0, ndtr(-z), 1.0)
    return p
