"""The course of the demo: folder, data, steps, table, pictures."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nnunet_ext.cores import usable_cores
from nnunet_ext.demo.folder import DATASET, TASK, make_download, prepare_folder
from nnunet_ext.demo.plan import FOLDS, FULL, MODELS, QUICK, Settings, export_lines, make_steps, script, variables
from nnunet_ext.demo.results import CONVENTION, dice_table, read_summary, structures
from nnunet_ext.demo.steps import clock, find_program, run_step, shell_lines


def run_demo(folder: Path, quick: bool = False, device: str = "auto") -> Path:
    """Convert, plan, preprocess, train two folds, predict held-back cases, ensemble, evaluate, submit and draw.

    Args:
        folder: see `prepare_folder`.
        quick: few cases and iterations.
        device: nnU-Net's ``-device``, or "auto".

    Returns:
        The folder; the table is in ``dice.txt``, the pictures are ``overlay.png`` and ``training_curve.png``.

    Raises:
        UserError: the folder cannot be used, or a step failed.
    """
    start = time.monotonic()
    settings = QUICK if quick else FULL
    folder = prepare_folder(folder)
    training, held_back = make_download(folder, quick)
    if device == "auto":
        device = _found_device()
    cores = usable_cores()
    values = variables(folder, cores)
    steps = make_steps(settings, folder, device)
    exports = export_lines(values, os.environ.get("PATH", ""))
    (folder / "commands.sh").write_text(script(exports, steps))
    for step in steps:
        for command in step.commands:
            find_program(command.arguments[0], os.environ.get("PATH", ""))
    print(
        f"SSH-UNet on hippocampus MRI by nnU-Net's own commands: {training} training cases, {held_back} held back for "
        f"testing.\nDevice {device}, {cores} CPU core(s); about {settings.minutes} minutes on two CPU cores.\n"
        f"Everything goes to {folder}: commands.sh there has the lines below, logs/ what they print.\n"
    )
    print("\n".join(exports), flush=True)
    with termination_as_exit():
        for number, step in enumerate(steps, start=1):
            print(f"\n[{number}/{len(steps)}] {step.title}")
            print("\n".join(f"  $ {line}" for line in shell_lines(step.commands)), flush=True)
            seconds = run_step(step, {**os.environ, **values}, folder / "logs")
            print(f"    done in {clock(seconds)}", flush=True)
    report(folder, settings)
    print(f"\nThe demo took {clock(time.monotonic() - start)} (minutes:seconds).")
    return folder


def report(folder: Path, settings: Settings) -> None:
    """Print the table of Dice, write it and the pictures."""
    from nnunet_ext.demo.pictures import draw_overlay, draw_training_curve

    raw, predictions = folder / "nnUNet_raw" / DATASET, folder / "predictions"
    names = structures(raw / "dataset.json")
    summaries = {name.replace("_", " "): read_summary(predictions / name / "summary.json") for name in MODELS}
    held_back = len(summaries["ensemble"]["metric_per_case"])
    text = f"Dice of {held_back} held-back cases\n\n{dice_table(summaries, names)}\n\n{CONVENTION}\n"
    (folder / "dice.txt").write_text(text)
    print(f"\n{text}")
    draw_overlay(
        folder / "overlay.png",
        raw / "imagesTs",
        folder / "references",
        predictions / "ensemble",
        summaries["ensemble"],
        names,
        settings.trainer,
    )
    logs = {f"fold {fold}": folder / "logs" / f"train_fold_{fold}.log" for fold in FOLDS}
    draw_training_curve(folder / "training_curve.png", logs, settings.iterations, settings.trainer)
    for label, path in (
        ("Image, reference and prediction", folder / "overlay.png"),
        ("Training curve", folder / "training_curve.png"),
        ("Predictions", predictions / "ensemble"),
        ("For the challenge's server", folder / "submission.zip"),
        ("Trained model", folder / "nnUNet_results" / DATASET / settings.model),
        ("Commands", folder / "commands.sh"),
    ):
        print(f"{label + ':':<33}{path}")
    print(
        f"\nsubmission.zip has {TASK} alone: the Decathlon's server refuses it without the other nine tasks "
        "(`nnunet-ext submit msd --help`), and here without most of this one's cases."
    )


def _found_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


@contextmanager
def termination_as_exit() -> Iterator[None]:
    """Let SIGTERM unwind the stack, so that the running commands are ended too."""
    try:
        before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    except ValueError:  # not in the main thread: Python delivers no signals here
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
