"""Where a data set goes: nnU-Net's folders, its id and name, and what may already be there."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from nnunet_ext.errors import UserError

VARIABLES = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
HIGHEST = 999


def nnunet_folder(variable: str) -> Path:
    """A folder that nnU-Net's environment variable names.

    Raises:
        UserError: it is not set.
    """
    value = os.environ.get(variable)
    if not value:
        raise UserError(f"{variable} is not set: nnU-Net's folders must be known (export {variable}=/some/folder).")
    return Path(value).expanduser().absolute()


def dataset_name(number: int, name: str) -> str:
    """nnU-Net's name of a data set, such as Dataset027_ACDC.

    Raises:
        UserError: an id or a name that nnU-Net can't use.
    """
    if not 1 <= number <= HIGHEST:
        raise UserError(f"data set id {number}: nnU-Net's ids have three digits, 1 to {HIGHEST}. Choose one with -d.")
    if not _NAME.fullmatch(name):
        raise UserError(f"data set name {name!r}: letters, digits, _ and - only. Choose one with -n.")
    return f"Dataset{number:03d}_{name}"


def check_number(number: int, wanted: str) -> None:
    """Refuse an id that another data set has.

    Raises:
        UserError: names the folder.
    """
    for variable in VARIABLES:
        folder = os.environ.get(variable)
        if not folder or not Path(folder).is_dir():
            continue
        for entry in sorted(Path(folder).glob(f"Dataset{number:03d}_*")):
            if entry.is_dir() and entry.name != wanted:
                raise UserError(
                    f"Dataset id {number} is already taken by {entry.name} (in {variable}, {folder}). Choose another "
                    "with -d, or the same name with -n."
                )


def trained_folds(name: str) -> list[Path]:
    """The folders of folds that were trained on a data set."""
    results = os.environ.get("nnUNet_results")
    return sorted(Path(results, name).glob("*/fold_*")) if results else []


def lies_within(folder: Path, paths: Iterable[Path]) -> bool:
    """Whether all files are in a folder already."""
    resolved = folder.resolve()
    found = list(paths)
    return bool(found) and all(resolved in path.resolve().parents for path in found)
