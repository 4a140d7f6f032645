"""An nnU-Net model folder around imported weights, complete for stock prediction, export and fine-tuning."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nnunet_ext import __version__
from nnunet_ext.errors import UserError
from nnunet_ext.weights.loading import Checkpoint
from nnunet_ext.weights.report import Report

CONFIGURATION = "3d_fullres"
REPORT_FILE = "import_report.json"


@dataclass(frozen=True)
class ImportedModel:
    """A network with everything that nnU-Net wants to know about it.

    Attributes:
        network: with the imported weights.
        num_classes: its outputs, background included.
        plans: with one configuration.
        dataset: the content of dataset.json.
        trainer_name: the trainer class that predicts with it.
        mirroring_axes: spatial axes that prediction may mirror; None: no mirroring.
    """

    network: nn.Module
    num_classes: int
    plans: dict[str, Any]
    dataset: dict[str, Any]
    trainer_name: str
    mirroring_axes: tuple[int, ...] | None = None


def import_record(
    checkpoint: Checkpoint, configuration: Mapping[str, Any], assumptions: Sequence[str], report: Report
) -> dict[str, Any]:
    """The content of `REPORT_FILE`: JSON values, and no path of this machine.

    Args:
        checkpoint: where the weights come from.
        configuration: the published network, as it was read off the weights.
        assumptions: what was assumed, one sentence each.
        report: what was loaded.
    """
    return {
        "source": {"file": checkpoint.file_name, "sha256": checkpoint.sha256, **checkpoint.numbers},
        "versions": {"nnunet_ext": __version__, "nnunetv2": version("nnunetv2"), "torch": str(torch.__version__)},
        "configuration": {k: list(v) if isinstance(v, tuple) else v for k, v in configuration.items()},
        "assumptions": list(assumptions),
        **report.as_dict(),
    }


def write_model_folder(
    output: str | Path, model: ImportedModel, record: Mapping[str, Any], *, overwrite: bool = False
) -> Path:
    """Write plans, data set description, fingerprint, `fold_0/checkpoint_final.pth` and the import's report.

    Everything is written beside `output` first and renamed, so `output` is either complete or untouched.

    Args:
        output: the model folder; stock commands find it by data set, trainer and plans if it is called
            nnUNet_results/DatasetXXX_Name/TRAINER__PLANS__3d_fullres.
        model: what to write.
        record: made by `import_record`.
        overwrite: replace an earlier import.

    Raises:
        UserError: the folder exists, cannot be written, or the classes do not fit.
    """
    output = Path(output).absolute()
    _check_target(output, overwrite)
    _check_heads(model)
    fingerprint = {
        "foreground_intensity_properties_per_channel": model.plans["foreground_intensity_properties_per_channel"],
        "median_relative_size_after_cropping": 1.0,
        "shapes_after_crop": [],
        "spacings": [],
    }
    temporary = output.with_name(f".{output.name}.{uuid.uuid4().hex[:8]}")
    try:
        _write(temporary, {"plans.json": model.plans, "dataset.json": model.dataset})
        _write(temporary, {"dataset_fingerprint.json": fingerprint, REPORT_FILE: record})
        _write_fold(temporary / "fold_0", model)
        _move_into_place(temporary, output)
    except OSError as error:
        raise UserError(f"cannot write the model folder {output}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return output


def _check_target(output: Path, overwrite: bool) -> None:
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not overwrite:
        raise UserError(f"{output} exists; choose another folder, or add --overwrite to replace an earlier import")
    if not (output / REPORT_FILE).is_file():
        raise UserError(f"{output} is not an earlier import (it has no {REPORT_FILE}): it is not replaced")


def _check_heads(model: ImportedModel) -> None:
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    manager = PlansManager(model.plans).get_label_manager(model.dataset)
    if manager.has_regions:
        raise UserError(
            "dataset.json describes regions; the published networks have one softmax over exclusive classes"
        )
    if manager.num_segmentation_heads != model.num_classes:
        raise UserError(
            f"dataset.json has {manager.num_segmentation_heads} classes with the background, the weights have "
            f"{model.num_classes}"
        )


def _write(folder: Path, files: Mapping[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=4) + "\n", encoding="utf-8")


def _write_fold(folder: Path, model: ImportedModel) -> None:
    """The checkpoint with all of nnU-Net's keys, and the two files without which nnU-Net does not export a model."""
    from matplotlib.figure import Figure
    from nnunetv2.training.logging.nnunet_logger import LocalLogger

    note = "Imported weights: not validated on this data set."
    _write(
        folder / "validation",
        {"summary.json": {"foreground_mean": {}, "mean": {}, "metric_per_case": [], "note": note}},
    )
    optimizer = torch.optim.SGD(model.network.parameters(), 1e-2, momentum=0.99, weight_decay=3e-5, nesterov=True)
    checkpoint = {
        "network_weights": model.network.state_dict(),
        "optimizer_state": optimizer.state_dict(),
        "grad_scaler_state": None,
        "logging": LocalLogger().get_checkpoint(),
        "_best_ema": None,
        "current_epoch": 0,
        "init_args": {
            "plans": model.plans,
            "configuration": next(iter(model.plans["configurations"])),
            "fold": 0,
            "dataset_json": model.dataset,
            "device": torch.device("cpu"),
        },
        "trainer_name": model.trainer_name,
        "inference_allowed_mirroring_axes": model.mirroring_axes,
    }
    try:
        torch.save(checkpoint, folder / "checkpoint_final.pth")
    except RuntimeError as error:  # this is how torch says that a disk is full
        raise OSError(f"checkpoint_final.pth: {str(error).splitlines()[0]}") from error
    figure = Figure(figsize=(6, 1))
    figure.text(0.5, 0.5, "Imported weights: there is no training curve.", ha="center", va="center")
    figure.savefig(folder / "progress.png")


def _move_into_place(temporary: Path, output: Path) -> None:
    """Rename; an earlier import is set aside first and comes back if the renaming fails."""
    if not output.exists():
        temporary.rename(output)
        return
    aside = output.with_name(f"{temporary.name}.old")
    output.rename(aside)
    try:
        temporary.rename(output)
    except OSError:
        aside.rename(output)
        raise
    shutil.rmtree(aside, ignore_errors=True)
