"""An nnU-Net model folder around imported weights, complete for stock prediction, export and fine-tuning.

The published pipeline (specification sshunet 4.2, 6.3): orientation RAS, 1 mm, a fixed intensity window mapped to
[0, 1], tensors in x, y, z order. Here: `NibabelIOWithReorient`, the plan's spacing, `CTNormalization` with fixed
properties, and a network that swaps the axes.
"""

from __future__ import annotations

import json
import re
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
from nnunet_ext.weights.configuration import Configuration
from nnunet_ext.weights.loading import Checkpoint
from nnunet_ext.weights.report import Report

CONFIGURATION = "3d_fullres"
PLANS_NAME = "SSHUNetPlans_Imported"
TRAINER_NAME = "SSHUNetTrainer"
REPORT_FILE = "import_report.json"
PUBLISHED_WINDOWS = {"btcv": (-175.0, 250.0), "amos": (-991.0, 362.0)}
PUBLISHED_LABELS = {
    "btcv": [
        *("spleen", "right_kidney", "left_kidney", "gallbladder", "esophagus", "liver", "stomach", "aorta"),
        *("inferior_vena_cava", "portal_and_splenic_veins", "pancreas", "right_adrenal_gland", "left_adrenal_gland"),
    ],
    "amos": [
        *("spleen", "right_kidney", "left_kidney", "gallbladder", "esophagus", "liver", "stomach", "aorta"),
        *("postcava", "pancreas", "right_adrenal_gland", "left_adrenal_gland", "duodenum", "bladder"),
        "prostate_or_uterus",
    ],
}


@dataclass(frozen=True)
class FolderOptions:
    """What the weights do not say about the images.

    Attributes:
        modality: "ct" (fixed intensity window) or "mr" (z-score of the non-zero region).
        window: (a_min, a_max) in HU, mapped to [0, 1]; for "ct" only. None: that of the published run whose labels are
            asked for ("amos": -991, 362), else BTCV's (-175, 250).
        patch_size: (z, y, x) in voxels.
        spacing: (z, y, x) in mm.
        labels: names of classes 1, 2, ..., or ("btcv",) or ("amos",); None: class_1, class_2, ...
        dataset_json: a data set's own description, instead of `labels`.
        dataset_name: nnU-Net's name of the data set.
    """

    modality: str = "ct"
    window: tuple[float, float] | None = None
    patch_size: tuple[int, int, int] = (96, 96, 96)
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)
    labels: tuple[str, ...] | None = None
    dataset_json: Mapping[str, Any] | None = None
    dataset_name: str = "Dataset900_SSHUNetImport"

    def __post_init__(self) -> None:
        if self.modality not in ("ct", "mr"):
            raise UserError(f"modality {self.modality!r} unknown; choose ct or mr")
        if self.window is not None and self.window[0] >= self.window[1]:
            raise UserError(f"the intensity window must rise from A_MIN to A_MAX; got {self.window}")
        if min(self.spacing) <= 0:
            raise UserError(f"spacing must be positive millimetres (z, y, x); got {self.spacing}")
        if re.fullmatch(r"Dataset\d{3}_\w+", self.dataset_name) is None:
            raise UserError(f"dataset name must look like Dataset900_Name; got {self.dataset_name!r}")

    @property
    def ct_window(self) -> tuple[float, float]:
        """The window that is used for CT images."""
        if self.window is not None:
            return self.window
        run = self.labels[0] if self.labels is not None and len(self.labels) == 1 else "btcv"
        return PUBLISHED_WINDOWS.get(run, PUBLISHED_WINDOWS["btcv"])


def intensity_properties(options: FolderOptions) -> dict[str, float]:
    """One channel's properties that make nnU-Net's CT normalisation the map of the window to [0, 1], clipped.

    MR images are normalised by their own values; nnU-Net wants an entry all the same and gets the window (0, 1).
    """
    a_min, a_max = options.ct_window if options.modality == "ct" else (0.0, 1.0)
    return {
        "max": a_max,
        "mean": a_min,
        "median": (a_min + a_max) / 2,
        "min": a_min,
        "percentile_00_5": a_min,
        "percentile_99_5": a_max,
        "std": a_max - a_min,
    }


