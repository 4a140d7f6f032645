"""nnU-Net's summary.json: keys of labels and regions are those that nnU-Net itself makes of a dataset.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from evaluated import cube, data_set, label_map
from nnunetv2.evaluation.evaluate_predictions import (
    compute_metrics,
    key_to_label_or_region,
    label_or_region_to_key,
    load_summary_json,
)
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunet_ext.cli import main


@pytest.mark.parametrize(
    ("labels", "order"),
    [
        ({"background": 0, "whole": [1, 2, 3], "core": [2], "e": 3}, [1, 2, 3]),
        ({"background": 0, "whole": [3, 1], "core": 2, "e": [2]}, [1, 2, 2]),
        ({"background": 0, "a": [1], "b": [2], "c": 3}, None),
    ],
)
def test_keys_are_nnunets(tmp_path: Path, labels: dict[str, Any], order: list[int] | None) -> None:
    maps = {"a": label_map(cube(1), cube(2, 5))}
    references, predictions = data_set(tmp_path, maps, {"a": label_map(cube(1))})
    content = {"labels": labels, "regions_class_order": order, "file_ending": ".nii.gz"}
    described = tmp_path / "labels.json"
    described.write_text(json.dumps(content))
    output = tmp_path / "out"
    command = ["evaluate", str(references), str(predictions), "--dataset-json", str(described), "-np", "1"]
    assert main([*command, "--convention", "nnunet", "--nnunet-summary", "-o", str(output)]) == 0
    manager = LabelManager(labels, order)
    wanted = manager.foreground_regions if manager.has_regions else manager.foreground_labels
    theirs = compute_metrics(str(references / "a.nii.gz"), str(predictions / "a.nii.gz"), SimpleITKIO(), wanted)
    ours = json.loads((output / "summary.json").read_text())
    assert set(ours["mean"]) == {label_or_region_to_key(key) for key in wanted}
    for key, values in ours["metric_per_case"][0]["metrics"].items():
        assert values == pytest.approx(theirs["metrics"][key_to_label_or_region(key)], nan_ok=True)
    assert set(load_summary_json(str(output / "summary.json"))["mean"]) == set(wanted)
