"""`nnunet-ext import-weights swinunet`: its arguments, and the steps of the import."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunet_ext.architectures.swinunet_plans import NETWORK_CLASS, swinunet_architecture
from nnunet_ext.errors import UserError
from nnunet_ext.weights.arguments import add_file_arguments
from nnunet_ext.weights.slices import CONFIGURATION, add_slice_arguments, slice_options

if TYPE_CHECKING:
    from nnunet_ext.weights.loading import Checkpoint
    from nnunet_ext.weights.report import Outcome

DATASET_NAME = "Dataset902_SwinUNetImport"
PLANS_NAME, TRAINER_NAME = "SwinUNetPlans_Imported", "SwinUNetTrainer"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the method's arguments; imports neither torch nor nnU-Net."""
    add_file_arguments(
        parser,
        "a trained Swin-Unet, or Swin-T's ImageNet weights as the official repository, timm or torchvision have them "
        "(.pth, .safetensors)",
    )
    start = parser.add_argument_group("start of a training", "a checkpoint for nnU-Net's -pretrained_weights")
    start.add_argument(
        "--plans", type=Path, metavar="FILE.json",
        help="the plans to train with; then OUTPUT is a file. ImageNet weights need it; without it, a trained "
        "Swin-Unet becomes a model folder",
    )  # fmt: skip
    start.add_argument("-c", "--configuration", default=CONFIGURATION, help="of --plans; default: 2d")
    add_slice_arguments(parser, DATASET_NAME)
    parser.add_argument(
        "--channels", type=int, metavar="N", help="of your images, for a model folder; default: 1, as published"
    )


def import_weights(args: argparse.Namespace) -> Outcome:
    """Import the checkpoint.

    Raises:
        UserError: the checkpoint, the plans or an option cannot be used.
    """
    from nnunet_ext.weights.loading import read_checkpoint
    from nnunet_ext.weights.swinunet import canonical_state, layout

    checkpoint = read_checkpoint(args.checkpoint)
    kind = layout(checkpoint.state)
    state, left = canonical_state(checkpoint.state)
    if args.plans is not None:
        return _start(args, checkpoint, kind, state, left)
    if kind != "published":
        raise UserError(
            f"{checkpoint.file_name} holds ImageNet weights ({kind} layout), a start for a training: add --plans "
            "nnUNet_preprocessed/DATASET/SwinUNetPlans.json, and -o names the file to write"
        )
    return _folder(args, checkpoint, state)


def _start(
    args: argparse.Namespace, checkpoint: Checkpoint, kind: str, state: dict[str, Any], left: tuple[str, ...]
) -> Outcome:
    """Write a checkpoint for `-pretrained_weights`."""
    from dataclasses import replace

    from nnunet_ext.weights.model_folder import import_record
    from nnunet_ext.weights.report import Outcome
    from nnunet_ext.weights.saving import save_atomically
    from nnunet_ext.weights.starts import headless, seeded
    from nnunet_ext.weights.swinunet import COLOURS, initialise

    if args.output.is_dir() or (args.output.exists() and not args.overwrite):
        raise UserError(f"{args.output} exists; with --plans a file is written: choose another, or add --overwrite")
    architecture, channels, assumed = _planned(args.plans, args.configuration)
    network = seeded(architecture, channels, "SwinUNetPlanner")
    report = initialise(network, state)
    report = replace(report, left=(*report.left, *left))
    if state[COLOURS].shape[1] != channels:
        assumed.append(f"The first convolution's {state[COLOURS].shape[1]} channels were adapted to {channels}.")
    record = import_record(checkpoint, {"layout": kind}, assumed, report)
    save_atomically({"network_weights": headless(network), "import_report": record}, args.output)
    use = (
        f"nnUNetv2_train DATASET {args.configuration} FOLD -tr {TRAINER_NAME} -p {args.plans.stem} -pretrained_weights "
        f"{shlex.quote(str(args.output))}"
    )
    return Outcome(args.output, report, tuple(assumed), use)


def _planned(file: Path, configuration: str) -> tuple[dict[str, Any], int, list[str]]:
    """The plans' network, or the one that our trainer makes of them; the images' channels; what was assumed."""
    from nnunet_ext.weights.planned_network import read_planned

    planned = read_planned(file, configuration)
    patch, channels = planned.patch_size, planned.channels
    if len(patch) != 2:
        raise UserError(
            f"Swin-Unet is a 2D network; {configuration} of {file.name} has patches of {patch} voxels: give a 2D "
            "configuration to -c"
        )
    if planned.architecture["network_class_name"] == NETWORK_CLASS:
        return planned.architecture, channels, []
    note = f"{file.name} plans another network: the checkpoint is for the Swin-Unet that {TRAINER_NAME} makes of it."
    return swinunet_architecture(patch), channels, [note]


def _folder(args: argparse.Namespace, checkpoint: Checkpoint, state: dict[str, Any]) -> Outcome:
    """Write a model folder."""
    from nnunet_ext.weights.model_folder import ImportedModel, import_record, write_model_folder
    from nnunet_ext.weights.report import Outcome
    from nnunet_ext.weights.slices import assumptions, dataset_json, make_plans
    from nnunet_ext.weights.swinunet import build_network, infer_configuration, load_weights

    options, channels = slice_options(args, DATASET_NAME), 1 if args.channels is None else args.channels
    if channels < 1:
        raise UserError(f"--channels must be positive; got {channels}")
    configuration = infer_configuration(state)
    network = build_network(configuration, options.patch_size, channels)
    report = load_weights(network, state)
    assumed = assumptions(options)
    if channels != configuration.input_channels:
        assumed.append(
            f"The first convolution's {configuration.input_channels} channels, which the original fed with one image "
            f"repeated, were adapted to {channels}."
        )
    architecture = configuration.architecture(options.patch_size)
    model = ImportedModel(
        network,
        configuration.num_classes,
        make_plans(options, architecture, channels, PLANS_NAME, "swinunet"),
        dataset_json(options, channels, configuration.num_classes),
        TRAINER_NAME,
    )
    record = import_record(checkpoint, vars(configuration), assumed, report)
    folder = write_model_folder(args.output, model, record, overwrite=args.overwrite)
    return Outcome(folder, report, tuple(assumed))
