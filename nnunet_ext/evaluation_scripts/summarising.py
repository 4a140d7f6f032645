"""The numbers of an evaluation over its cases: means with intervals, spread, what was left out, the worst cases."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nnunet_ext.evaluation_scripts import bootstrap
from nnunet_ext.evaluation_scripts.bootstrap import mean_of_column_means, percentile_bounds, weighted_mean
from nnunet_ext.evaluation_scripts.results import Evaluation, mean

WORST = 3
NO_INTERVAL = (math.nan, math.nan)


def summarise(
    evaluation: Evaluation, patients: Mapping[str, str] | None = None, resampled: str = "cases", worst: int = WORST
) -> dict[str, Any]:
    """Sum up.

    Args:
        evaluation: of at least one case.
        patients: case -> patient, where patients have several cases and are resampled as a whole.
        resampled: what is resampled, in words.
        worst: how many cases to name.

    Returns:
        JSON values but for NaN and infinities: "structures" (metric -> structure -> mean, interval, std with ddof 1,
        median, q1, q3, min, max, n, n_excluded, worst), "overall" (metric -> mean, interval), "empty_masks" (metric ->
        how many values a rule decided, and how many are left out), "worst" (metric -> case, structure, value),
        "missing", "bootstrap".
    """
    groups = None if patients is None else [patients[case.case] for case in evaluation.cases]
    return {
        "bootstrap": {
            "level": bootstrap.LEVEL,
            "method": "percentile",
            "resamples": bootstrap.RESAMPLES,
            "seed": bootstrap.SEED,
            "resampled": resampled,
            "units": len(evaluation.cases) if groups is None else len(set(groups)),
        },
        "structures": _structures(evaluation, groups),
        "overall": {metric: _overall(evaluation, metric, groups) for metric in evaluation.metrics},
        "empty_masks": {metric: _empty_masks(evaluation, metric) for metric in evaluation.metrics},
        "worst": {metric: worst_cases(evaluation, metric, worst) for metric in evaluation.metrics},
        "missing": evaluation.missing(),
    }


def _structures(evaluation: Evaluation, groups: Sequence[str] | None) -> dict[str, dict[str, Any]]:
    """Metric -> structure -> numbers."""
    table = np.concatenate([evaluation.table(metric) for metric in evaluation.metrics], axis=1)
    columns = zip(table.T, column_intervals(table, groups), strict=True)
    return {
        metric: {name: _column(evaluation, metric, *next(columns)) for name in evaluation.structures}
        for metric in evaluation.metrics
    }


def _column(evaluation: Evaluation, metric: str, column: np.ndarray, bounds: tuple[float, float]) -> dict[str, Any]:
    defined = column[~np.isnan(column)]
    return {
        "mean": mean(column),
        "interval": list(bounds if np.isfinite(defined).all() else NO_INTERVAL),
        **_spread(defined),
        "n": len(defined),
        "n_excluded": len(column) - len(defined),
        "worst": _worst_of(evaluation, metric, column),
    }


def _spread(values: np.ndarray) -> dict[str, float]:
    names = ("std", "median", "q1", "q3", "min", "max")
    if not len(values):
        return dict.fromkeys(names, math.nan)
    if np.isinf(values).any():
        return {**dict.fromkeys(names, math.nan), "min": float(values.min()), "max": float(values.max())}
    std = float(values.std(ddof=1)) if len(values) > 1 else math.nan
    q1, median, q3 = (float(value) for value in np.percentile(values, [25, 50, 75]))
    return dict(zip(names, (std, median, q1, q3, float(values.min()), float(values.max())), strict=True))


def column_intervals(table: np.ndarray, groups: Sequence[str] | None = None) -> list[tuple[float, float]]:
    """The bootstrap interval of the mean of each column.

    The same number of independent cases has the same resamples, so columns share them, and these are the intervals of
    `bootstrap.bootstrap`.

    Args:
        table: (cases, columns); NaN and infinite values are left out.
        groups: of each case; None: every case is its own.
    """
    finite = np.isfinite(table)
    found = [NO_INTERVAL] * table.shape[1]
    alike: dict[object, list[int]] = {}
    for place, used in enumerate(finite.T):
        alike.setdefault(int(used.sum()) if groups is None else used.tobytes(), []).append(place)
    for places in alike.values():
        used = finite[:, places[0]]
        members = list(range(int(used.sum()))) if groups is None else np.array(groups)[used].tolist()
        if len(set(members)) < 2:
            continue
        values = np.stack([table[finite[:, place], place] for place in places], axis=1)
        means = np.concatenate([weighted_mean(values, weights) for weights in bootstrap.resampling_weights(members)])
        for column, place in enumerate(places):
            found[place] = percentile_bounds(means[:, column])
    return found


def _overall(evaluation: Evaluation, metric: str, groups: Sequence[str] | None) -> dict[str, Any]:
    table = evaluation.table(metric)
    average = evaluation.mean(metric)
    if not math.isfinite(average):
        bounds = NO_INTERVAL
    elif evaluation.averaging == "cases":
        found = bootstrap.bootstrap([mean(row) for row in table], groups)
        bounds = found.lower, found.upper
    else:
        found = bootstrap.bootstrap(table, groups, statistic=mean_of_column_means)
        bounds = found.lower, found.upper
    return {"mean": average, "interval": list(bounds)}


def _empty_masks(evaluation: Evaluation, metric: str) -> dict[str, Any]:
    """How many values an empty mask decided by the convention's rule, by state; how many are undefined."""
    rules = evaluation.metrics[metric].get("empty", {})
    decided: dict[str, int] = {}
    undefined = 0
    for case in evaluation.cases:
        for name in evaluation.structures:
            state = case.states.get(name, "")
            undefined += math.isnan(case.values[name][metric])
            if state in rules and rules[state] is not None and not math.isnan(rules[state]):
                decided[state] = decided.get(state, 0) + 1
    return {
        "decided": decided,
        "values": {state: rules[state] for state in decided},
        "undefined": undefined,
        "of": len(evaluation.cases) * len(evaluation.structures),
    }


def worst_cases(evaluation: Evaluation, metric: str, number: int = WORST) -> list[dict[str, Any]]:
    """The cases with the worst values, each with its worst structure; none for metrics of which no value is worse."""
    if not evaluation.metrics[metric].get("has_better", True):
        return []
    sign = 1 if evaluation.metrics[metric]["higher_is_better"] else -1
    found: list[tuple[float, str, str]] = []
    for case in evaluation.cases:
        values = {name: sign * case.values[name][metric] for name in evaluation.structures}
        defined = {name: value for name, value in values.items() if not math.isnan(value)}
        if defined:
            name = min(defined, key=lambda structure: defined[structure])
            found.append((defined[name], case.case, name))
    return [{"case": case, "structure": name, "value": sign * value} for value, case, name in sorted(found)[:number]]


def _worst_of(evaluation: Evaluation, metric: str, column: np.ndarray) -> str | None:
    """The case with the worst value of a structure."""
    defined = np.flatnonzero(~np.isnan(column))
    if not len(defined) or not evaluation.metrics[metric].get("has_better", True):
        return None
    values = column[defined] if evaluation.metrics[metric]["higher_is_better"] else -column[defined]
    return evaluation.cases[int(defined[int(np.argmin(values))])].case
