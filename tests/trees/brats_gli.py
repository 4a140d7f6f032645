"""Downloads of BraTS 2023 and 2024, adult glioma: several time points a patient, a segmentation of floats."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from trees.brats2020 import SMALL, write_case
from trees.volumes import SHAPE, Tree

SUFFIXES = ("-t1n", "-t1c", "-t2w", "-t2f")
TRAINING: dict[int, dict[str, tuple[str, ...]]] = {
    2023: {"ASNR-MICCAI-BraTS2023-GLI-Challenge-TrainingData": ("00000-000", "00002-000", "00045-000", "00045-001")},
    2024: {
        "training_data1_v2": ("02063-100", "02063-101", "02064-100"),
        "training_data_additional": ("02100-100", "02063-103"),
    },
}
VALIDATION = {2023: "ASNR-MICCAI-BraTS2023-GLI-Challenge-ValidationData", 2024: "validation_data"}
COUNT = {2023: 219, 2024: 188}
"""Validation cases of the release."""
VALUES = {2023: (1, 2, 3), 2024: (1, 2, 3, 4)}
FLOATS = ("BraTS-GLI-00002-000", "BraTS-GLI-02064-100")


def build(root: Path, *, complete: bool = False, year: int = 2023) -> Tree:
    """Write it.

    Args:
        root: an empty folder.
        complete: all validation cases.
        year: 2023 or 2024.
    """
    tree = Tree(f"brats{year}gli", root / f"BraTS{year}")
    for folder, cases in TRAINING[year].items():
        for seed, number in enumerate(cases):
            case = f"BraTS-GLI-{number}"
            dtype = np.float32 if case in FLOATS else np.uint8
            tree.training[case] = write_case(
                tree.place / folder / case,
                case,
                seed + len(folder),
                SUFFIXES,
                VALUES[year],
                ".nii.gz",
                f"{case}-seg.nii.gz",
                dtype=dtype,
            )
    time_point = "000" if year == 2023 else "100"
    for place in range(COUNT[year] if complete else 2):
        case = f"BraTS-GLI-{3 * place + 1:05d}-{time_point}"
        tree.test[case] = write_case(
            tree.place / VALIDATION[year] / case,
            case,
            500 + place,
            SUFFIXES,
            VALUES[year],
            ".nii.gz",
            None,
            SMALL if complete else SHAPE,
        )
    return tree
