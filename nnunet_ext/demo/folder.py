"""The demo's folder: made, checked, and filled with the bundled data as nnU-Net raw data."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nnunet_ext
from nnunet_ext.errors import UserError

DATA = Path(nnunet_ext.__file__).parent / "data"
DATASET = "Dataset004_Hippocampus"
MARKER = ".nnunet_ext_demo"  # says that a folder is a demo's, so that the next demo may replace what is in it
FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results", "predictions", "logs")
FILES = ("commands.sh", "dice.txt", "overlay.png", "training_curve.png")


def prepare_folder(folder: Path) -> Path:
    """Make the demo's folder, or clear what an earlier demo left in it. Files that are not the demo's stay.

    Args:
        folder: may be missing, empty, or an earlier demo's.

    Returns:
        The absolute path.

    Raises:
        UserError: it is a file, holds something else, or cannot be written.
    """
    folder = folder.expanduser().absolute()
    try:
        if folder.exists() and not folder.is_dir():
            raise UserError(f"{folder} is not a folder: choose another with -o FOLDER.")
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()) and not (folder / MARKER).is_file():
            raise UserError(
                f"{folder} is not empty and does not come from an earlier demo, so nothing in it was touched: choose "
                "another folder with -o FOLDER, or empty this one."
            )
        (folder / MARKER).write_text("nnunet-ext demo: the next demo in this folder replaces this one\n")
        for name in (*FOLDERS, *FILES):
            path = folder / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        for name in FOLDERS:
            (folder / name).mkdir()
    except OSError as error:
        raise UserError(f"The demo cannot write to {folder} ({error}): choose another with -o FOLDER.") from error
    return folder


def choose_cases(quick: bool) -> tuple[list[dict[str, list[str]]], list[str]]:
    """Which of the bundled cases to use.

    Args:
        quick: ten training cases (two validate fold 0, two others fold 1) and two held-back ones, instead of all.

    Returns:
        The splits (``splits_final.json``) and the names of the held-back cases.
    """
    source = DATA / DATASET
    splits: list[dict[str, list[str]]] = json.loads((source / "splits_final.json").read_text())
    held_back = sorted(path.name.removesuffix(".nii.gz") for path in (source / "labelsTs").glob("*.nii.gz"))
    if not quick:
        return splits, held_back
    validation = [splits[fold]["val"][:2] for fold in (0, 1)]
    rest = [case for case in splits[0]["train"] if case not in splits[1]["val"]][:6]
    keep = {*validation[0], *validation[1], *rest}
    small = [{part: [case for case in cases if case in keep] for part, cases in split.items()} for split in splits[:2]]
    return small, held_back[:2]


def copy_raw_data(raw: Path, quick: bool) -> tuple[int, int]:
    """Copy the bundled data into an ``nnUNet_raw`` folder.

    Args:
        raw: the folder that ``nnUNet_raw`` will name.
        quick: see `choose_cases`.

    Returns:
        How many training cases and how many held-back cases.
    """
    source, target = DATA / DATASET, raw / DATASET
    splits, held_back = choose_cases(quick)
    training = sorted({*splits[0]["train"], *splits[0]["val"]})
    for cases, tag in ((training, "Tr"), (held_back, "Ts")):
        for kind, ending in (("images", "_0000.nii.gz"), ("labels", ".nii.gz")):
            (target / f"{kind}{tag}").mkdir(parents=True)
            for case in cases:
                name = f"{kind}{tag}/{case}{ending}"
                shutil.copyfile(source / name, target / name)
    dataset = json.loads((source / "dataset.json").read_text())
    (target / "dataset.json").write_text(json.dumps({**dataset, "numTraining": len(training)}, indent=1))
    (target / "splits_final.json").write_text(json.dumps(splits, indent=1))
    shutil.copyfile(source / "README.md", target / "README.md")
    return len(training), len(held_back)
