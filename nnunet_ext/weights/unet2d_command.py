"""`nnunet-ext import-weights unet2d`: its arguments, and the steps of the import."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from nnunet_ext.weights.arguments import add_file_arguments
from nnunet_ext.weights.slices import add_slice_arguments, slice_options

if TYPE_CHECKING:
    from nnunet_ext.weights.report import Outcome

DATASET_NAME = "Dataset903_UNet2dImport"
PLANS_NAME, TRAINER_NAME = "UNet2dPlans_Imported", "nnUNetTrainerNoDeepSupervision"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the method's arguments; imports neither torch nor nnU-Net."""
    add_file_arguments(parser, "the authors' .pth file, or another one of milesial/Pytorch-UNet's network")
    add_slice_arguments(parser, DATASET_NAME)


def import_weights(args: argparse.Namespace) -> Outcome:
    """Import the checkpoint.

    Raises:
        UserError: the checkpoint or an option cannot be used.
    """
    from nnunet_ext.weights.loading import read_checkpoint
    from nnunet_ext.weights.model_folder import ImportedModel, import_record, write_model_folder
    from nnunet_ext.weights.report import Outcome
    from nnunet_ext.weights.slices import assumptions, dataset_json, make_plans
    from nnunet_ext.weights.unet2d import build_network, infer_configuration, load_weights

    checkpoint = read_checkpoint(args.checkpoint)
    configuration = infer_configuration(checkpoint.state)
    options = slice_options(args, DATASET_NAME)
    network = build_network(configuration)
    report = load_weights(network, checkpoint.state)
    assumed = assumptions(options)
    channels, classes = configuration.input_channels, configuration.num_classes
    model = ImportedModel(
        network,
        classes,
        make_plans(options, configuration.architecture, channels, PLANS_NAME, "unet2d"),
        dataset_json(options, channels, classes),
        TRAINER_NAME,
    )
    record = import_record(checkpoint, vars(configuration), assumed, report)
    folder = write_model_folder(args.output, model, record, overwrite=args.overwrite)
    return Outcome(folder, report, tuple(assumed))
