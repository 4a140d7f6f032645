"""The golden metric fixtures, and the conventions' numbers for every label of every case."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden_adapter import run_lesionwise, run_metrics

from nnunet_ext.evaluation_scripts.conventions import CONVENTIONS
from nnunet_ext.evaluation_scripts.metrics import CasePair
from nnunet_ext.evaluation_scripts.quantities import evaluate

FOLDER = Path(__file__).parent / "golden" / "metrics"
CASES = sorted(path.stem for path in FOLDER.glob("case_*.json"))
#: The fixtures' name of a convention -> ours, and its metrics in the fixtures' order.
NAMES = {
    "nnformer": ("nnformer", ("Dice", "HD95")),
    "transunet": ("transunet", ("Dice", "HD95")),
    "monai_ignore_empty": ("monai", ("Dice",)),
    "nnunet": ("nnunet", ("Dice",)),
    "flare22_dsc": ("flare22", ("DSC",)),
}


def number(value: Any) -> Any:
    return {"nan": math.nan, "inf": math.inf}.get(value, value) if isinstance(value, str) else value


def leaves(expected: Any, found: Any, where: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Every value of the fixture and ours."""
    if isinstance(expected, dict):
        for key, value in expected.items():
            yield from leaves(value, found[key], f"{where}/{key}")
    else:
        yield where, number(expected), found


def pair_of(case: str) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    arrays = np.load(FOLDER / f"{case}.npz")
    content: dict[str, Any] = json.loads((FOLDER / f"{case}.json").read_text())
    return content, arrays["gt"], arrays["pred"]


def check(expected: Any, found: Any) -> int:
    count = 0
    for where, value, ours in leaves(expected, found):
        if isinstance(value, float):
            assert ours == pytest.approx(value, rel=1e-9, abs=1e-12, nan_ok=True), where
        else:
            assert ours == value, where
        count += 1
    return count


@pytest.mark.parametrize("case", CASES)
def test_values_of_medpy_and_surface_distance(case: str) -> None:
    content, gt, pred = pair_of(case)
    regions = {name: entry["labels"] for name, entry in content.get("per_region", {}).items()}
    spec = {"spacing_mm": content["spacing_mm"], "labels": content["labels"], "regions": regions}
    found = run_metrics(spec, gt, pred)
    assert check(content["per_label"], found["per_label"]) > 50
    check(content.get("per_region", {}), found["per_region"])


def test_lesionwise_values_of_brats_2023() -> None:
    content = json.loads((FOLDER / "brats_lesionwise.json").read_text())
    empty = np.zeros((40, 40, 40), np.uint8)
    box = empty.copy()
    box[5:12, 5:12, 5:12] = 3
    synthetic = {
        "both_empty": (empty, empty),
        "gt_empty_pred_box_343": (empty, box),
        "pred_empty_gt_box_343": (box, empty),
    }
    for case, expected in content["cases"].items():
        gt, pred = synthetic[case] if case in synthetic else pair_of(case)[1:]
        assert check(expected["brats2023_lesionwise"], run_lesionwise({"spacing_mm": [1, 1, 1]}, gt, pred)) == 60


@pytest.mark.parametrize("theirs", NAMES)
def test_every_empty_mask_counts_as_the_convention_says(theirs: str) -> None:
    content = json.loads((FOLDER / "conventions.json").read_text())
    name, metrics = NAMES[theirs]
    compared = 0
    for case, labels in content["cases"].items():
        described, gt, pred = pair_of(case)
        pair = CasePair(gt, pred, described["spacing_mm"])
        wanted = tuple(metric for metric in CONVENTIONS[name].metrics if metric.name in metrics)
        for label, values in labels.items():
            found = evaluate(pair, label, (int(label),), wanted)
            for metric, value in zip(metrics, values[theirs], strict=True):
                assert found[metric] == pytest.approx(number(value), rel=1e-9, nan_ok=True), (case, label, metric)
                compared += 1
    assert compared >= 20 * len(metrics)


def test_brats_2020_has_its_penalty_and_one_millimetre() -> None:
    content = json.loads((FOLDER / "conventions.json").read_text())
    wanted = tuple(metric for metric in CONVENTIONS["brats2020"].metrics if metric.name in ("Dice", "HD95"))
    for case, labels in content["cases"].items():
        _, gt, pred = pair_of(case)
        pair = CasePair(gt, pred, (1.0, 1.0, 1.0))
        for label, values in labels.items():
            found = evaluate(pair, label, (int(label),), wanted)
            assert [found["Dice"], found["HD95"]] == pytest.approx(values["brats_legacy_2020"], rel=1e-9)
