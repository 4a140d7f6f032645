"""Bootstrap confidence intervals over cases or patients (specification evaluation, section 6).

All resamples are drawn at once, as multinomial weights of the cases.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr, ndtri

RESAMPLES = 10_000
SEED = 0
LEVEL = 0.95
METHODS = ("percentile", "bca")
_CHUNK = 1 << 21  # weights drawn at once

Statistic = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(values (n,) or (n, columns), weights (b, n)) -> the statistic of each resample (b,)."""


@dataclass(frozen=True)
class Interval:
    """A statistic and its confidence interval.

    Attributes:
        estimate: of the cases as they are; NaN if there are none.
        lower, upper: NaN for fewer than two cases (groups, if they were resampled).
        level: of confidence.
        method: "percentile" or "bca".
        resamples, seed: with which it was made.
        n: finite values used.
        groups: that were resampled; `n` where each case is its own.
        dropped: values that are NaN or infinite.
    """

    estimate: float
    lower: float
    upper: float
    level: float
    method: str
    resamples: int
    seed: int
    n: int
    groups: int
    dropped: int


def weighted_mean(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean of each resample.

    Args:
        values: (n,) or (n, columns).
        weights: (b, n), how often each value is in a resample.

    Returns:
        (b,) or (b, columns).
    """
    total = weights.sum(axis=1).astype(float)
    sums: np.ndarray = weights.astype(float) @ values
    return sums / (total if values.ndim == 1 else total[:, None])


def weighted_median(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Median of each resample, the mean of the two in the middle of an even number.

    Args:
        values: (n,) or (n, columns).
        weights: (b, n), how often each value is in a resample.

    Returns:
        (b,) or (b, columns).
    """
    if values.ndim == 2:
        return np.stack([weighted_median(column, weights) for column in values.T], axis=1)
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(weights[:, order], axis=1)
    total = reached[:, -1:]
    lower, upper = (np.argmax(reached > middle, axis=1) for middle in ((total - 1) // 2, total // 2))
    medians: np.ndarray = (values[order][lower] + values[order][upper]) / 2
    return medians


def mean_of_column_means(table: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean over cases of each column (structure), then over columns.

    Args:
        table: (n, columns); NaN and infinite values are left out, and columns that have no other in a resample.
        weights: (b, n), how often each row is in a resample.

    Returns:
        (b,); NaN for a resample without any value.
    """
    finite = np.isfinite(table)
    counts = weights.astype(float) @ finite.astype(float)
    sums = weights.astype(float) @ np.where(finite, table, 0.0)
    means = np.divide(sums, counts, out=np.zeros_like(sums), where=counts > 0)
    columns = (counts > 0).sum(axis=1)
    return np.divide(means.sum(axis=1), columns, out=np.full(len(means), math.nan), where=columns > 0)


def resampling_weights(
    groups: Sequence[Hashable] | int, resamples: int = RESAMPLES, seed: int = SEED
) -> Iterator[np.ndarray]:
    """How often each case is in each resample.

    Args:
        groups: the group (patient) of each case, which is drawn as a whole; or a number of independent cases.
        resamples: how many.
        seed: of the generator; the same seed gives the same resamples.

    Yields:
        Weights (some of the resamples, cases), until there are all.
    """
    members = np.arange(groups) if isinstance(groups, int) else _numbered(groups)
    n = int(members.max(initial=-1)) + 1
    if not n:
        return
    generator = np.random.default_rng(seed)
    step = max(1, _CHUNK // len(members))
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        drawn = generator.integers(n, size=(rows, n)) + n * np.arange(rows)[:, None]
        yield np.bincount(drawn.reshape(-1), minlength=rows * n).reshape(rows, n)[:, members]


def bootstrap(
    values: Sequence[float] | np.ndarray,
    groups: Sequence[Hashable] | None = None,
    statistic: Statistic = weighted_mean,
    method: str = "percentile",
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> Interval:
    """A confidence interval of a statistic over cases.

    Args:
        values: one of each case; those that are NaN or infinite are dropped and counted. Or, for a statistic that
            takes a table, a row of each case; rows without a finite value are dropped.
        groups: the patient of each case, where a patient has several: patients are resampled, not cases.
        statistic: `weighted_mean`, `weighted_median`, `mean_of_column_means` or another of their kind.
        method: "percentile", or "bca": corrected for bias and acceleration (Efron 1987).
        level: of confidence.
        resamples: how many.
        seed: of the generator.

    Raises:
        ValueError: an unknown method, or not one group for each value.
    """
    if method not in METHODS:
        raise ValueError(f"method {method!r}; allowed are {', '.join(METHODS)}")
    given = np.asarray(values, float)
    if groups is not None and len(groups) != len(given):
        raise ValueError(f"{len(given)} values, but {len(groups)} groups")
    used = np.isfinite(given) if given.ndim == 1 else np.isfinite(given).any(axis=1)
    kept = given[used]
    members = _numbered([group for group, use in zip(groups, used, strict=True) if use]) if groups is not None else None
    units = np.arange(len(kept)) if members is None else members
    number = int(units.max(initial=-1)) + 1
    estimate = float(statistic(kept, np.ones((1, len(kept)), int))[0]) if len(kept) else math.nan
    bounds = math.nan, math.nan
    if number > 1:
        drawn = resampling_weights(units.tolist(), resamples, seed)
        resampled = np.concatenate([statistic(kept, weights) for weights in drawn])
        bounds = (
            percentile_bounds(resampled, level)
            if method == "percentile"
            else _bca_bounds(resampled, estimate, _jackknife(kept, units, statistic), level)
        )
    return Interval(estimate, *bounds, level, method, resamples, seed, len(kept), number, int(len(given) - used.sum()))


def percentile_bounds(resampled: np.ndarray, level: float = LEVEL) -> tuple[float, float]:
    """The middle share of the resamples' values."""
    lower, upper = np.percentile(resampled, [50 * (1 - level), 50 * (1 + level)])
    return float(lower), float(upper)


def _bca_bounds(resampled: np.ndarray, estimate: float, left_out: np.ndarray, level: float) -> tuple[float, float]:
    """Percentiles shifted by the share of resamples below the estimate and by the skewness of the jackknife."""
    influence = left_out.mean() - left_out
    spread = float((influence**2).sum())
    below = float((resampled < estimate).mean() + (resampled <= estimate).mean()) / 2
    if spread <= 0 or not 0 < below < 1:
        return percentile_bounds(resampled, level)
    bias = ndtri(below)
    acceleration = float((influence**3).sum()) / (6 * spread**1.5)
    tails = bias + ndtri(np.array([(1 - level) / 2, (1 + level) / 2]))
    lower, upper = np.quantile(resampled, ndtr(bias + tails / (1 - acceleration * tails)))
    return float(lower), float(upper)


def _jackknife(values: np.ndarray, units: np.ndarray, statistic: Statistic) -> np.ndarray:
    """The statistic without each of the groups."""
    number = int(units.max()) + 1
    step = max(1, _CHUNK // len(values))
    parts = []
    for start in range(0, number, step):
        left_out = np.arange(start, min(start + step, number))
        parts.append(statistic(values, (units != left_out[:, None]).astype(int)))
    return np.concatenate(parts)


def _numbered(groups: Sequence[Hashable]) -> np.ndarray:
    """Groups as 0, 1, ... in the order in which they first occur."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(group, len(numbers)) for group in groups], int)
