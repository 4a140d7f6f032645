"""A data set in BTCV's numbering with some of UNETR++'s cases, so small that its table is computed by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from made_evaluations import write_nifti

from nnunet_ext.dataset_conversion.btcv import ORGANS

SPACING = np.diag([2.0, 2.0, 5.0, 1.0])  # distances in voxels must not see it
SHAPE = (30, 6, 6)


def rods(lengths: dict[int, int], extra: dict[int, int] | None = None) -> np.ndarray:
    """A map (x, y, z): organ n is a rod of one voxel's width along x, n - 1 = 6 y + z, of that length."""
    found = np.zeros(SHAPE, np.uint8)
    for organ, length in {**lengths, **(extra or {})}.items():
        y, z = divmod(organ - 1, 6)
        found[:length, y, z] = organ
    return found


def write_data_set(folder: Path, cases: dict[str, dict[int, int]], references: str = "labelsTr") -> Path:
    """Write dataset.json and references."""
    labels = {name: value for value, name in enumerate(ORGANS)}
    folder.mkdir(parents=True, exist_ok=True)
    content = {"labels": labels, "channel_names": {"0": "CT"}, "numTraining": len(cases), "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(content))
    write_maps(folder / references, cases)
    return folder


def write_maps(folder: Path, cases: dict[str, dict[int, int]]) -> Path:
    """Write label maps."""
    for case, lengths in cases.items():
        write_nifti(folder / f"{case}.nii.gz", rods(lengths), SPACING)
    return folder
