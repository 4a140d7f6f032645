"""Ranking of models in the manner of challengeR, with its stability (specification evaluation, section 6).

Wiesenfarth et al., "Methods and open-source toolkit for analyzing and visualizing challenge results", 2021.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from nnunet_ext.errors import UserError
from nnunet_ext.evaluation_scripts.bootstrap import SEED, resampling_weights, weighted_mean, weighted_median
from nnunet_ext.evaluation_scripts.signed_ranks import resampled_p_greater, wilcoxon_p
from nnunet_ext.evaluation_scripts.statistics import holm, require_same

METHODS: dict[str, str] = {
    "mean": "mean over cases, then rank",
    "median": "median over cases, then rank",
    "rank-mean": "rank in each case, then the mean of the ranks",
    "rank-median": "rank in each case, then the median of the ranks",
    "test": "number of models that are significantly worse (one-sided Wilcoxon, Holm), then rank",
}
RESAMPLES = 1000
ALPHA = 0.05


@dataclass(frozen=True)
class Ranking:
    """Models in their order.

    Attributes:
        models: in the order given.
        method: see `METHODS`.
        higher_is_better: of the values.
        scores: of each model: a mean, a median, a mean or median rank, or a number of models.
        ranks: 1 is best; equals share the mean of their ranks.
        cases: used.
        dropped: cases without a finite value of every model.
        values: (cases, models) that were ranked.
        groups: of these cases, where patients have several.
        alpha: of the tests.
    """

    models: tuple[str, ...]
    method: str
    higher_is_better: bool
    scores: np.ndarray
    ranks: np.ndarray
    cases: int
    dropped: int
    values: np.ndarray
    groups: tuple[Hashable, ...] | None = None
    alpha: float = ALPHA

    def order(self) -> list[tuple[str, float, float]]:
        """(model, score, rank) from the best to the worst."""
        rows = zip(self.models, self.scores.tolist(), self.ranks.tolist(), strict=True)
        return sorted(rows, key=lambda row: (row[2], row[0]))


@dataclass(frozen=True)
class Stability:
    """How a ranking changes with the cases.

    Attributes:
        ranks: (resamples, models) in resamples of the cases.
        tau: (resamples,) Kendall's tau-b between each of these rankings and the full one; NaN where one of them has
            all models alike.
        seed: of the resamples.
    """

    ranks: np.ndarray
    tau: np.ndarray
    seed: int

    def mean_tau(self) -> float:
        """Mean of Kendall's tau; NaN if it is defined nowhere."""
        defined = self.tau[~np.isnan(self.tau)]
        return float(defined.mean()) if len(defined) else math.nan

    def rank_interval(self, level: float = 0.95) -> np.ndarray:
        """(models, 2): between which ranks the middle share of the resamples lies."""
        return np.percentile(self.ranks, [50 * (1 - level), 50 * (1 + level)], axis=0).T

    def frequencies(self) -> tuple[np.ndarray, np.ndarray]:
        """How often each model has each rank.

        Returns:
            The ranks that occur, half ones of equals among them, ascending; and (models, ranks) shares of resamples.
        """
        occurring = np.unique(self.ranks)
        return occurring, (self.ranks[:, :, None] == occurring).mean(axis=0)


def model_table(
    values: Mapping[str, Mapping[str, float]],
) -> tuple[tuple[str, ...], tuple[str, ...], np.ndarray]:
    """Models' values by case as a table.

    Args:
        values: model -> case -> value.

    Returns:
        Models in the order given, cases sorted, and (cases, models).

    Raises:
        UserError: no model, or other cases of one than of another.
    """
    if not values:
        raise UserError("no model to rank; give at least two")
    models = tuple(values)
    for model in models[1:]:
        require_same(values[models[0]], values[model], (models[0], model))
    cases = tuple(sorted(values[models[0]]))
    table = np.array([[values[model][case] for model in models] for case in cases], float)
    return models, cases, table.reshape(len(cases), len(models))


def rank_models(
    models: Sequence[str],
    values: np.ndarray,
    higher_is_better: bool,
    method: str = "mean",
    undefined: float | None = None,
    groups: Sequence[Hashable] | None = None,
    alpha: float = ALPHA,
) -> Ranking:
    """Rank models by one metric.

    Args:
        models: names.
        values: (cases, models).
        higher_is_better: property of the metric.
        method: one of `METHODS`.
        undefined: takes the place of NaN and infinite values; None drops the cases in which any model has one.
        groups: the patient of each case, where patients have several; resampled as a whole by `stability`.
        alpha: level of the tests.

    Raises:
        UserError: an unknown method, or no case left.
        ValueError: a table that does not fit the models or the groups.
    """
    if method not in METHODS:
        raise UserError(f"no ranking method {method!r}; there are {', '.join(METHODS)}")
    if values.ndim != 2 or values.shape[1] != len(models):
        raise ValueError(f"values of {len(models)} models are needed as (cases, models); got {values.shape}")
    if groups is not None and len(groups) != len(values):
        raise ValueError(f"{len(values)} cases, but {len(groups)} groups")
    finite = np.isfinite(values)
    used = finite.all(axis=1) if undefined is None else np.ones(len(values), bool)
    if not used.any():
        raise UserError("no case has a finite value of every model, so there is nothing to rank")
    kept = values[used] if undefined is None else np.where(finite, values, undefined)
    members = None if groups is None else tuple(group for group, use in zip(groups, used, strict=True) if use)
    scores, upwards = _full_scores(kept, higher_is_better, method, alpha)
    ranks = _ranks(scores[None], upwards)[0]
    dropped = int((~used).sum())
    return Ranking(tuple(models), method, higher_is_better, scores, ranks, len(kept), dropped, kept, members, alpha)


