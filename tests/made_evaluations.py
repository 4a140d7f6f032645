"""Evaluations made up for tests, and label maps on the disk."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from nnunet_ext.evaluation_scripts.results import CaseResult, Evaluation

DICE = {"unit": "", "quantity": "dice", "higher_is_better": True, "tolerance": None}
HD95 = {"unit": "mm", "quantity": "hd95_pooled", "higher_is_better": False, "tolerance": None}
METRICS: dict[str, dict[str, Any]] = {"Dice": DICE, "HD95": HD95}
ML: dict[str, dict[str, Any]] = {
    name: {"unit": "ml", "quantity": name, "higher_is_better": True, "tolerance": None}
    for name in ("reference_ml", "predicted_ml")
}


def made_evaluation(
    table: Mapping[str, Mapping[str, Sequence[float]]],
    structures: Mapping[str, Sequence[int]] | None = None,
    metrics: Mapping[str, Mapping[str, Any]] = METRICS,
    **others: Any,
) -> Evaluation:
    """An evaluation.

    Args:
        table: case -> metric -> a value of each structure.
        structures: name -> labels; None: as many as there are values, named s1, s2, ...
        metrics: descriptions.
        others: fields of `Evaluation`.
    """
    first = next(iter(next(iter(table.values())).values()))
    named = structures or {f"s{place}": (place,) for place in range(1, len(first) + 1)}
    cases = tuple(
        CaseResult(
            case,
            f"references/{case}.nii.gz",
            f"predictions/{case}.nii.gz",
            {name: {metric: values[metric][place] for metric in metrics} for place, name in enumerate(named)},
        )
        for case, values in sorted(table.items())
    )
    fields = {"convention": "sound", "definition": "as written", "averaging": "structures", **others}
    return Evaluation(metrics=metrics, structures=named, cases=fields.pop("cases", cases), **fields)


def random_evaluation(seed: int, cases: int = 12, shift: float = 0.0, holes: bool = False) -> Evaluation:
    """Two structures, Dice and HD95; with `holes`, one HD95 is NaN."""
    generator = np.random.default_rng(seed)
    table = {
        f"case_{number:02d}": {
            "Dice": np.clip(generator.normal(0.8 + shift, 0.05, 2), 0, 1).tolist(),
            "HD95": np.abs(generator.normal(4 - 10 * shift, 1, 2)).tolist(),
        }
        for number in range(cases)
    }
    if holes:
        table["case_03"]["HD95"][1] = math.nan
    return made_evaluation(table, {"liver": (1,), "spleen": (2,)})


def write_nifti(path: Path, array: np.ndarray, affine: np.ndarray) -> Path:
    """Write an array (x, y, z)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, affine), path)
    return path
