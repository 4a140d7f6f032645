"""What the demo runs: settings, environment variables, and the console commands step by step."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from pathlib import Path

from nnunet_ext.demo.folder import DATASET, TASK
from nnunet_ext.demo.steps import Command, Step, scripts_folder, shell_lines

PLANNER, PLANS = "SSHUNetPlanner_W8", "SSHUNetPlans_W8"
CONFIGURATION = "3d_fullres"
FOLDS = (0, 1)
MODELS = (*(f"fold_{fold}" for fold in FOLDS), "ensemble")  # folders of predictions


@dataclass(frozen=True)
class Settings:
    """How long each fold is trained.

    Attributes:
        iterations: an epoch.
        epochs: a training.
        minutes: rough duration of the whole demo on two quiet CPU cores.
    """

    iterations: int
    epochs: int
    minutes: int

    @property
    def trainer(self) -> str:
        """The trainer's name. SGD at nnU-Net's learning rate learns little in so few steps, hence AdamW."""
        return f"SSHUNetTrainer_AdamW_NoMirroring_{self.iterations}its_{self.epochs}epochs"

    @property
    def model(self) -> str:
        """The trained model's folder in nnU-Net's results."""
        return f"{self.trainer}__{PLANS}__{CONFIGURATION}"


FULL = Settings(iterations=20, epochs=22, minutes=7)
QUICK = Settings(iterations=4, epochs=2, minutes=2)


def variables(folder: Path, cores: int) -> dict[str, str]:
    """The environment variables that the demo's commands need.

    On one or two cores, the two trainings that run at the same time use both: augmentation gets no worker of its own.

    Args:
        folder: the demo's, absolute.
        cores: how many CPU cores may be used.
    """
    return {
        **{name: str(folder / name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")},
        "nnUNet_def_n_proc": "1",
        "nnUNet_n_proc_DA": str(0 if cores <= 2 else min(4, cores // 4 + 1)),
        "nnUNet_compile": "f",
        "OMP_NUM_THREADS": str(max(1, cores // len(FOLDS))),  # each training's share; our trainers honour it
        "OMP_WAIT_POLICY": "PASSIVE",  # threads that wait leave their core to others
        "PYTHONUNBUFFERED": "1",  # logs are up to date
    }


def export_lines(values: dict[str, str], path: str) -> list[str]:
    """The variables as lines for a shell; with PATH, if the commands of this Python are not on it.

    Args:
        values: what `variables` returned.
        path: the present PATH.
    """
    lines = [f"export {name}={shlex.quote(value)}" for name, value in values.items()]
    if scripts_folder() not in path.split(os.pathsep):
        lines.insert(0, f'export PATH={shlex.quote(scripts_folder())}:"$PATH"')
    return lines


def make_steps(settings: Settings, folder: Path, device: str) -> list[Step]:
    """The whole way, in order.

    Args:
        settings: `FULL` or `QUICK`.
        folder: the demo's, absolute.
        device: nnU-Net's ``-device``.
    """
    raw, predictions = folder / "nnUNet_raw" / DATASET, folder / "predictions"
    model = ("-tr", settings.trainer, "-p", PLANS)
    planning = ("-d", "4", "-pl", PLANNER, "-c", CONFIGURATION, "-npfp", "1", "-np", "1")

    def train(fold: int) -> Command:
        arguments = ("nnUNetv2_train", "4", CONFIGURATION, str(fold), *model, "-device", device, "--npz")
        return Command(f"train_fold_{fold}", arguments, settings.epochs)

    def predict(fold: int) -> Command:
        where = ("-i", str(raw / "imagesTs"), "-o", str(predictions / f"fold_{fold}"))
        what = ("-d", "4", "-c", CONFIGURATION, "-f", str(fold), *model, "-device", device)
        workers = ("-npp", "0", "-nps", "0")  # few small images: starting workers would take longer than predicting
        return Command(f"predict_fold_{fold}", ("nnUNetv2_predict", *where, *what, "--save_probabilities", *workers))

    def evaluate(name: str) -> Command:
        plans = folder / "nnUNet_preprocessed" / DATASET / f"{PLANS}.json"
        files = ("-djfile", str(raw / "dataset.json"), "-pfile", str(plans))
        folders = (str(folder / "references"), str(predictions / name))
        return Command(f"evaluate_{name}", ("nnUNetv2_evaluate_folder", *folders, *files, "-np", "1"))

    members = tuple(str(predictions / f"fold_{fold}") for fold in FOLDS)
    ensemble = ("nnUNetv2_ensemble", "-i", *members, "-o", str(predictions / "ensemble"), "-np", "1")
    convert = ("nnunet-ext", "convert", "msd", str(folder / "download" / TASK), "-np", "1")
    server = ("-o", str(folder / "submission"), "--allow-incomplete")  # one task of the Decathlon's ten
    submit = ("nnunet-ext", "submit", "msd", str(predictions / "ensemble"), "--raw", DATASET, *server)
    return [
        Step("turn the download into nnU-Net's raw data", (Command("convert", convert),)),
        Step("plan and preprocess", (Command("plan_and_preprocess", ("nnUNetv2_plan_and_preprocess", *planning)),)),
        Step("train two of five folds", tuple(train(fold) for fold in FOLDS)),
        Step("predict the held-back cases with each fold", tuple(predict(fold) for fold in FOLDS)),
        Step("ensemble the two predictions", (Command("ensemble", ensemble),)),
        Step("compare with the reference", tuple(evaluate(name) for name in MODELS)),
        Step("make the folder for the challenge's server", (Command("submit", submit),)),
    ]


def script(exports: list[str], steps: list[Step]) -> str:
    """``commands.sh``: everything that the demo runs on the data in ``download``, for a POSIX shell."""
    lines = ["#!/bin/sh", "set -e", *exports]
    for step in steps:
        lines += ["", f"# {step.title}", *shell_lines(step.commands)]
    return "\n".join(lines) + "\n"