def make_dataset_json(configuration: Configuration, options: FolderOptions) -> dict[str, Any]:
    """The data set's description: the user's own, or one made of the label names.

    Raises:
        UserError: channels or classes that differ from the network's, or images that are not NIfTI.
    """
    channels, classes = configuration.input_channels, configuration.num_classes
    if options.dataset_json is not None:
        described = dict(options.dataset_json)
        named = len(described.get("channel_names", {}))
        if named != channels:
            raise UserError(f"dataset.json names {named} channels, the weights have {channels}")
        if described.get("file_ending") not in (".nii", ".nii.gz"):
            raise UserError(f"images must be .nii or .nii.gz to be reoriented; got {described.get('file_ending')!r}")
        return described
    names = [f"class_{i}" for i in range(1, classes)] if options.labels is None else list(options.labels)
    if len(names) == 1 and names[0] in PUBLISHED_LABELS and classes > 2:
        names = list(PUBLISHED_LABELS[names[0]])
    if names and names[0] == "background":
        names = names[1:]
    if len(names) != classes - 1 or len(set(names)) != len(names):
        raise UserError(f"the weights have {classes - 1} classes after the background; got labels {', '.join(names)}")
    kind = options.modality.upper()
    return {
        "name": options.dataset_name.split("_", 1)[1],
        "description": "Written by nnunet-ext import-weights; the training images are not part of it.",
        "channel_names": {str(i): kind if channels == 1 else f"{kind}{i}" for i in range(channels)},
        "labels": {"background": 0, **{name: i for i, name in enumerate(names, start=1)}},
        "numTraining": 0,
        "file_ending": ".nii.gz",
    }


def make_plans(configuration: Configuration, options: FolderOptions) -> dict[str, Any]:
    """The plans that rebuild the published network and its preprocessing."""
    channels, is_ct = configuration.input_channels, options.modality == "ct"
    linear = {"order": 1, "order_z": 0, "force_separate_z": False}
    resample = "resample_data_or_seg_to_shape"
    properties = {str(i): intensity_properties(options) for i in range(channels)}
    return {
        "dataset_name": options.dataset_name,
        "plans_name": PLANS_NAME,
        "original_median_spacing_after_transp": list(options.spacing),
        "original_median_shape_after_transp": list(options.patch_size),
        "image_reader_writer": "NibabelIOWithReorient",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {
            CONFIGURATION: {
                "data_identifier": f"{PLANS_NAME}_{CONFIGURATION}",
                "preprocessor_name": "DefaultPreprocessor",
                "batch_size": 2,
                "patch_size": list(options.patch_size),
                "median_image_size_in_voxels": [float(n) for n in options.patch_size],
                "spacing": list(options.spacing),
                "normalization_schemes": ["CTNormalization" if is_ct else "ZScoreNormalization"] * channels,
                "use_mask_for_norm": [not is_ct] * channels,
                "resampling_fn_data": resample,
                "resampling_fn_data_kwargs": {"is_seg": False, **linear},
                "resampling_fn_seg": resample,
                "resampling_fn_seg_kwargs": {"is_seg": True, **linear},
                "resampling_fn_probabilities": resample,
                "resampling_fn_probabilities_kwargs": {"is_seg": False, **linear},
                "batch_dice": False,
                "architecture": configuration.architecture(axes="xyz"),
            }
        },
        "experiment_planner_used": "nnunet-ext import-weights",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": properties,
        "nnunet_ext": {"version": __version__, "imported": "sshunet"},
    }


def assumptions(configuration: Configuration, options: FolderOptions, told_gates: bool) -> list[str]:
    """Everything that the file does not say or that nnU-Net does differently, one sentence each."""
    z, y, x = options.spacing
    listed = [
        f"Images are reoriented to RAS and resampled (linearly) to {z:g} x {y:g} x {x:g} mm (z, y, x); the network "
        "sees them in x, y, z order.",
        "No mirroring at prediction: the published inference has none.",
        "nnU-Net crops to the non-zero region and normalises before it resamples; the original resamples first.",
        "The training images' statistics are unknown: median sizes in the plans and the fingerprint are stand-ins.",
    ]
    if configuration.gate in ("tsm", "none"):
        source = "as told" if told_gates else "the published setting"
        encoder, decoder = list(map(int, configuration.gate_stages)), list(map(int, configuration.gate_decoder))
        listed.append(
            f"The file cannot show a parameter-free gate: {configuration.gate} ({source}), encoder blocks "
            f"{encoder} (full resolution first), decoder blocks {decoder} (lowest first)."
        )
    if options.modality == "ct":
        low, high = options.ct_window
        listed += [
            f"CT numbers from {low:g} to {high:g} HU are mapped to 0 to 1 and clipped.",
            "Small images are padded with the window's lower end; the original pads with 0 HU and crops by the window.",
        ]
    else:
        listed.append(
            "MR: z-score over the non-zero region with its holes filled, in the whole image; the original leaves out "
            "zeros inside it too, and normalises patches while training."
        )
    if configuration.vfn:
        listed.append(
            "VFN fuses the views in their own axis orders, as the published code does (vfn_alignment legacy)."
        )
    return listed


