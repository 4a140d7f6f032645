"""nnU-Net's summary.json of an evaluation, as `nnUNetv2_find_best_configuration` and others read it."""

from __future__ import annotations

import json
import math
from typing import Any

from nnunet_ext.evaluation_scripts.overlap import Overlap
from nnunet_ext.evaluation_scripts.results import Evaluation

_FIELDS = ("Dice", "IoU", "FP", "TP", "FN", "TN", "n_pred", "n_ref")


def nnunet_summary(evaluation: Evaluation) -> dict[str, Any]:
    """The content, from the voxel counts of every case; whatever the convention, by nnU-Net's rules.

    A missing prediction counts as an empty one; its file is null.
    """
    keys = {name: str(values[0]) if len(values) == 1 else str(tuple(values)) for name, values in structures(evaluation)}
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


def as_text(evaluation: Evaluation) -> str:
    """The file; NaN is written as nnU-Net does, as the bare word that JSON does not have."""
    return json.dumps(nnunet_summary(evaluation), indent=4, sort_keys=True) + "\n"


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
