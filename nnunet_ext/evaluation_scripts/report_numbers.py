"""What a report says of an evaluation beside its summary: which cases to look at, which metrics are volumes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from nnunet_ext.evaluation_scripts.results import Evaluation, mean


def case_means(evaluation: Evaluation, metric: str) -> np.ndarray:
    """Mean over the structures of each case (cases,); NaN where none is defined."""
    return np.array([mean(row) for row in evaluation.table(metric)], float)


def cases_to_draw(evaluation: Evaluation, number: int) -> list[int]:
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
    """A metric's name with tolerance and unit, short, such as "HD95, mm" or "NSD at 2 mm"."""
    tolerance = about.get("tolerance")
    if isinstance(tolerance, Mapping):
        return f"{metric}, tolerance by structure"
    if tolerance is not None:
        return metric if f"{float(tolerance):g}" in metric else f"{metric} at {float(tolerance):g} mm"
    return f"{metric}, {about['unit']}" if about.get("unit") else metric
