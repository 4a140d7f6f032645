"""The numbers of a report: means with their intervals, what was left out, and which cases are worst."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nnunet_ext.evaluation_scripts.bootstrap import Interval, bootstrap, mean_of_column_means
from nnunet_ext.evaluation_scripts.results import Evaluation, mean


@dataclass(frozen=True)
class Summary:
    """A metric of one structure, or of all.

    Attributes:
        mean: as the convention averages; infinite if a value is.
        interval: of the finite values.
        n: values that are defined.
        excluded: values that are NaN.
    """

    mean: float
    interval: Interval
    n: int
    excluded: int

    def bounds(self) -> tuple[float, float]:
        """Of the confidence interval; NaN where the mean is infinite, of which the interval knows nothing."""
        if math.isinf(self.mean):
            return math.nan, math.nan
        return self.interval.lower, self.interval.upper


def structure_summary(evaluation: Evaluation, metric: str, groups: Sequence[Hashable] | None = None) -> list[Summary]:
    """Of each structure, in their order.

    Args:
        evaluation: with at least one case.
        metric: its name.
        groups: the patient of each case, where patients have several.
    """
    return [
        _summary(mean(column), bootstrap(column, groups), column)
        for column in np.moveaxis(evaluation.table(metric), 1, 0)
    ]


def overall_summary(evaluation: Evaluation, metric: str, groups: Sequence[Hashable] | None = None) -> Summary:
    """Of all structures, averaged as the convention says; `n` and `excluded` count values, not cases."""
    table = evaluation.table(metric)
    if evaluation.averaging == "cases":
        interval = bootstrap(case_means(evaluation, metric), groups)
    else:
        interval = bootstrap(table, groups, statistic=mean_of_column_means)
    return _summary(evaluation.mean(metric), interval, table)


def case_means(evaluation: Evaluation, metric: str) -> np.ndarray:
    """Mean over the structures of each case (cases,); NaN where none is defined."""
    return np.array([mean(row) for row in evaluation.table(metric)], float)


def worst_cases(evaluation: Evaluation, number: int) -> list[int]:
    """Places of the cases with the worst mean of the first metric, the worst first.

    Cases without a prediction, or without a defined value, are not among them.
    """
    metric = next(iter(evaluation.metrics))
    higher = bool(evaluation.metrics[metric]["higher_is_better"])
    means = case_means(evaluation, metric)
    drawn = [
        place
        for place, case in enumerate(evaluation.cases)
        if case.predicted is not None and not math.isnan(means[place])
    ]
    return sorted(drawn, key=lambda place: float(means[place]) if higher else -float(means[place]))[:number]


def volume_metrics(evaluation: Evaluation) -> tuple[str, str] | None:
    """The names of the metrics that hold the reference's and the prediction's volumes; None without them."""
    named = {description["quantity"]: name for name, description in evaluation.metrics.items()}
    return (named["reference_ml"], named["predicted_ml"]) if {"reference_ml", "predicted_ml"} <= set(named) else None


def title_of(metric: str, about: Mapping[str, Any]) -> str:
    """A metric's name with tolerance and unit, such as "HD95, mm" or "NSD at 2 mm"."""
    tolerance = about.get("tolerance")
    if isinstance(tolerance, Mapping):
        return f"{metric}, tolerance by structure"
    if tolerance is not None:
        return f"{metric} at {float(tolerance):g} mm"
    return f"{metric}, {about['unit']}" if about.get("unit") else metric


def shown(value: float, unit: str = "") -> str:
    """A value for people: three decimals of a ratio, two of a length or a volume."""
    if math.isnan(value):
        return "-"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    text = f"{value:.{2 if unit else 3}f}"
    return text if float(text) else text.replace("-", "")


def _summary(average: float, interval: Interval, values: np.ndarray) -> Summary:
    undefined = int(np.isnan(values).sum())
    return Summary(average, interval, values.size - undefined, undefined)
