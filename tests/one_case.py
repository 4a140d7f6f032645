"""A download of one case, and what is to be done with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from trees import volumes

from nnunet_ext.dataset_conversion.cases import Case, Part, Rules
from nnunet_ext.dataset_conversion.sources import SourceFile
from nnunet_ext.dataset_conversion.work import Job

VALUES = frozenset(range(4))


def source(path: Path) -> SourceFile:
    return SourceFile(path.name, path, None, path.stat().st_size, path.stat().st_mtime_ns)


def job(folder: Path, images: list[Path], label: Path | None, **options: Any) -> Job:
    rules = Rules(**{"channels": len(images), **options.pop("rules", {})})
    part: Part = "training" if label else "test"
    case = Case("case", part, tuple(map(source, images)), source(label) if label else None)
    return Job(case, folder / "target", options.pop("ending", ".nii.gz"), rules, VALUES, **options)


def a_case(folder: Path, transform: np.ndarray | None = None, ending: str = ".nii.gz") -> tuple[Path, Path]:
    transform = volumes.affine() if transform is None else transform
    image = volumes.save(folder / f"image{ending}", volumes.image(0), transform)
    return image, volumes.save(folder / f"label{ending}", volumes.labels(0, (1, 2, 3)), transform)


def world(path: Path) -> dict[tuple[float, ...], int]:
    """Where in the patient each labelled voxel lies, in millimetres, and its label."""
    array, transform = volumes.load(path)
    places = np.argwhere(array)
    at = places @ transform[:3, :3].T + transform[:3, 3]
    return {tuple(point): int(array[tuple(place)]) for point, place in zip(at.round(2).tolist(), places, strict=True)}
