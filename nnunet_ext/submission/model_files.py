"""What a container needs of a trained model's folder, and whether it needs this package."""

from __future__ import annotations

import json
import re
import shutil
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_ext import names
from nnunet_ext.errors import UserError
from nnunet_ext.submission.challenges import Challenge
from nnunet_ext.submission.wording import ranged

PLAIN = ("plans.json", "dataset.json")


@dataclass(frozen=True)
class Model:
    """A trained model.

    Attributes:
        folder: TRAINER__PLANS__CONFIGURATION.
        folds: those that are used, "0" to "4" or "all".
        checkpoint: the file's name in each fold.
        trainer: the class's name.
        needs_package: its trainer or network is this package's.
    """

    folder: Path
    folds: tuple[str, ...]
    checkpoint: str
    trainer: str
    needs_package: bool

    def copy(self, target: Path) -> None:
        """Copy what nnUNetv2_predict_from_modelfolder reads.

        Raises:
            OSError: there is no room.
        """
        for fold in self.folds:
            (target / f"fold_{fold}").mkdir(parents=True)
            shutil.copyfile(self.folder / f"fold_{fold}" / self.checkpoint, target / f"fold_{fold}" / self.checkpoint)
        for name in PLAIN:
            shutil.copyfile(self.folder / name, target / name)


def find_model(challenge: Challenge, folder: Path, folds: Sequence[str] | None, checkpoint: str) -> Model:
    """Check a model folder.

    Args:
        challenge: whose labels and channels it must have.
        folder: TRAINER__PLANS__CONFIGURATION.
        folds: None: all that have the checkpoint; "all" is a fold of its own, as for nnU-Net.
        checkpoint: the file's name.

    Raises:
        UserError: something is missing or does not fit the challenge.
    """
    folder = folder.expanduser().absolute()
    plans, dataset = (_read(folder / name) for name in PLAIN)
    _check_dataset(challenge, dataset, folder)
    if "/" in checkpoint or checkpoint.startswith("."):
        raise UserError(f"--checkpoint takes a file's name, such as checkpoint_final.pth; got {checkpoint!r}")
    trained = sorted(path.parent.name.removeprefix("fold_") for path in folder.glob(f"fold_*/{checkpoint}"))
    wanted = [fold for fold in trained if re.fullmatch(r"\d+", fold)] or trained if folds is None else list(folds)
    missing = [fold for fold in wanted if fold not in trained]
    if missing or not wanted:
        told = f"fold {', '.join(missing)}" if missing else "any fold"
        raise UserError(
            f"{folder}: no {checkpoint} of {told}; trained are {', '.join(trained) or '(none)'}. Choose with --folds."
        )
    trainer = _trainer(folder, folder / f"fold_{wanted[0]}" / checkpoint)
    return Model(folder, tuple(dict.fromkeys(wanted)), checkpoint, trainer, _needs_package(trainer, plans))


def _trainer(folder: Path, checkpoint: Path) -> str:
    """The class that nnU-Net will look for: the checkpoint says so; else the folder's name does."""
    from nnunet_ext.weights.loading import CheckpointError, safe_load

    if not zipfile.is_zipfile(checkpoint):
        raise UserError(f"{checkpoint} is cut off or no checkpoint of nnU-Net's: copy it again")
    try:
        stated = safe_load(checkpoint).get("trainer_name")
    except (CheckpointError, AttributeError):  # other people's trainers may keep anything in it
        stated = None
    return stated if isinstance(stated, str) else folder.name.split("__")[0]


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read ({error}): --container takes a trained model's folder, such as "
            "nnUNet_results/Dataset218_AMOS2022_task1/nnUNetTrainer__nnUNetPlans__3d_fullres"
        ) from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is not nnU-Net's: an object was expected")
    return content


def _check_dataset(challenge: Challenge, dataset: dict[str, Any], folder: Path) -> None:
    try:
        labels = dataset["labels"].values()
        channels, ending = len(dataset["channel_names"]), dataset["file_ending"]
    except (KeyError, AttributeError, TypeError) as error:
        raise UserError(f"{folder / 'dataset.json'} lacks {error}") from error
    nested = (value if isinstance(value, list) else [value] for value in labels)
    values = {value for values in nested for value in values} | {0}
    if values != challenge.sections[0].values:
        raise UserError(
            f"{folder}: the model knows the labels {ranged(values)}; {challenge.key} has "
            f"{ranged(challenge.sections[0].values)}. A container has nothing that would translate them."
        )
    if channels != 1 or ending != ".nii.gz":
        raise UserError(
            f"{folder}: the model reads {channels} channel(s) of {ending} files; {challenge.key} has one of .nii.gz"
        )


def _needs_package(trainer: str, plans: dict[str, Any]) -> bool:
    try:
        ours = names.parse_trainer(trainer) is not None
    except names.UnknownNameError:
        ours = True
    return ours or "nnunet_ext." in json.dumps(plans)
