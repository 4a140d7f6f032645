"""The demo's folder: made, checked, and filled with the bundled data in the layout of the Decathlon's download."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import nnunet_ext
from nnunet_ext.errors import UserError

DATA = Path(nnunet_ext.__file__).parent / "data"
DATASET = "Dataset004_Hippocampus"
TASK = "Task04_Hippocampus"  # as the Medical Segmentation Decathlon calls it
MARKER = ".nnunet_ext_demo"  # says that a folder is a demo's, so that the next demo may replace what is in it
FOLDERS = (
    *("download", "references", "nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results", "predictions", "submission"),
    "logs",
)
FILES = ("submission.zip", "submission.report.json", "commands.sh", "dice.txt", "overlay.png", "training_curve.png")


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


def choose_cases(quick: bool) -> tuple[list[str], list[str]]:
    """Which of the bundled cases to use.

    Args:
        quick: ten training cases and two held-back ones, instead of all.

    Returns:
        The ids of the training cases and of the held-back cases, sorted.
    """
    training, held_back = (
        sorted(path.name.removesuffix(".nii.gz") for path in (DATA / DATASET / folder).glob("*.nii.gz"))
        for folder in ("labelsTr", "labelsTs")
    )
    return (training[:10], held_back[:2]) if quick else (training, held_back)


def make_download(folder: Path, quick: bool) -> tuple[int, int]:
    """Lay the bundled data out as the Decathlon's download has them, and the held-back references beside it.

    Args:
        folder: the demo's; ``download/Task04_Hippocampus`` and ``references`` are filled.
        quick: see `choose_cases`.

    Returns:
        How many training cases and how many held-back cases.
    """
    source, target = DATA / DATASET, folder / "download" / TASK
    training, held_back = choose_cases(quick)
    copies = [
        *((f"imagesTr/{case}_0000.nii.gz", target / "imagesTr" / f"{case}.nii.gz") for case in training),
        *((f"labelsTr/{case}.nii.gz", target / "labelsTr" / f"{case}.nii.gz") for case in training),
        *((f"imagesTs/{case}_0000.nii.gz", target / "imagesTs" / f"{case}.nii.gz") for case in held_back),
        *((f"labelsTs/{case}.nii.gz", folder / "references" / f"{case}.nii.gz") for case in held_back),
        ("README.md", target / "README.md"),
    ]
    for name, copy in copies:
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, copy)
    description = json.loads((source / "dataset.json").read_text())
    (target / "dataset.json").write_text(json.dumps(_as_decathlon(description, training, held_back), indent=1))
    return len(training), len(held_back)


def _as_decathlon(description: dict[str, Any], training: list[str], held_back: list[str]) -> dict[str, Any]:
    """nnU-Net's dataset.json in the Decathlon's form."""
    kept = {key: description[key] for key in ("name", "description", "reference", "licence", "release")}
    return {
        **kept,
        "tensorImageSize": "3D",
        "modality": description["channel_names"],
        "labels": {str(value): name for name, value in description["labels"].items()},
        "numTraining": len(training),
        "numTest": len(held_back),
        "training": [{"image": f"./imagesTr/{c}.nii.gz", "label": f"./labelsTr/{c}.nii.gz"} for c in training],
        "test": [f"./imagesTs/{case}.nii.gz" for case in held_back],
    }