def write_model_folder(
    output: str | Path,
    network: nn.Module,
    configuration: Configuration,
    options: FolderOptions,
    checkpoint: Checkpoint,
    report: Report,
    *,
    told_gates: bool = False,
    overwrite: bool = False,
) -> Path:
    """Write plans, data set description, fingerprint, `fold_0/checkpoint_final.pth` and the import's report.

    Everything is written beside `output` first and renamed, so `output` is either complete or untouched.

    Args:
        output: the model folder; stock commands find it by data set, trainer and plans if it is called
            nnUNet_results/DatasetXXX_Name/SSHUNetTrainer__SSHUNetPlans_Imported__3d_fullres.
        network: with the imported weights.
        configuration: the published network.
        options: what the weights do not say.
        checkpoint: where the weights come from.
        report: what was loaded.
        told_gates: whether the gates were given rather than assumed.
        overwrite: replace an earlier import.

    Raises:
        UserError: the folder exists, the patch size is impossible, or channels or classes do not fit.
    """
    output = Path(output).absolute()
    _check_target(output, overwrite)
    _check_patch(network, options.patch_size)
    plans, dataset = make_plans(configuration, options), make_dataset_json(configuration, options)
    _check_heads(plans, dataset, configuration.num_classes)
    properties = plans["foreground_intensity_properties_per_channel"]
    fingerprint = {
        "foreground_intensity_properties_per_channel": properties,
        "median_relative_size_after_cropping": 1.0,
        "shapes_after_crop": [],
        "spacings": [],
    }
    record = {
        "source": {"file": checkpoint.file_name, "sha256": checkpoint.sha256, **checkpoint.numbers},
        "versions": {"nnunet_ext": __version__, "nnunetv2": version("nnunetv2"), "torch": torch.__version__},
        "configuration": {k: list(v) if isinstance(v, tuple) else v for k, v in vars(configuration).items()},
        "assumptions": assumptions(configuration, options, told_gates),
        **report.as_dict(),
    }
    temporary = output.with_name(f".{output.name}.{uuid.uuid4().hex[:8]}")
    try:
        _write(temporary, {"plans.json": plans, "dataset.json": dataset, "dataset_fingerprint.json": fingerprint})
        _write(temporary, {REPORT_FILE: record})
        _write_fold(temporary / "fold_0", network, plans, dataset)
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


def _check_patch(network: Any, patch_size: Sequence[int]) -> None:
    try:
        network.check_patch_size(patch_size)
    except ValueError as error:
        raise UserError(str(error)) from error


def _check_heads(plans: dict[str, Any], dataset: dict[str, Any], classes: int) -> None:
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    manager = PlansManager(plans).get_label_manager(dataset)
    if manager.has_regions:
        raise UserError(
            "dataset.json describes regions; the published networks have one softmax over exclusive classes"
        )
    if manager.num_segmentation_heads != classes:
        raise UserError(
            f"dataset.json has {manager.num_segmentation_heads} classes with the background, the weights have {classes}"
        )


def _write(folder: Path, files: Mapping[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=4) + "\n", encoding="utf-8")


def _write_fold(folder: Path, network: nn.Module, plans: dict[str, Any], dataset: dict[str, Any]) -> None:
    """The checkpoint with all of nnU-Net's keys, and the two files without which nnU-Net does not export a model."""
    from matplotlib.figure import Figure
    from nnunetv2.training.logging.nnunet_logger import LocalLogger

    note = "Imported weights: not validated on this data set."
    _write(
        folder / "validation",
        {"summary.json": {"foreground_mean": {}, "mean": {}, "metric_per_case": [], "note": note}},
    )
    optimizer = torch.optim.SGD(network.parameters(), 1e-2, momentum=0.99, weight_decay=3e-5, nesterov=True)
    checkpoint = {
        "network_weights": network.state_dict(),
        "optimizer_state": optimizer.state_dict(),
        "grad_scaler_state": None,
        "logging": LocalLogger().get_checkpoint(),
        "_best_ema": None,
        "current_epoch": 0,
        "init_args": {
            "plans": plans,
            "configuration": CONFIGURATION,
            "fold": 0,
            "dataset_json": dataset,
            "device": torch.device("cpu"),
        },
        "trainer_name": TRAINER_NAME,
        "inference_allowed_mirroring_axes": None,
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
