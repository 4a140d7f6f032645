"""`nnunet-ext import-weights nnformer`: its arguments, and the steps of the import."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunet_ext.architectures.nnformer_plans import NETWORK_CLASS, translated_architecture
from nnunet_ext.errors import UserError
from nnunet_ext.weights.arguments import add_file_arguments

if TYPE_CHECKING:
    from nnunet_ext.weights.nnformer_layouts import Found
    from nnunet_ext.weights.report import Outcome

CONFIGURATION, TRAINER_NAME = "3d_fullres", "NNFormerTrainer"
NO_TABLE = (
    "Published files have no position table (Alice's is random and was never saved): it is zero, nothing is added to "
    "the tokens."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the method's arguments; imports neither torch nor nnU-Net."""
    add_file_arguments(
        parser,
        "a checkpoint of Alice's pre-training (raw, or extracted by its script), or of nnFormer (.model); OUTPUT is a "
        "file for nnU-Net's -pretrained_weights",
    )
    parser.add_argument(
        "--plans", type=Path, metavar="FILE.json", required=True, help="the plans to train with afterwards"
    )
    parser.add_argument(
        "-c", "--configuration", default=CONFIGURATION, help=f"of --plans; default: {CONFIGURATION}"
    )  # fmt: skip
    parser.add_argument(
        "--network", choices=("student", "teacher"), help="of a raw checkpoint of Alice; default: the teacher"
    )


def import_weights(args: argparse.Namespace) -> Outcome:
    """Write a start for a training.

    Raises:
        UserError: the checkpoint, the plans or an option cannot be used.
    """
    from nnunet_ext.weights.model_folder import import_record
    from nnunet_ext.weights.nnformer import infer_configuration, initialise
    from nnunet_ext.weights.nnformer_layouts import read_backbone
    from nnunet_ext.weights.report import Outcome
    from nnunet_ext.weights.saving import save_atomically
    from nnunet_ext.weights.starts import headless, seeded

    if args.output.is_dir() or (args.output.exists() and not args.overwrite):
        raise UserError(f"{args.output} exists; a file is written: choose another, or add --overwrite")
    found = read_backbone(args.checkpoint, args.network)
    configuration = infer_configuration(found.checkpoint.state)
    architecture, channels, assumed = _planned(args.plans, args.configuration)
    network = seeded(architecture, channels, "NNFormerPlanner")
    report, notes = initialise(network, found.checkpoint.state)
    assumed = [*_chosen(found, args.network), *assumed, NO_TABLE, *notes]
    record = import_record(
        found.checkpoint, {"layout": found.layout, "network": found.network, **vars(configuration)}, assumed, report
    )
    save_atomically({"network_weights": headless(network), "import_report": record}, args.output)
    use = (
        f"nnUNetv2_train DATASET {args.configuration} FOLD -tr {TRAINER_NAME} -p {args.plans.stem} -pretrained_weights "
        f"{shlex.quote(str(args.output))}"
    )
    return Outcome(args.output, report, tuple(assumed), use)


def _chosen(found: Found, wanted: str | None) -> list[str]:
    if found.network is None or wanted is not None:
        return []
    return [f"The {found.network}'s weights were taken; --network student takes the student's."]


def _planned(file: Path, configuration: str) -> tuple[dict[str, Any], int, list[str]]:
    """The plans' network, or the one that our trainer makes of them; the images' channels; what was assumed."""
    from nnunet_ext.weights.planned_network import read_planned

    planned = read_planned(file, configuration)
    if len(planned.patch_size) != 3:
        raise UserError(
            f"nnFormer is a 3D network; {configuration} of {file.name} has patches of {planned.patch_size}: give a 3D "
            "configuration to -c"
        )
    if planned.architecture["network_class_name"] == NETWORK_CLASS:
        return planned.architecture, planned.channels, []
    strides = planned.architecture.get("arch_kwargs", {}).get("strides")
    if not strides:
        raise UserError(
            f"{file.name} plans a network without strides that could be translated to nnFormer: plan with "
            "NNFormerPlanner"
        )
    try:
        architecture = translated_architecture(strides, planned.patch_size)
    except ValueError as error:
        raise UserError(str(error)) from error
    note = f"{file.name} plans another network: the checkpoint is for the nnFormer that {TRAINER_NAME} makes of it."
    return architecture, planned.channels, [note]
