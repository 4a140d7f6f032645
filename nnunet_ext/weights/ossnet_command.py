"""`nnunet-ext import-weights ossnet`: its arguments, and the steps of the import."""

from __future__ import annotations

import argparse
import shlex
from typing import TYPE_CHECKING

from nnunet_ext.weights.arguments import add_dataset_arguments, add_file_arguments, dataset_options

if TYPE_CHECKING:
    from nnunet_ext.weights.report import Outcome

DATASET_NAME = "Dataset904_OSSNetImport"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the method's arguments; imports neither torch nor nnU-Net."""
    add_file_arguments(parser, "the authors' oss_net_{a,b,c,d}_{bra_ts,lits}.pt, or a file of their training")
    network = parser.add_argument_group("network", "what the weights do not say")
    network.add_argument(
        "--large-pooling", choices=("average", "max"), default="average",
        help="how variants B and D reduce their 14^3 windows: as the authors' training, or as their inference script "
        "does; default: average",
    )  # fmt: skip
    network.add_argument(
        "--patch-size", type=int, nargs=3, metavar=("X", "Y", "Z"),
        help="voxels of the grid that weights of your own are for; default: that of the published weights",
    )  # fmt: skip
    data = parser.add_argument_group("data set")
    add_dataset_arguments(data, (), DATASET_NAME, "whole_tumour (BraTS), liver (LiTS), class_1")


def import_weights(args: argparse.Namespace) -> Outcome:
    """Import the checkpoint.

    Raises:
        UserError: the checkpoint or an option cannot be used.
    """
    from nnunet_ext.weights.loading import read_checkpoint
    from nnunet_ext.weights.model_folder import ImportedModel, import_record, write_model_folder
    from nnunet_ext.weights.ossnet import CLASSES, build_network, canonical_state, load_weights
    from nnunet_ext.weights.ossnet_configuration import infer_configuration
    from nnunet_ext.weights.ossnet_folder import assumptions, dataset_json, make_plans, trainer_name
    from nnunet_ext.weights.report import Outcome

    dataset = dataset_options(args, DATASET_NAME)
    checkpoint = read_checkpoint(args.checkpoint)
    configuration = infer_configuration(checkpoint.state)
    patch_size, pooling = configuration.patch(args.patch_size), args.large_pooling
    network = build_network(configuration, patch_size, pooling)
    report = load_weights(network, canonical_state(checkpoint.state))
    assumed = assumptions(configuration, patch_size, pooling)
    model = ImportedModel(
        network,
        CLASSES,
        make_plans(configuration, patch_size, pooling, dataset.name),
        dataset_json(configuration, dataset),
        trainer_name(configuration),
    )
    record = import_record(checkpoint, vars(configuration), assumed, report)
    folder = write_model_folder(args.output, model, record, overwrite=args.overwrite)
    use = f"nnunet-ext predict-volume {shlex.quote(str(folder))} -i IMAGES -o PREDICTIONS"
    return Outcome(folder, report, tuple(assumed), use if configuration.data_set else "")
