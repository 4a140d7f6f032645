"""Lesions matched one to one: the values of the panoptica-based BraTS package."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nnunet_ext.evaluation_scripts.matched_lesions import matched_lesions

METRICS = Path(__file__).parents[1] / "golden" / "metrics"
EXPECTED: dict[str, Any] = json.loads((METRICS / "brats_lesionwise.json").read_text())["cases"]


@pytest.mark.parametrize("case", ["case_04_regions", "case_06_lesions"])
def test_values_of_the_package(case: str) -> None:
    with np.load(METRICS / f"{case}.npz") as stored:
        values = matched_lesions(stored["gt"], stored["pred"], (1, 1, 1))
    _compare(values, case)


@pytest.mark.parametrize("case", ["both_empty", "gt_empty_pred_box_343", "pred_empty_gt_box_343"])
def test_empties(case: str) -> None:
    box, empty = np.zeros((2, 40, 40, 40), np.uint8)
    box[5:12, 5:12, 5:12] = 3
    reference = box if case.startswith("pred_empty") else empty
    _compare(matched_lesions(reference, box if case.startswith("gt_empty") else empty, (1, 1, 1)), case)


def _compare(values: dict[str, dict[str, float]], case: str) -> None:
    for region, expected in EXPECTED[case]["brats2026_panoptica_gli"].items():
        wanted = {"prec": math.nan, "rec": math.nan, **{key: float(value) for key, value in expected.items()}}
        assert values[region] == pytest.approx(wanted, abs=1e-9, nan_ok=True), region


def test_the_best_sum_is_matched_not_the_best_pair() -> None:
    """The pair of the highest Dice, 30 / 43, would leave nothing for the others, whose values add up to more."""
    reference, predicted = np.zeros((2, 5, 5, 40), np.uint8)
    reference[:, :, 10:30] = reference[:, :, 0:8] = 1
    predicted[:, :, 2:25] = predicted[:, :, 26:31] = 1
    values = matched_lesions(reference, predicted, (1, 1, 1), {"lesion": (1,)})["lesion"]
    assert (values["tp"], values["fp"], values["fn"]) == (2, 0, 0)
    assert values["sq_dsc"] == pytest.approx((8 / 25 + 12 / 31) / 2)
