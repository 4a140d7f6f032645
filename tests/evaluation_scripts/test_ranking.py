"""Rankings against a plain loop and SciPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from nnunet_ext.errors import UserError
from nnunet_ext.evaluation_scripts.bootstrap import resampling_weights
from nnunet_ext.evaluation_scripts.ranking import (
    METHODS,
    case_ranks,
    kendall_tau,
    model_table,
    rank_models,
    ranks_over_metrics,
    significantly_better,
    stability,
)

MODELS = ("a", "b", "c", "d")
RNG = np.random.default_rng(1)
VALUES = np.round(RNG.normal([0.80, 0.79, 0.70, 0.5], 0.08, (18, 4)), 2)


def test_mean_and_median() -> None:
    values = np.array([[0.9, 0.8, 0.9], [0.9, 0.8, 0.9], [0.0, 0.8, 0.0]])
    assert rank_models("abc", values, True, "mean").ranks.tolist() == [2.5, 1, 2.5]
    assert rank_models("abc", values, True, "median").ranks.tolist() == [1.5, 3, 1.5]
    assert rank_models("abc", values, False, "median").ranks.tolist() == [2.5, 1, 2.5]


def test_rank_then_aggregate() -> None:
    values = np.array([[0.9, 0.8, 0.7], [0.9, 0.8, 0.7], [0.1, 0.8, 0.8]])
    found = rank_models("abc", values, True, "rank-mean")
    assert found.scores == pytest.approx([5 / 3, 5.5 / 3, 7.5 / 3])
    assert found.ranks.tolist() == [1, 2, 3]
    assert rank_models("abc", values, True, "rank-median").scores.tolist() == [1, 2, 3]
    assert [row[0] for row in found.order()] == ["a", "b", "c"]


def test_lower_is_better_turns_the_order() -> None:
    for method in METHODS:
        higher, lower = rank_models(MODELS, VALUES, True, method), rank_models(MODELS, -VALUES, False, method)
        assert higher.ranks.tolist() == lower.ranks.tolist()
        if method == "test":  # what is not significantly better need not be worse
            continue
        assert rank_models(MODELS, VALUES, False, method).ranks == pytest.approx(5 - higher.ranks)


def test_significance() -> None:
    better = significantly_better(VALUES, True)
    p = {
        (i, j): stats.wilcoxon(
            VALUES[:, i], VALUES[:, j], alternative="greater", method="approx", zero_method="wilcox"
        ).pvalue
        for i in range(4)
        for j in range(4)
        if i != j
    }
    ordered = sorted(p, key=lambda pair: p[pair])
    for rank, pair in enumerate(ordered):
        if p[pair] * (12 - rank) >= 0.05:
            break
        assert better[pair]
    assert better.sum() == rank > 0
    found = rank_models(MODELS, VALUES, True, "test")
    assert found.scores.tolist() == better.sum(axis=1).tolist()
    assert found.ranks[3] == 4


@pytest.mark.parametrize("higher_is_better", [True, False])
@pytest.mark.parametrize("method", METHODS)
def test_resamples_are_ranked_like_samples(method: str, higher_is_better: bool) -> None:
    ranking = rank_models(MODELS, VALUES, higher_is_better, method)
    found = stability(ranking, 40, seed=3)
    weights = np.concatenate(list(resampling_weights(18, 40, seed=3)))
    for row, ranks in zip(weights, found.ranks, strict=True):
        drawn = rank_models(MODELS, np.repeat(VALUES, row, axis=0), higher_is_better, method)
        assert ranks.tolist() == drawn.ranks.tolist()
    for ranks, tau in zip(found.ranks, found.tau, strict=True):
        assert tau == pytest.approx(stats.kendalltau(ranks, ranking.ranks).statistic, nan_ok=True)


def test_stability() -> None:
    found = stability(rank_models(MODELS, VALUES, True), 500)
    assert found.ranks.shape == (500, 4)
    assert 0.5 < found.mean_tau() <= 1
    occurring, shares = found.frequencies()
    assert shares.shape == (4, len(occurring))
    assert shares.sum(axis=1) == pytest.approx(np.ones(4))
    assert shares[3, occurring.tolist().index(4)] > 0.99
    assert found.rank_interval()[3].tolist() == [4, 4]
    assert np.array_equal(stability(rank_models(MODELS, VALUES, True), 500).ranks, found.ranks)


def test_equal_models_share_a_rank_in_every_resample() -> None:
    values = VALUES[:, [0, 1, 0]]
    found = stability(rank_models("xyz", values, True), 200)
    assert np.array_equal(found.ranks[:, 0], found.ranks[:, 2])
    assert set(np.unique(found.ranks)) <= {1, 1.5, 2, 2.5, 3}
    alike = stability(rank_models("xy", VALUES[:, [0, 0]], True, "test"), 20)
    assert math.isnan(alike.mean_tau())
    assert (alike.ranks == 1.5).all()


def test_patients_are_resampled() -> None:
    groups = [index // 2 for index in range(18)]
    by_patient = stability(rank_models(MODELS, VALUES, True, groups=groups), 100)
    doubled = stability(rank_models(MODELS, VALUES.reshape(9, 2, 4).mean(axis=1), True), 100)
    assert np.array_equal(by_patient.ranks, doubled.ranks)


def test_undefined_values() -> None:
    values = VALUES.copy()
    values[0, 1], values[1, 2] = math.nan, math.inf
    dropped = rank_models(MODELS, values, True, groups=list(range(18)))
    assert (dropped.cases, dropped.dropped, dropped.groups) == (16, 2, tuple(range(2, 18)))
    filled = rank_models(MODELS, values, True, undefined=0.0)
    assert (filled.cases, filled.dropped) == (18, 0)
    assert filled.scores[1] == pytest.approx(VALUES[1:, 1].sum() / 18)
    with pytest.raises(UserError, match="no case"):
        rank_models(MODELS, np.full((3, 4), math.nan), True)


def test_several_metrics() -> None:
    dice, seconds = np.array([[0.9, 0.8], [0.7, 0.7]]), np.array([[9.0, 8.0], [9.0, 7.0]])
    ranks = ranks_over_metrics([(dice, True), (seconds, False)])
    assert ranks.tolist() == [[1.5, 1.5], [1.75, 1.25]]
    assert rank_models("ab", ranks, False).ranks.tolist() == [2, 1]
    assert case_ranks(np.array([[math.nan, 0.1, 0.3]]), True).tolist() == [[3, 2, 1]]


def test_kendall_tau() -> None:
    full = np.array([1.0, 2.5, 2.5, 4])
    rankings = np.array([[1, 2, 3, 4], [4, 3, 2, 1], [2.5, 2.5, 2.5, 2.5], [1, 2.5, 2.5, 4]])
    expected = [stats.kendalltau(row, full).statistic for row in rankings]
    assert kendall_tau(rankings, full) == pytest.approx(expected, nan_ok=True)


def test_tables() -> None:
    models, cases, table = model_table({"x": {"2": 0.2, "1": 0.1}, "y": {"1": 0.3, "2": 0.4}})
    assert (models, cases, table.tolist()) == (("x", "y"), ("1", "2"), [[0.1, 0.3], [0.2, 0.4]])
    with pytest.raises(UserError, match="y lacks 1: 2"):
        model_table({"x": {"2": 0.2, "1": 0.1}, "y": {"1": 0.3}})
    with pytest.raises(UserError, match="at least two"):
        model_table({})


def test_refusals() -> None:
    with pytest.raises(UserError, match="rank-mean"):
        rank_models(MODELS, VALUES, True, "borda")
    with pytest.raises(ValueError, match="models"):
        rank_models("ab", VALUES, True)
    with pytest.raises(ValueError, match="groups"):
        rank_models(MODELS, VALUES, True, groups=["p"])