def stability(ranking: Ranking, resamples: int = RESAMPLES, seed: int = SEED) -> Stability:
    """Rank again in resamples of the cases (of the patients, where they have several).

    Tests in resamples use the normal approximation: drawing a case twice makes ties.

    Args:
        ranking: with all cases.
        resamples: how many.
        seed: of the generator.
    """
    units: Sequence[Hashable] | int = ranking.cases if ranking.groups is None else ranking.groups
    ranks = np.concatenate(
        [_resampled_ranks(ranking, weights) for weights in resampling_weights(units, resamples, seed)]
    )
    return Stability(ranks, kendall_tau(ranks, ranking.ranks), seed)


def case_ranks(values: np.ndarray, higher_is_better: bool) -> np.ndarray:
    """The rank of each model in each case, 1 the best; equals share the mean of their ranks.

    Args:
        values: (cases, models); NaN ranks last.
        higher_is_better: property of the metric.
    """
    signed = -values if higher_is_better else values
    ranks: np.ndarray = stats.rankdata(np.where(np.isnan(signed), math.inf, signed), axis=1)
    return ranks


def ranks_over_metrics(metrics: Sequence[tuple[np.ndarray, bool]]) -> np.ndarray:
    """FLARE's way with several metrics: the mean of each case's ranks over all metrics.

    Args:
        metrics: (cases, models) of each metric, and whether higher is better.

    Returns:
        (cases, models), to be ranked by `rank_models` with the method "mean", lower is better.
    """
    return np.mean([case_ranks(values, higher_is_better) for values, higher_is_better in metrics], axis=0)


def kendall_tau(ranks: np.ndarray, full: np.ndarray) -> np.ndarray:
    """Kendall's tau-b between each of several rankings and one.

    Args:
        ranks: (resamples, models).
        full: (models,).

    Returns:
        (resamples,); NaN where all models of either share a rank.
    """
    first, second = np.triu_indices(len(full), 1)
    signs = np.sign(ranks[:, first] - ranks[:, second])
    wanted = np.sign(full[first] - full[second])
    pairs = np.sqrt((signs**2).sum(axis=1) * (wanted**2).sum())
    return np.divide(signs @ wanted, pairs, out=np.full(len(ranks), math.nan), where=pairs > 0)


def significantly_better(values: np.ndarray, higher_is_better: bool, alpha: float = ALPHA) -> np.ndarray:
    """Which model is significantly better than which: one-sided Wilcoxon tests of all ordered pairs, Holm-corrected.

    Args:
        values: (cases, models), finite.
        higher_is_better: property of the metric.
        alpha: level.

    Returns:
        (models, models): whether the one of the row is better than the one of the column.
    """
    signed = values if higher_is_better else -values
    k = values.shape[1]
    pairs = [(one, other) for one in range(k) for other in range(k) if one != other]
    p = [wilcoxon_p(signed[:, one] - signed[:, other], alternative="greater")[0] for one, other in pairs]
    better = np.zeros((k, k), bool)
    for (one, other), adjusted in zip(pairs, holm(p), strict=True):
        better[one, other] = adjusted < alpha
    return better


def _full_scores(values: np.ndarray, higher_is_better: bool, method: str, alpha: float) -> tuple[np.ndarray, bool]:
    """Scores of the models, and whether higher ones are better."""
    if method == "test":
        return significantly_better(values, higher_is_better, alpha).sum(axis=1).astype(float), True
    return _aggregated(values, higher_is_better, method, np.ones((1, len(values)), int))[0], _upwards(
        higher_is_better, method
    )


def _upwards(higher_is_better: bool, method: str) -> bool:
    return method == "test" or (higher_is_better and not method.startswith("rank-"))


def _aggregated(values: np.ndarray, higher_is_better: bool, method: str, weights: np.ndarray) -> np.ndarray:
    """(resamples, models)."""
    table = case_ranks(values, higher_is_better) if method.startswith("rank-") else values
    return (weighted_median if method.endswith("median") else weighted_mean)(table, weights)


def _resampled_ranks(ranking: Ranking, weights: np.ndarray) -> np.ndarray:
    """(resamples, models)."""
    if ranking.method == "test":
        scores = _resampled_wins(ranking, weights)
    else:
        scores = _aggregated(ranking.values, ranking.higher_is_better, ranking.method, weights)
    return _ranks(scores, _upwards(ranking.higher_is_better, ranking.method))


def _resampled_wins(ranking: Ranking, weights: np.ndarray) -> np.ndarray:
    """How many models each significantly beats in each resample (resamples, models)."""
    signed = ranking.values if ranking.higher_is_better else -ranking.values
    k = len(ranking.models)
    pairs = [(one, other) for one in range(k) for other in range(k) if one != other]
    wins = np.zeros((len(weights), k))
    if not pairs:
        return wins
    p = np.stack([resampled_p_greater(signed[:, one] - signed[:, other], weights) for one, other in pairs], axis=1)
    ascending = np.sort(p, axis=1) * np.arange(len(pairs), 0, -1)
    rejected = np.logical_and.accumulate(ascending < ranking.alpha, axis=1).sum(axis=1)
    positions = np.argsort(np.argsort(p, axis=1, kind="stable"), axis=1)
    for column, (one, _) in enumerate(pairs):
        wins[:, one] += positions[:, column] < rejected
    return wins


def _ranks(scores: np.ndarray, upwards: bool) -> np.ndarray:
    """Ranks of scores (resamples, models); differences in rounding alone are none."""
    largest = float(np.abs(scores).max(initial=0))
    rounded = np.round(scores / largest, 12) if largest else scores
    ranks: np.ndarray = stats.rankdata(-rounded if upwards else rounded, axis=1)
    return ranks
