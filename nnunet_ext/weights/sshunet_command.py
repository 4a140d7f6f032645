"""`nnunet-ext import-weights sshunet`: its arguments, and the steps of the import."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from nnunet_ext.errors import UserError
from nnunet_ext.weights.arguments import (
    add_dataset_arguments,
    add_file_arguments,
    add_size_arguments,
    dataset_options,
)

if TYPE_CHECKING:
    from nnunet_ext.weights.report import Outcome
    from nnunet_ext.weights.sshunet_folder import FolderOptions

DATASET_NAME = "Dataset900_SSHUNetImport"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the method's arguments; imports neither torch nor nnU-Net."""
    add_file_arguments(parser, "the authors' .pt file")
    gates = parser.add_argument_group("gates", "what files of TSM networks cannot show; default: the published setting")
    gates.add_argument("--gate", choices=("tsm", "none", "gsm", "gsf"), help="default: tsm, or what the file shows")
    gates.add_argument(
        "--gate-pos", type=int, nargs="+", metavar="I", help="gated levels below full resolution; default: all"
    )
    gates.add_argument("--no-gate-bottleneck", action="store_true", help="the bottleneck is not gated")
    gates.add_argument("--no-gate-decoder", action="store_true", help="the decoder is not gated")
    images = parser.add_argument_group("images", "what the weights do not say about their images")
    images.add_argument("--modality", choices=("ct", "mr"), default="ct", help="default: ct")
    images.add_argument(
        "--window", type=float, nargs=2, metavar=("A_MIN", "A_MAX"),
        help="CT numbers (HU) mapped to [0, 1]; default: -175 250 (BTCV), with --labels amos -991 362",
    )  # fmt: skip
    add_size_arguments(images, "default: 96 96 96", "default: 1 1 1")
    add_dataset_arguments(images, ("btcv", "amos"), DATASET_NAME)


def import_weights(args: argparse.Namespace) -> Outcome:
    """Import the checkpoint.

    Raises:
        UserError: the checkpoint or an option cannot be used.
    """
    from nnunet_ext.weights.loading import read_checkpoint
    from nnunet_ext.weights.model_folder import ImportedModel, import_record, write_model_folder
    from nnunet_ext.weights.report import Outcome
    from nnunet_ext.weights.sshunet import build_network, canonical_state, load_weights
    from nnunet_ext.weights.sshunet_configuration import GateChoice, infer_configuration
    from nnunet_ext.weights.sshunet_folder import TRAINER_NAME, assumptions, check_patch, dataset_json, make_plans

    options = _folder_options(args)
    choice = GateChoice(
        args.gate,
        None if args.gate_pos is None else tuple(args.gate_pos),
        False if args.no_gate_bottleneck else None,
        False if args.no_gate_decoder else None,
    )
    checkpoint = read_checkpoint(args.checkpoint)
    state, aliases = canonical_state(checkpoint.state)
    configuration = infer_configuration(state, choice)
    network = build_network(configuration)
    report = replace(load_weights(network, state, configuration), dropped_aliases=aliases)
    check_patch(network, options.patch_size)
    assumed = assumptions(configuration, options, told_gates=choice != GateChoice())
    plans, dataset = make_plans(configuration, options), dataset_json(configuration, options)
    model = ImportedModel(network, configuration.num_classes, plans, dataset, TRAINER_NAME)
    record = import_record(checkpoint, vars(configuration), assumed, report)
    folder = write_model_folder(args.output, model, record, overwrite=args.overwrite)
    return Outcome(folder, report, tuple(assumed))


def _folder_options(args: argparse.Namespace) -> FolderOptions:
    from nnunet_ext.weights.sshunet_folder import FolderOptions

    if args.modality == "mr" and args.window is not None:
        raise UserError("--window belongs to CT images; MR images are normalised by their own mean and deviation")
    given: dict[str, Any] = {"modality": args.modality}
    for name in ("window", "patch_size", "spacing"):
        if getattr(args, name) is not None:
            given[name] = tuple(getattr(args, name))
    return FolderOptions(dataset_options(args, DATASET_NAME), **given)
