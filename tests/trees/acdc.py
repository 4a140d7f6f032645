"""A download of ACDC: patient090's ES frame precedes its ED frame, as in the release."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from trees.volumes import Tree, Truth, affine, image, labels, save

TRAINING = {"patient001": (1, 12), "patient002": (1, 5), "patient003": (1, 15), "patient090": (11, 4)}
"""Patient -> frames of ED and ES."""
TEST = {"patient101": (1, 14), "patient102": (13, 2)}
VALUES = (1, 2, 3)
Form = Literal["new", "2017", "flat"]


def build(
    root: Path,
    *,
    complete: bool = False,
    form: Form = "new",
    ending: str = ".nii.gz",
    folders: bool = False,
    test_labels: bool = True,
) -> Tree:
    """Write it.

    Args:
        root: an empty folder.
        complete: all 50 test patients.
        form: "new": training and testing; "2017": testing/testing, nothing of the group and no labels of test
            patients; "flat": all patients in one folder.
        ending: of the volumes.
        folders: each volume lies in a folder called like it.
        test_labels: the test patients' are there.
    """
    tree = Tree("acdc", root / "ACDC")
    tests = dict(TEST)
    if complete:
        tests |= {f"patient{number}": (1, 8 + number % 7) for number in range(103, 151)}
    parts = {
        "new": ("database/training", "database/testing"),
        "2017": ("training", "testing/testing"),
        "flat": ("all", "all"),
    }
    shape = (6, 5, 4) if complete else (14, 16, 8)
    for part, patients in zip(parts[form], (TRAINING, tests), strict=True):
        for patient, phases in patients.items():
            is_test = patients is tests
            folder = tree.place / part / patient
            withheld = is_test and (form == "2017" or not test_labels)
            known = tree.test if is_test else tree.training
            known |= _patient(folder, patient, phases, shape, ending, folders, withheld)
            _info(folder, phases, None if is_test and form == "2017" else "DCM")
    (tree.place / "MANDATORY_CITATION.md").write_text("O. Bernard, A. Lalande, C. Zotti, ...\n")
    return tree


def _patient(
    folder: Path, patient: str, phases: tuple[int, int], shape: tuple[int, ...], ending: str, nested: bool, bare: bool
) -> dict[str, Truth]:
    """Write the frames of a patient."""
    made = {}
    for frame in phases:
        seed = int(patient[7:]) * 100 + frame
        case = f"{patient}_frame{frame:02d}"
        truth = Truth(labels(seed, VALUES, shape), affine((1.5, 1.5, 10.0), seed))
        volumes = {case: image(seed, shape)} | ({} if bare else {f"{case}_gt": truth.labels})
        for stem, array in volumes.items():
            # One patient came through a system that writes endings in capitals.
            name = stem + (ending.upper() if patient == "patient003" else ending)
            save(folder / name / name if nested else folder / name, array, truth.affine)
        made[case] = truth
    save(folder / f"{patient}_4d.nii.gz", np.zeros((*shape, 3), np.int16), affine((1.5, 1.5, 10.0)))
    (folder / f"._{patient}_4d.nii.gz").write_bytes(b"\0\5\26\7")
    return made


def _info(folder: Path, phases: tuple[int, int], group: str | None) -> None:
    lines = [f"ED: {phases[0]}", f"ES: {phases[1]}", *([f"Group: {group}"] if group else [])]
    (folder / "Info.cfg").write_text("\n".join([*lines, "Height: 184.0", "NbFrame: 30", "Weight: 95.0"]) + "\n")
