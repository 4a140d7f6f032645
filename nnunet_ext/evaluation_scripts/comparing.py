"""Two models by paired tests, or several by rankings with their stability (specification evaluation, section 6)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from nnunet_ext.errors import UserError
from nnunet_ext.evaluation_scripts.compared_models import Models
from nnunet_ext.evaluation_scripts.evaluating import versions
from nnunet_ext.evaluation_scripts.ranking import METHODS, Ranking, Stability, rank_models, stability
from nnunet_ext.evaluation_scripts.results import encoded
from nnunet_ext.evaluation_scripts.statistics import (
    DEFAULT,
    PairedComparison,
    PairedSettings,
    compare_paired,
    compare_structures,
)

FORMAT = 1
OVERALL = "mean of structures"
RANKINGS = ("mean", "rank-mean", "test")
"""Of `ranking.METHODS`: aggregate then rank, rank then aggregate, and by tests."""


@dataclass(frozen=True)
class Pair:
    """Two models on one structure, or on the mean of all.

    Attributes:
        means: of the first and the second model, over the pairs that are used.
        found: the tests.
        only_first: cases of which only the first model has a finite value; they are dropped.
        only_second: likewise.
        better: the model with the better mean, if Holm's correction of Wilcoxon's test leaves p below 0.05; else "".
    """

    means: tuple[float, float]
    found: PairedComparison
    only_first: int
    only_second: int
    better: str


@dataclass(frozen=True)
class Ranked:
    """Several models on one structure, or on the mean of all.

    Attributes:
        ranking: by one method.
        stability: in resamples of the cases.
    """

    ranking: Ranking
    stability: Stability


def overall_values(values: np.ndarray) -> np.ndarray:
    """Each case's mean over the structures that are finite for every model: the same ones of each.

    Args:
        values: (models, cases, structures).

    Returns:
        (models, cases); NaN where there is no such structure.
    """
    used = np.isfinite(values).all(axis=0)
    counts = used.sum(axis=1)
    sums = np.where(used, values, 0.0).sum(axis=2)
    means: np.ndarray = np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)
    return means


def compare_two(
    models: Models, groups: Mapping[str, str] | None = None, settings: PairedSettings = DEFAULT
) -> dict[str, dict[str, Pair]]:
    """Paired differences, the first model less the second.

    Args:
        models: two of them.
        groups: case -> patient, where patients have several cases.
        settings: of the tests and the bootstrap.

    Returns:
        Metric -> structure -> what was found, the mean of structures last (`OVERALL`; only where there are several).
        Holm's correction is over the structures of a metric; the mean of structures is a test of its own.
    """
    one, other = models.evaluations
    found: dict[str, dict[str, Pair]] = {}
    for metric in models.metrics:
        values = models.values(metric)
        named = [
            {
                name: dict(zip(models.cases, table[:, place], strict=True))
                for place, name in enumerate(models.first.structures)
            }
            for table in values
        ]
        tested = compare_structures(named[0], named[1], groups, (one, other), settings)
        higher = bool(models.first.metrics[metric]["higher_is_better"])
        found[metric] = {
            name: _pair(values[:, :, place], tested[name], (one, other), higher)
            for place, name in enumerate(models.first.structures)
        }
        if len(tested) > 1:
            overall = overall_values(values)
            members = None if groups is None else [groups[case] for case in models.cases]
            single = compare_paired(overall[0], overall[1], members, settings)
            single = replace(single, wilcoxon_holm=single.wilcoxon_p, permutation_holm=single.permutation_p)
            found[metric][OVERALL] = _pair(overall, single, (one, other), higher)
    return found


def _pair(values: np.ndarray, found: PairedComparison, names: tuple[str, str], higher: bool) -> Pair:
    """Args: values (models, cases)."""
    finite = np.isfinite(values)
    used = values[:, finite.all(axis=0)]
    means = (float(used[0].mean()), float(used[1].mean())) if used.size else (np.nan, np.nan)
    significant = found.wilcoxon_holm < 0.05 and found.mean.estimate != 0
    better = names[0] if (found.mean.estimate > 0) == higher else names[1]
    return Pair(
        means,
        found,
        int((finite[0] & ~finite[1]).sum()),
        int((finite[1] & ~finite[0]).sum()),
        better if significant else "",
    )


def rank_all(models: Models, groups: Mapping[str, str] | None = None) -> dict[str, dict[str, dict[str, Ranked]]]:
    """Rankings by every method of `RANKINGS`.

    Args:
        models: two or more.
        groups: case -> patient, where patients have several cases.

    Returns:
        Metric -> structure, the mean of structures first (`OVERALL`; only where there are several) -> method ->
        ranking. A structure without a case that is finite for all models is left out.

    Raises:
        UserError: there is no such case for any structure of a metric.
    """
    members = None if groups is None else [groups[case] for case in models.cases]
    found: dict[str, dict[str, dict[str, Ranked]]] = {}
    for metric in models.metrics:
        values = models.values(metric)
        tables = {name: values[:, :, place].T for place, name in enumerate(models.first.structures)}
        if len(tables) > 1:
            tables = {OVERALL: overall_values(values).T, **tables}
        higher = bool(models.first.metrics[metric]["higher_is_better"])
        found[metric] = {}
        for name, table in tables.items():
            if np.isfinite(table).all(axis=1).any():
                rankings = {
                    method: rank_models(list(models.evaluations), table, higher, method, groups=members)
                    for method in RANKINGS
                }
                found[metric][name] = {method: Ranked(one, stability(one)) for method, one in rankings.items()}
        if not found[metric]:
            raise UserError(f"{metric}: no case has a finite value of every model, so there is nothing to rank")
    return found


def as_json(
    models: Models,
    pairs: Mapping[str, Mapping[str, Pair]],
    rankings: Mapping[str, Mapping[str, Mapping[str, Ranked]]],
    resampled: str,
    command: list[str],
) -> dict[str, Any]:
    """Everything that was found, as JSON values.

    Args:
        models: that were compared.
        pairs: of two models; else empty.
        rankings: of several; else empty.
        resampled: what is resampled and tested, in words.
        command: the command line.
    """
    first = models.first
    content = {
        "format": FORMAT,
        "convention": first.convention,
        "definition": first.definition,
        "models": list(models.evaluations),
        "metrics": {name: first.metrics[name] for name in models.metrics},
        "structures": first.structures,
        "cases": models.cases,
        "units": resampled,
        "notices": models.notices,
        "paired": {metric: {name: asdict(pair) for name, pair in rows.items()} for metric, rows in pairs.items()},
        "rankings": {
            metric: {
                name: {method: _ranked_json(ranked) for method, ranked in methods.items()}
                for name, methods in rows.items()
            }
            for metric, rows in rankings.items()
        },
        "command": command,
        "versions": versions(),
    }
    found: dict[str, Any] = encoded(content)
    return found


def _ranked_json(ranked: Ranked) -> dict[str, Any]:
    ranking, found = ranked.ranking, ranked.stability
    ranks, shares = found.frequencies()
    intervals = found.rank_interval()
    place = {model: number for number, model in enumerate(ranking.models)}
    return {
        "method": METHODS[ranking.method],
        "cases": ranking.cases,
        "dropped": ranking.dropped,
        "order": [
            {
                "model": model,
                "score": score,
                "rank": rank,
                "rank_interval": intervals[place[model]],
                "frequencies": dict(zip(map(str, ranks.tolist()), shares[place[model]], strict=True)),
            }
            for model, score, rank in ranking.order()
        ],
        "resamples": len(found.ranks),
        "seed": found.seed,
        "kendall_tau_mean": found.mean_tau(),
        "kendall_tau_interval": np.nanpercentile(found.tau, [2.5, 97.5]) if np.isfinite(found.tau).any() else None,
    }
