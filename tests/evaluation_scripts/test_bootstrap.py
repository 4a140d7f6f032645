"""Bootstrap intervals against SciPy's, and over patients against resampling in a loop."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from nnunet_ext.evaluation_scripts import bootstrap as module
from nnunet_ext.evaluation_scripts.bootstrap import (
    bootstrap,
    mean_of_column_means,
    resampling_weights,
    weighted_mean,
    weighted_median,
)

SKEWED = np.random.default_rng(3).exponential(size=25)


@pytest.mark.parametrize("method", ["percentile", "bca"])
@pytest.mark.parametrize(("ours", "scipys"), [(weighted_mean, np.mean), (weighted_median, np.median)])
def test_intervals_are_scipy_s(method: str, ours: module.Statistic, scipys: object) -> None:
    found = bootstrap(SKEWED, statistic=ours, method=method, resamples=20_000)
    expected = stats.bootstrap(
        (SKEWED,), scipys, method=method, n_resamples=20_000, vectorized=True, random_state=np.random.default_rng(5)
    ).confidence_interval
    width = expected.high - expected.low
    assert found.estimate == pytest.approx(scipys(SKEWED))  # type: ignore[operator]
    assert found.lower == pytest.approx(expected.low, abs=0.03 * width)
    assert found.upper == pytest.approx(expected.high, abs=0.03 * width)


def test_bca_of_the_same_resamples_equals_scipy_s() -> None:
    weights = np.concatenate(list(resampling_weights(25, 400, seed=2)))
    drawn = SimpleNamespace(bootstrap_distribution=weighted_mean(SKEWED, weights))
    expected = stats.bootstrap(
        (SKEWED,), np.mean, method="bca", n_resamples=0, bootstrap_result=drawn
    ).confidence_interval
    found = bootstrap(SKEWED, method="bca", resamples=400, seed=2)
    assert (found.lower, found.upper) == pytest.approx((expected.low, expected.high), rel=1e-12)


def test_statistics_of_resamples() -> None:
    weights = np.concatenate(list(resampling_weights(25, 50, seed=1)))
    assert (weights.sum(axis=1) == 25).all()
    for row, mean, median in zip(
        weights, weighted_mean(SKEWED, weights), weighted_median(SKEWED, weights), strict=True
    ):
        drawn = np.repeat(SKEWED, row)
        assert mean == pytest.approx(drawn.mean())
        assert median == pytest.approx(np.median(drawn))
    table = np.stack([SKEWED, -SKEWED], axis=1)
    for statistic in (weighted_mean, weighted_median):
        assert statistic(table, weights)[:, 1] == pytest.approx(-statistic(SKEWED, weights))


def test_the_size_of_the_pieces_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = bootstrap(SKEWED, method="bca", resamples=300)
    monkeypatch.setattr(module, "_CHUNK", 60)
    pieces = bootstrap(SKEWED, method="bca", resamples=300)
    assert (pieces.lower, pieces.upper) == pytest.approx((whole.lower, whole.upper), rel=1e-12)


def test_patients_are_drawn_with_all_their_cases() -> None:
    groups = ["a", "b", "a", "c", "c", "c"]
    weights = np.concatenate(list(resampling_weights(groups, 200)))
    assert (weights[:, 0] == weights[:, 2]).all()
    assert (weights[:, 3] == weights[:, 5]).all()
    assert (weights[:, [0, 1, 3]].sum(axis=1) == 3).all()
    repeated = np.repeat(SKEWED, 4)
    by_patient = bootstrap(repeated, [str(index // 4) for index in range(100)], method="bca")
    one_each = bootstrap(SKEWED, method="bca")
    assert (by_patient.lower, by_patient.upper) == pytest.approx((one_each.lower, one_each.upper))
    assert (by_patient.n, by_patient.groups) == (100, 25)
    assert bootstrap(repeated).upper < by_patient.upper


def test_undefined_values_are_dropped_and_counted() -> None:
    with_holes = np.insert(SKEWED, [3, 9], [math.nan, math.inf])
    found, whole = bootstrap(with_holes), bootstrap(SKEWED)
    assert found.dropped == 2
    assert (found.n, found.lower, found.upper) == (25, whole.lower, whole.upper)


def test_mean_over_cases_then_over_structures() -> None:
    table = np.stack([SKEWED, SKEWED * 2, np.full(25, math.nan)], axis=1)
    table[::2, 1] = math.inf
    weights = np.concatenate(list(resampling_weights(25, 20)))
    for row, mean in zip(weights, mean_of_column_means(table, weights), strict=True):
        drawn = np.repeat(table, row, axis=0)
        columns = [column[np.isfinite(column)].mean() for column in drawn.T[:2]]
        assert mean == pytest.approx(np.mean(columns))
    found = bootstrap(np.vstack([table, np.full((2, 3), math.nan)]), statistic=mean_of_column_means, method="bca")
    assert (found.n, found.dropped) == (25, 2)
    assert found.lower < found.estimate < found.upper
    same = bootstrap(np.stack([SKEWED, SKEWED], axis=1), statistic=mean_of_column_means)
    assert (same.lower, same.upper) == pytest.approx((bootstrap(SKEWED).lower, bootstrap(SKEWED).upper))


@pytest.mark.parametrize("method", ["percentile", "bca"])
def test_few_or_equal_values(method: str) -> None:
    assert math.isnan(bootstrap([], method=method).estimate)
    alone = bootstrap([0.5], method=method)
    assert alone.estimate == 0.5
    assert math.isnan(alone.lower)
    assert math.isnan(bootstrap([0.5, 0.7], ["a", "a"], method=method).upper)
    equal = bootstrap([0.5] * 7, method=method)
    assert (equal.lower, equal.upper) == (0.5, 0.5)


def test_the_seed_decides() -> None:
    assert bootstrap(SKEWED, seed=1) == bootstrap(SKEWED, seed=1)
    assert bootstrap(SKEWED, seed=1).lower != bootstrap(SKEWED, seed=2).lower


def test_refusals() -> None:
    with pytest.raises(ValueError, match="percentile, bca"):
        bootstrap(SKEWED, method="normal")
    with pytest.raises(ValueError, match="groups"):
        bootstrap(SKEWED, ["a"])
