"""A download of BraTS 2020, with the misnamed segmentation of case 355; and what all years' trees share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from trees.volumes import LPS, SHAPE, Tree, Truth, image, labels, save

VALUES = (1, 2, 4)
SUFFIXES = ("_flair", "_t1", "_t1ce", "_t2")
MISNAMED = "BraTS20_Training_355"
SMALL = (6, 5, 4)


def build(root: Path, *, complete: bool = False, ending: str = ".nii.gz") -> Tree:
    """Write it.

    Args:
        root: an empty folder.
        complete: all 125 validation cases.
        ending: of the volumes; the copies with ``.nii`` have other folder names.
    """
    tree = Tree("brats2020", root / "BraTS2020")
    middle = "MICCAI_BraTS2020" if ending == ".nii.gz" else "BraTS2020"
    training, validation = (tree.place / f"{middle}_{part}Data" for part in ("Training", "Validation"))
    for number in (1, 2, 80, 355):
        case = f"BraTS20_Training_{number:03d}"
        name = "W39_1998.09.19_Segm.nii" if case == MISNAMED else f"{case}_seg{ending}"
        tree.training[case] = write_case(training / case, case, number, SUFFIXES, VALUES, ending, name)
    for number in range(1, 126) if complete else (1, 2):
        case = f"BraTS20_Validation_{number:03d}"
        shape = SMALL if complete else SHAPE
        tree.test[case] = write_case(validation / case, case, 400 + number, SUFFIXES, VALUES, ending, None, shape)
    (training / "name_mapping.csv").write_text("Grade,BraTS_2017_subject_ID,...\n")
    (training / "survival_info.csv").write_text("Brats20ID,Age,Survival_days,Extent_of_Resection\n")
    (validation / "name_mapping_validation_data.csv").write_text("...\n")
    return tree


def write_case(
    folder: Path,
    case: str,
    seed: int,
    suffixes: Sequence[str],
    values: tuple[int, ...],
    ending: str,
    segmentation: str | None,
    shape: tuple[int, ...] = SHAPE,
    dtype: type[np.generic] = np.int16,
) -> Truth:
    """Write the files of a case.

    Args:
        folder: of the case.
        case: its id.
        seed: of its content; each sequence has a mean of its own.
        suffixes: of the sequences.
        values: of the labels.
        ending: of the sequences.
        segmentation: the file's name; None: it is withheld.
        shape: of the volumes.
        dtype: of the segmentation.
    """
    transform = LPS.copy()
    transform[:3, 3] = (0, 239, 0)
    truth = Truth(labels(seed, values, shape), transform)
    for place, suffix in enumerate(suffixes):
        save(folder / f"{case}{suffix}{ending}", image(seed, shape) + np.int16(1000 * place), transform)
    if segmentation is not None:
        save(folder / segmentation, truth.labels, transform, dtype=dtype)
    return truth
