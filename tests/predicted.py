"""Tiny predictions in nnU-Net's own files, written by its export; and label maps."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK
import torch
from nnunetv2.inference.export_prediction import export_prediction_from_logits
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

SHAPE = (5, 6, 7)
SPACING = (1.25, 0.5, 2.0)  # x, y, z
LABELS: dict[str, Any] = {"labels": {"background": 0, "front": 1, "back": 2}, "file_ending": ".nii.gz"}
IGNORED: dict[str, Any] = {"labels": {"background": 0, "front": 1, "back": 2, "ignore": 3}, "file_ending": ".nii.gz"}
REGIONS: dict[str, Any] = {
    "labels": {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3, "ignore": 4},
    "regions_class_order": [1, 2, 3],
    "file_ending": ".nii.gz",
}
_RESAMPLING = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}
PLANS: dict[str, Any] = {
    "image_reader_writer": "SimpleITKIO",
    "transpose_forward": [0, 1, 2],
    "transpose_backward": [0, 1, 2],
    "label_manager": "LabelManager",
    "configurations": {
        "3d_fullres": {
            "spacing": list(SPACING[::-1]),
            "architecture": {"network_class_name": "none", "arch_kwargs": {}, "_kw_requires_import": []},
            "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
            "resampling_fn_probabilities_kwargs": _RESAMPLING,
        }
    },
}


def manager(dataset_json: Mapping[str, Any]) -> LabelManager:
    return LabelManager(dict(dataset_json["labels"]), dataset_json.get("regions_class_order"))


def described(folder: Path, dataset_json: Mapping[str, Any], plans: Mapping[str, Any] | None = PLANS) -> Path:
    """A folder with what nnU-Net puts beside predictions."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset.json").write_text(json.dumps(dataset_json))
    if plans is not None:
        (folder / "plans.json").write_text(json.dumps(plans))
    return folder


def export(
    folder: Path, case: str, seed: int, dataset_json: Mapping[str, Any], transposed: Sequence[int] = (0, 1, 2)
) -> None:
    """Random logits of a cropped image, put through nnU-Net's export: CASE.nii.gz, CASE.npz and CASE.pkl."""
    plans = {**PLANS, "transpose_forward": list(transposed), "transpose_backward": np.argsort(transposed).tolist()}
    managed = PlansManager(plans)
    whole = [SHAPE[axis] for axis in transposed]
    cropped = [whole[0] - 1, *whole[1:]]
    properties = {
        "sitk_stuff": {"spacing": SPACING, "origin": (3.0, -4.0, 5.5), "direction": (1.0, 0, 0, 0, 1, 0, 0, 0, 1)},
        "spacing": list(SPACING[::-1]),
        "shape_before_cropping": tuple(whole),
        "bbox_used_for_cropping": [[1, whole[0]], *([0, edge] for edge in whole[1:])],
        "shape_after_cropping_and_before_resampling": tuple(cropped),
    }
    heads = manager(dataset_json).num_segmentation_heads
    logits = torch.randn((heads, *cropped), generator=torch.Generator().manual_seed(seed)) * 2
    configuration = managed.get_configuration("3d_fullres")
    configuration.configuration["spacing"] = [SPACING[::-1][axis] for axis in transposed]
    arguments = (logits, properties, configuration, managed, dict(dataset_json), str(folder / case))
    export_prediction_from_logits(*arguments, save_probabilities=True, num_threads_torch=1)


def write_labels(path: Path, labels: np.ndarray, spacing: Sequence[float] = SPACING) -> None:
    """A label map (z, y, x)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = SimpleITK.GetImageFromArray(labels.astype(np.uint8))
    image.SetSpacing([float(edge) for edge in spacing])
    SimpleITK.WriteImage(image, str(path), True)


def read_labels(path: Path) -> np.ndarray:
    return np.asarray(SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path))))
