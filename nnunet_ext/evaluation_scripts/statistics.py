"""Two models on the same cases: paired tests, effect size, Holm's correction (specification evaluation, section 6)."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from nnunet_ext.errors import UserError
from nnunet_ext.evaluation_scripts.bootstrap import LEVEL, RESAMPLES, SEED, Interval, bootstrap
from nnunet_ext.evaluation_scripts.signed_ranks import signed_ranks, wilcoxon_p

FEWEST = 6
"""Differences with which a two-sided signed-rank or sign-flip test can reach p < 0.05: 2 / 2⁶ = 0.031."""
_SHOWN = 5
_CHUNK = 1 << 21


@dataclass(frozen=True)
class PairedSettings:
    """How two models are compared.

    Attributes:
        zero_method: of Wilcoxon's test: "wilcox" (differences of 0 are dropped) or "pratt" (they are ranked first).
        method: of the bootstrap: "percentile" or "bca".
        level: of its confidence.
        resamples: of the bootstrap, and sign flips of the permutation test.
        seed: of both.
    """

    zero_method: str = "wilcox"
    method: str = "percentile"
    level: float = LEVEL
    resamples: int = RESAMPLES
    seed: int = SEED


DEFAULT = PairedSettings()


@dataclass(frozen=True)
class PairedComparison:
    """The first model less the second, on the same cases.

    Attributes:
        n: pairs used; of the tests' units (patients, where cases are grouped) where `units` differs.
        dropped: pairs of which one or both are NaN or infinite.
        units: what the tests count: cases, or patients with the mean of their cases.
        mean: of the differences, with its bootstrap interval.
        median: of the differences.
        wilcoxon_p: two-sided p of the signed-rank test; `wilcoxon_exact` says whether it is exact.
        permutation_p: two-sided p of the mean under random signs of the differences.
        effect: rank-biserial correlation, from -1 to 1; positive if the first has the larger values.
        settings: with which it was made.
        wilcoxon_holm, permutation_holm: p corrected for all comparisons made together; NaN for a single one.
        remark: what a reader must know, or "".
    """

    n: int
    dropped: int
    units: int
    mean: Interval
    median: float
    wilcoxon_p: float
    wilcoxon_exact: bool
    permutation_p: float
    effect: float
    settings: PairedSettings
    wilcoxon_holm: float = math.nan
    permutation_holm: float = math.nan
    remark: str = ""


def compare_paired(
    first: Sequence[float] | np.ndarray,
    second: Sequence[float] | np.ndarray,
    groups: Sequence[Hashable] | None = None,
    settings: PairedSettings = DEFAULT,
) -> PairedComparison:
    """Compare two models.

    Args:
        first: a value of each case.
        second: of the same cases in the same order.
        groups: the patient of each case, where patients have several: they are resampled as a whole, and the tests
            take the mean difference of each.
        settings: of the tests and the bootstrap.

    Raises:
        ValueError: not as many values of one as of the other, or an unknown method.
    """
    ours, theirs = np.asarray(first, float), np.asarray(second, float)
    if ours.shape != theirs.shape:
        raise ValueError(f"paired values of the same cases are needed; got {len(ours)} and {len(theirs)}")
    used = np.isfinite(ours) & np.isfinite(theirs)
    differences = ours[used] - theirs[used]
    kept = None if groups is None else [group for group, use in zip(groups, used, strict=True) if use]
    units = differences if kept is None else _group_means(differences, kept)
    p, exact = wilcoxon_p(units, settings.zero_method)
    ranks = signed_ranks(units, settings.zero_method)
    mean = bootstrap(
        differences,
        kept,
        method=settings.method,
        level=settings.level,
        resamples=settings.resamples,
        seed=settings.seed,
    )
    return PairedComparison(
        len(differences),
        int((~used).sum()),
        len(units),
        mean,
        float(np.median(differences)) if len(differences) else math.nan,
        p,
        exact,
        permutation_p(units, settings.resamples, settings.seed),
        ranks.effect if len(units) else math.nan,
        settings,
        remark=_remark(len(units), ranks.nonzero),
    )


def compare_structures(
    first: Mapping[str, Mapping[str, float]],
    second: Mapping[str, Mapping[str, float]],
    groups: Mapping[str, Hashable] | None = None,
    names: tuple[str, str] = ("first", "second"),
    settings: PairedSettings = DEFAULT,
) -> dict[str, PairedComparison]:
    """Compare two models on each structure, the p values corrected by Holm's method over the structures.

    Args:
        first: structure -> case -> value.
        second: likewise.
        groups: case -> patient, where patients have several cases.
        names: of the models, for messages.
        settings: of the tests and the bootstrap.

    Returns:
        Structure -> comparison.

    Raises:
        UserError: other structures or cases in one than in the other.
    """
    require_same(first, second, names, "structures")
    compared = {}
    for structure, ours in first.items():
        theirs = second[structure]
        require_same(ours, theirs, names, f"cases of {structure}")
        cases = sorted(ours)
        compared[structure] = compare_paired(
            [ours[case] for case in cases],
            [theirs[case] for case in cases],
            None if groups is None else [groups[case] for case in cases],
            settings,
        )
    corrected = [
        holm([getattr(found, name) for found in compared.values()]) for name in ("wilcoxon_p", "permutation_p")
    ]
    return {
        structure: replace(found, wilcoxon_holm=float(wilcoxon), permutation_holm=float(permutation))
        for (structure, found), wilcoxon, permutation in zip(compared.items(), *corrected, strict=True)
    }


def require_same(
    first: Mapping[str, object], second: Mapping[str, object], names: tuple[str, str], what: str = "cases"
) -> None:
    """Refuse to compare what is not paired.

    Raises:
        UserError: keys in one that the other lacks, which the message names.
    """
    lacking = [
        f"{name} lacks {len(keys)}: {', '.join(keys[:_SHOWN])}{', ...' if len(keys) > _SHOWN else ''}"
        for name, keys in ((names[1], sorted(set(first) - set(second))), (names[0], sorted(set(second) - set(first))))
        if keys
    ]
    if lacking:
        raise UserError(f"not the same {what}: {'; '.join(lacking)}. Evaluate both on the same {what.split()[0]}.")


def permutation_p(differences: np.ndarray, flips: int = RESAMPLES, seed: int = SEED) -> float:
    """Two-sided permutation test of the mean: under the null hypothesis, each difference may have either sign.

    Args:
        differences: finite.
        flips: random sign patterns; all patterns are taken, and p is exact, where there are no more than these.
        seed: of the generator.

    Returns:
        p; with random patterns, the observed one is counted among them, so that p is never 0. NaN without differences.
    """
    n = len(differences)
    if not n:
        return math.nan
    sizes = np.abs(differences)
    limit = abs(float(differences.sum())) - 1e-12 * float(sizes.sum())
    exact = n < 63 and 2**n <= flips
    count = 2**n if exact else flips
    generator = np.random.default_rng(seed)
    step = max(1, _CHUNK // n)
    extreme = 0
    for start in range(0, count, step):
        rows = min(step, count - start)
        patterns = (
            (np.arange(start, start + rows)[:, None] >> np.arange(n)) & 1
            if exact
            else generator.integers(2, size=(rows, n), dtype=np.int8)
        )
        extreme += int((np.abs((1 - 2 * patterns) @ sizes) >= limit).sum())
    return extreme / count if exact else (extreme + 1) / (count + 1)


def holm(p_values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Adjusted p values (Holm 1979), in the order given; NaN stays and does not count as a test."""
    given = np.asarray(p_values, float)
    adjusted = np.full(len(given), math.nan)
    tested = np.flatnonzero(~np.isnan(given))
    order = tested[np.argsort(given[tested], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(factors * given[order]))
    return adjusted


def _group_means(differences: np.ndarray, groups: Sequence[Hashable]) -> np.ndarray:
    members: dict[Hashable, list[float]] = {}
    for group, difference in zip(groups, differences.tolist(), strict=True):
        members.setdefault(group, []).append(difference)
    return np.array([math.fsum(found) / len(found) for found in members.values()])


def _remark(units: int, nonzero: int) -> str:
    if units < FEWEST:
        return f"{units} pairs: with fewer than {FEWEST}, no difference can be significant"
    if nonzero < FEWEST:
        return f"{nonzero} of {units} pairs differ: with fewer than {FEWEST}, no difference can be significant"
    return ""
