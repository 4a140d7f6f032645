"""Paired comparisons against SciPy's tests and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from nnunet_ext.errors import UserError
from nnunet_ext.evaluation_scripts.statistics import (
    FEWEST,
    PairedSettings,
    compare_paired,
    compare_structures,
    holm,
    permutation_p,
    require_same,
)

RNG = np.random.default_rng(7)
FIRST, SECOND = RNG.normal(0.8, 0.1, 20), RNG.normal(0.75, 0.1, 20)


def test_comparison() -> None:
    found = compare_paired(FIRST, SECOND)
    expected = stats.wilcoxon(FIRST, SECOND)
    assert found.wilcoxon_p == pytest.approx(expected.pvalue)
    assert found.wilcoxon_exact
    assert found.mean.estimate == pytest.approx((FIRST - SECOND).mean())
    assert found.mean.lower < found.mean.estimate < found.mean.upper
    assert found.median == pytest.approx(np.median(FIRST - SECOND))
    ranks = stats.rankdata(np.abs(FIRST - SECOND))
    assert found.effect == pytest.approx(float((ranks * np.sign(FIRST - SECOND)).sum() / ranks.sum()))
    assert (found.n, found.units, found.dropped, found.remark) == (20, 20, 0, "")
    turned = compare_paired(SECOND, FIRST)
    assert (turned.effect, turned.mean.estimate) == pytest.approx((-found.effect, -found.mean.estimate))
    assert turned.wilcoxon_p == found.wilcoxon_p


def _mean(values: np.ndarray, axis: int) -> np.ndarray:
    return np.mean(values, axis=axis)


@pytest.mark.parametrize("n", [2, 5, 12])
def test_permutations_of_few_are_exact(n: int) -> None:
    differences = (FIRST - SECOND)[:n]
    expected = stats.permutation_test(
        (differences,), _mean, permutation_type="samples", vectorized=True, n_resamples=10_000
    )
    assert permutation_p(differences) == pytest.approx(expected.pvalue)


def test_random_permutations() -> None:
    differences = (FIRST - SECOND)[:15]
    exact = permutation_p(differences, flips=2**15)
    assert permutation_p(differences, flips=20_000) == pytest.approx(exact, abs=4 * math.sqrt(exact / 20_000))
    assert permutation_p(np.arange(1.0, 30), flips=999) == 1 / 1000


def test_permutations_of_equal_differences() -> None:
    """Sums that differ in rounding alone are as extreme as the observed one."""
    assert permutation_p(np.array([0.1, 0.2, 0.3, -0.6])) == 1
    assert permutation_p(np.full(10, 0.1)) == 2 / 2**10
    assert permutation_p(np.zeros(8)) == 1


def test_undefined_pairs_are_dropped_and_counted() -> None:
    first, second = FIRST.copy(), SECOND.copy()
    first[3], second[5], first[8] = math.nan, math.inf, math.inf
    second[8] = math.inf
    used = np.isfinite(first) & np.isfinite(second)
    found, kept = compare_paired(first, second), compare_paired(first[used], second[used])
    assert (found.n, found.dropped) == (17, 3)
    assert found.mean.estimate == kept.mean.estimate
    assert (found.wilcoxon_p, found.permutation_p) == (kept.wilcoxon_p, kept.permutation_p)


@pytest.mark.parametrize("n", range(FEWEST))
def test_few_pairs_cannot_be_significant(n: int) -> None:
    found = compare_paired(np.arange(1.0, n + 1), np.zeros(n))
    assert "fewer than 6" in found.remark
    assert not found.wilcoxon_p < 0.05
    assert not found.permutation_p < 0.05


def test_six_pairs_can() -> None:
    found = compare_paired(np.arange(1.0, 7), np.zeros(6))
    assert found.remark == ""
    assert found.wilcoxon_p == found.permutation_p == 2 / 64
    mostly_equal = compare_paired([1.0, 2, 3, 0, 0, 0, 0], np.zeros(7))
    assert mostly_equal.remark.startswith("3 of 7 pairs differ")


def test_settings() -> None:
    settings = PairedSettings("pratt", "bca", 0.9, 700, 5)
    found = compare_paired(np.append(FIRST, [1, 1]), np.append(SECOND, [1, 1]), settings=settings)
    assert found.settings == settings
    assert (found.mean.method, found.mean.level, found.mean.resamples, found.mean.seed) == ("bca", 0.9, 700, 5)
    assert found.wilcoxon_p != compare_paired(FIRST, SECOND).wilcoxon_p
    assert not found.wilcoxon_exact


def test_patients_count_once() -> None:
    patients = [index // 2 for index in range(20)]
    found = compare_paired(FIRST, SECOND, patients)
    differences = (FIRST - SECOND).reshape(10, 2).mean(axis=1)
    assert (found.n, found.units, found.mean.groups) == (20, 10, 10)
    assert found.wilcoxon_p == pytest.approx(stats.wilcoxon(differences).pvalue)
    assert found.permutation_p == pytest.approx(permutation_p(differences))
    assert found.mean.estimate == pytest.approx(differences.mean())


def test_holm() -> None:
    """The values of R's p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm")."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.01, math.nan, 0.6, 0.7]) == pytest.approx([0.03, math.nan, 1, 1], nan_ok=True)
    assert len(holm([])) == 0


def test_structures_are_corrected_together() -> None:
    cases = [f"case_{index}" for index in range(20)]
    first = {"liver": dict(zip(cases, FIRST, strict=True)), "spleen": dict(zip(cases, FIRST + 0.1, strict=True))}
    second = {name: dict(zip(reversed(cases), reversed(SECOND), strict=True)) for name in ("spleen", "liver")}
    found = compare_structures(first, second, settings=PairedSettings(resamples=500))
    assert list(found) == ["liver", "spleen"]
    expected = holm([compare_paired(FIRST + shift, SECOND).wilcoxon_p for shift in (0, 0.1)])
    assert [entry.wilcoxon_holm for entry in found.values()] == pytest.approx(expected)
    assert found["spleen"].permutation_holm >= found["spleen"].permutation_p
    groups = {case: case[-1] for case in cases}
    assert compare_structures(first, second, groups)["liver"].units == 10


def test_other_cases_are_refused() -> None:
    first, second = {"a": 1.0, "b": 2.0, "d": 0.5}, {"a": 1.0, "c": 2.0}
    with pytest.raises(UserError, match=r"cases.*B lacks 2: b, d; A lacks 1: c"):
        require_same(first, second, ("A", "B"))
    with pytest.raises(UserError, match="cases of liver"):
        compare_structures({"liver": first}, {"liver": second})
    with pytest.raises(UserError, match="structures"):
        compare_structures({"liver": first}, {"spleen": first})
    with pytest.raises(ValueError, match="paired"):
        compare_paired([1, 2], [1])
