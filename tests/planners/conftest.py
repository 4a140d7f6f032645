"""Raw data sets without images: planners read only dataset.json and the fingerprint."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch


@dataclass(frozen=True)
class Fingerprint:
    """What a planner sees of a data set; axes (D, H, W) as stored, millimetres and voxels."""

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)
    channels: int = 1
    labels: int = 3
    cases: int = 30
    modality: str = "MRI"


FINGERPRINTS: dict[str, Fingerprint] = {
    "isotropic": Fingerprint((140, 160, 150)),
    "anisotropic": Fingerprint((40, 320, 320), (5.0, 0.8, 0.8), modality="CT"),
    "thin": Fingerprint((10, 144, 144), (8.0, 1.37, 1.37), cases=70, labels=2),
    "2d": Fingerprint((1, 512, 448), (999.0, 1.0, 1.0)),
    "channels": Fingerprint((80, 128, 128), channels=12, labels=119),
    "small": Fingerprint((36, 50, 35), cases=200),
    "tiny": Fingerprint((24, 32, 32), cases=6),
    "lowres": Fingerprint((500, 512, 512), (0.8, 0.7, 0.7), labels=14, modality="CT"),
    "coarse_last": Fingerprint((256, 256, 30), (0.9, 0.9, 4.0)),
}


@pytest.fixture
def nnunet_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("nnUNet_n_proc_DA", "1")  # nnU-Net's own planners fail with 0
    return tmp_path


@pytest.fixture
def make_dataset(nnunet_folders: Path) -> Callable[..., str]:
    """Writes a data set of one of `FINGERPRINTS`, with changes if any, and returns its name."""

    numbers = count(801)

    def make(fingerprint: str, **changes: Any) -> str:
        data = replace(FINGERPRINTS[fingerprint], **changes)
        name = f"Dataset{next(numbers)}_Fake"
        raw, preprocessed = nnunet_folders / "nnUNet_raw" / name, nnunet_folders / "nnUNet_preprocessed" / name
        raw.mkdir()
        preprocessed.mkdir()
        (raw / "dataset.json").write_text(json.dumps(_dataset_json(data)))
        (preprocessed / "dataset_fingerprint.json").write_text(json.dumps(_fingerprint_json(data)))
        return name

    return make


@pytest.fixture
def plan(nnunet_folders: Path) -> Callable[..., dict[str, Any]]:
    """Runs a planner class and returns the plans as they were written."""

    def run(planner: type, dataset: str, **kwargs: Any) -> dict[str, Any]:
        instance = planner(dataset, **kwargs)
        with torch.device("meta"):  # nnU-Net's own planners count on real, slowly initialised networks
            instance.plan_experiment()
        file = nnunet_folders / "nnUNet_preprocessed" / dataset / f"{instance.plans_identifier}.json"
        plans: dict[str, Any] = json.loads(file.read_text())
        return plans

    return run


def _dataset_json(fingerprint: Fingerprint) -> dict[str, Any]:
    return {
        "channel_names": {str(i): fingerprint.modality for i in range(fingerprint.channels)},
        "labels": {"background": 0, **{f"label{i}": i for i in range(1, fingerprint.labels)}},
        "numTraining": fingerprint.cases,
        "file_ending": ".nii.gz",
        "overwrite_image_reader_writer": "SimpleITKIO",
        "dataset": {"case": {"images": ["case_0000.nii.gz"], "label": "case.nii.gz"}},  # listed: nobody looks for files
    }


def _fingerprint_json(fingerprint: Fingerprint) -> dict[str, Any]:
    statistics = dict.fromkeys(("max", "mean", "median", "min", "percentile_00_5", "percentile_99_5", "std"), 1.0)
    return {
        "spacings": [list(fingerprint.spacing)] * fingerprint.cases,
        "shapes_after_crop": [list(fingerprint.shape)] * fingerprint.cases,
        "foreground_intensity_properties_per_channel": {str(i): statistics for i in range(fingerprint.channels)},
        "median_relative_size_after_cropping": 0.9,
    }
