"""nnU-Net's summary.json of an evaluation, as `nnUNetv2_find_best_configuration` and others read it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from nnunet_ext.evaluation_scripts.overlap import Overlap
from nnunet_ext.evaluation_scripts.results import Evaluation

_FIELDS = ("Dice", "IoU", "FP", "TP", "FN", "TN", "n_pred", "n_ref")


def nnunet_summary(evaluation: Evaluation, labels: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The content, from the voxel counts of every case; whatever the convention, by nnU-Net's rules.

    A missing prediction counts as an empty one; its file is null.

    Args:
        evaluation: what was found.
        labels: of dataset.json; beside regions, nnU-Net's key of a label given as a list, [2], is "(2,)". None: there
            is no such label.
    """
    keys = _keys(evaluation, labels or {})
    metrics = [
        {key: _metrics(Overlap(*case.extra["counts"][name])) for name, key in keys.items()} for case in evaluation.cases
    ]
    cases = [
        {"reference_file": case.reference, "prediction_file": case.predicted, "metrics": found}
        for case, found in zip(evaluation.cases, metrics, strict=True)
    ]
    mean = {
        key: {field: _nanmean([found[key][field] for found in metrics]) for field in _FIELDS} for key in keys.values()
    }
    foreground = {
        field: sum(values[field] for values in mean.values()) / len(mean) if mean else math.nan for field in _FIELDS
    }
    return {"foreground_mean": foreground, "mean": mean, "metric_per_case": cases}


def structures(evaluation: Evaluation) -> list[tuple[str, tuple[int, ...]]]:
    """Name and labels of all structures but the background."""
    return [(name, tuple(values)) for name, values in evaluation.structures.items() if tuple(values) != (0,)]


def _keys(evaluation: Evaluation, labels: Mapping[str, Any]) -> dict[str, str]:
    """Structure -> nnU-Net's key. Structures that a convention makes are known by their values."""
    lists = {name: tuple(map(int, value)) for name, value in labels.items() if isinstance(value, list | tuple)}
    has_regions = any(len(values) > 1 for values in lists.values())
    keys = {}
    for name, values in structures(evaluation):
        listed = name in lists if name in labels else values in lists.values()
        plain = len(values) == 1 and not (has_regions and listed)
        keys[name] = str(values[0]) if plain else str(values)
    return keys


def as_text(evaluation: Evaluation, labels: Mapping[str, Any] | None = None) -> str:
    """The file; NaN is written as nnU-Net does, as the bare word that JSON does not have."""
    return json.dumps(nnunet_summary(evaluation, labels), indent=4, sort_keys=True) + "\n"


def _metrics(overlap: Overlap) -> dict[str, float]:
    return {
        "Dice": overlap.dice,
        "IoU": overlap.jaccard,
        "FP": overlap.fp,
        "TP": overlap.tp,
        "FN": overlap.fn,
        "TN": overlap.tn,
        "n_pred": overlap.predicted,
        "n_ref": overlap.reference,
    }


def _nanmean(values: list[float]) -> float:
    defined = [value for value in values if not math.isnan(value)]
    return sum(defined) / len(defined) if defined else math.nan
