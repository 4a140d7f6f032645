"""Small data sets to evaluate: label maps of boxes in folders as nnU-Net has them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from skimage import io

Box = tuple[int, tuple[tuple[int, int], ...]]
"""A label, and where from and to along each axis."""
SHAPE = (8, 10, 12)
LABELS = {"background": 0, "front": 1, "back": 2}


def label_map(*boxes: Box, shape: Sequence[int] = SHAPE) -> np.ndarray:
    """A label map with the axes (z, y, x)."""
    labels = np.zeros(shape, np.uint8)
    for value, edges in boxes:
        labels[tuple(slice(start, stop) for start, stop in edges)] = value
    return labels


def cube(value: int, at: int = 1, edge: int = 2, wider: int = 0) -> Box:
    """A cube at the same place on all axes; wider along x."""
    return value, ((at, at + edge), (at, at + edge), (at, at + edge + wider))


def save(path: Path, labels: np.ndarray, spacing: Sequence[float] = (1.0, 1.0, 1.0)) -> Path:
    """Write a label map (z, y, x) with its spacing along these axes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix in (".png", ".tif"):
        io.imsave(path, labels, check_contrast=False)
    else:
        nibabel.save(nibabel.Nifti1Image(labels.T, np.diag([*spacing[::-1], 1.0])), path)
    return path


def data_set(
    folder: Path,
    references: Mapping[str, np.ndarray],
    predictions: Mapping[str, np.ndarray],
    labels: Mapping[str, Any] | None = None,
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
    ending: str = ".nii.gz",
) -> tuple[Path, Path]:
    """Write labelsTr, predictions and dataset.json; returns the two folders."""
    for name, maps in (("labelsTr", references), ("predictions", predictions)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for case, content in maps.items():
            save(folder / name / f"{case}{ending}", content, spacing)
    described = {"labels": dict(labels or LABELS), "channel_names": {"0": "MRI"}, "file_ending": ending}
    (folder / "dataset.json").write_text(json.dumps({**described, "numTraining": len(references)}))
    return folder / "labelsTr", folder / "predictions"
