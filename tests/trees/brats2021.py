"""A download of BraTS 2021; beside the cases lie single-case archives that repeat or spoil them."""

from __future__ import annotations

import tarfile
from pathlib import Path

from trees.brats2020 import SMALL, SUFFIXES, VALUES, write_case
from trees.volumes import SHAPE, Tree


def build(root: Path, *, complete: bool = False) -> Tree:
    """Write it.

    Args:
        root: an empty folder.
        complete: all 219 validation cases.
    """
    tree = Tree("brats2021", root / "BraTS2021")
    training, validation = (tree.place / f"BraTS2021_{part}" for part in ("Training_Data", "ValidationData"))
    for number in (0, 2, 1666):
        case = f"BraTS2021_{number:05d}"
        name = f"{case}_seg.nii.gz"
        tree.training[case] = write_case(training / case, case, number, SUFFIXES, VALUES, ".nii.gz", name)
    for number in range(1, 439, 2) if complete else (1, 3):
        case = f"BraTS2021_{number:05d}"
        shape = SMALL if complete else SHAPE
        tree.test[case] = write_case(validation / case, case, 2000 + number, SUFFIXES, VALUES, ".nii.gz", None, shape)
    with tarfile.open(tree.place / "BraTS2021_00495.tar", "w") as archive:
        archive.add(training / "BraTS2021_00002", "BraTS2021_00495")
    return tree
