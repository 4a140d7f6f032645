"""Dice per structure from nnU-Net's ``summary.json`` files."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CONVENTION = (
    "Dice as in nnU-Net's summary.json: 2 TP / (2 TP + FP + FN) over the voxels of a case (1 is perfect), mean over\n"
    "the cases; a case whose reference and prediction are both empty is left out. Last row: mean over the structures."
)


def read_summary(path: Path) -> dict[str, Any]:
    """A ``summary.json``."""
    summary: dict[str, Any] = json.loads(path.read_text())
    return summary


def structures(dataset_json: Path) -> dict[str, str]:
    """The foreground structures of a ``dataset.json``: label (as in a summary) to name."""
    labels: dict[str, int] = json.loads(dataset_json.read_text())["labels"]
    return {str(label): name for name, label in labels.items() if label != 0}


def dice_table(summaries: Mapping[str, Mapping[str, Any]], names: Mapping[str, str]) -> str:
    """A text table: a row for each structure and one for their mean, a column for each model.

    Args:
        summaries: column title to summary.
        names: see `structures`.
    """
    rows = [["", *summaries]]
    for label, name in names.items():
        rows.append([name, *(_number(summary["mean"][label]["Dice"]) for summary in summaries.values())])
    rows.append(["Mean", *(_number(summary["foreground_mean"]["Dice"]) for summary in summaries.values())])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        numbers = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), *numbers]))
    rule = "-" * len(lines[0])
    return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])


def case_dice(summary: Mapping[str, Any]) -> dict[str, float]:
    """Each case's mean Dice over the structures (NaN if all are empty), from the lowest to the highest."""
    result = {}
    for case in summary["metric_per_case"]:
        values = [metrics["Dice"] for metrics in case["metrics"].values() if not _missing(metrics["Dice"])]
        name = Path(case["reference_file"]).name.removesuffix(".nii.gz")
        result[name] = sum(values) / len(values) if values else math.nan
    return dict(sorted(result.items(), key=lambda item: (math.isnan(item[1]), item[1])))


def lowest_median_highest(dice: Mapping[str, float]) -> list[str]:
    """Up to three cases to show: the lowest, the middle and the highest of sorted values."""
    cases = list(dice)
    return list(dict.fromkeys((cases[0], cases[len(cases) // 2], cases[-1])))


def _missing(value: float | None) -> bool:
    return value is None or math.isnan(value)


def _number(value: float | None) -> str:
    return "none" if value is None or math.isnan(value) else f"{value:.3f}"
