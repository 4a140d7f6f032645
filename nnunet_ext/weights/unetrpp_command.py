"""`nnunet-ext import-weights unetrpp`: its arguments, and the steps of the import."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from nnunet_ext.errors import UserError
from nnunet_ext.weights.arguments import (
    add_dataset_arguments,
    add_file_arguments,
    add_size_arguments,
    dataset_options,
)

if TYPE_CHECKING:
    from nnunet_ext.weights.nnunet_v1 import V1Plans
    from nnunet_ext.weights.report import Outcome
    from nnunet_ext.weights.unetrpp_images import ImageOptions

DATASET_NAME = "Dataset901_UNETRPPImport"
PUBLISHED = ("synapse", "acdc", "lung", "brats")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the method's arguments; imports neither torch nor nnU-Net."""
    add_file_arguments(parser, "the authors' model_final_checkpoint.model")
    parser.add_argument(
        "--plans", type=Path, metavar="FILE.pkl",
        help="nnU-Net v1's plans, or the .model.pkl of the checkpoint; default: CHECKPOINT.pkl if that file exists; "
        "nothing in it is executed",
    )  # fmt: skip
    images = parser.add_argument_group("images", "what the weights do not say, where there are no plans")
    add_size_arguments(images, "with plans, too, where theirs does not fit", "of the resampled images")
    images.add_argument(
        "--unpublished-patch", action="store_true",
        help="take another patch size than that of the published network with as many tokens: for weights of your own",
    )  # fmt: skip
    images.add_argument("--modality", choices=("ct", "mr"), help="how images are normalised")
    images.add_argument(
        "--intensities", nargs="+", action="append", metavar="KEY=VALUE",
        help="CT: mean, std, percentile_00_5 and percentile_99_5 of the training images' foreground (HU); "
        "once for each channel",
    )  # fmt: skip
    images.add_argument(
        "--non-zero-mask", action="store_true", help="MR: normalise within the non-zero region (published: BraTS)"
    )
    add_dataset_arguments(parser.add_argument_group("data set"), PUBLISHED, DATASET_NAME)


def import_weights(args: argparse.Namespace) -> Outcome:
    """Import the checkpoint.

    Raises:
        UserError: the checkpoint, the plans or an option cannot be used.
    """
    from nnunet_ext.weights.loading import read_checkpoint
    from nnunet_ext.weights.model_folder import ImportedModel, import_record, write_model_folder
    from nnunet_ext.weights.report import Outcome
    from nnunet_ext.weights.unetrpp import build_network, canonical_state, load_weights
    from nnunet_ext.weights.unetrpp_configuration import infer_configuration
    from nnunet_ext.weights.unetrpp_folder import MIRRORING_AXES, TRAINER_NAME, assumptions, dataset_json, make_plans
    from nnunet_ext.weights.unetrpp_images import planned_preprocessing, told_preprocessing

    options, dataset = _image_options(args), dataset_options(args, DATASET_NAME)
    checkpoint = read_checkpoint(args.checkpoint)
    state, aliases = canonical_state(checkpoint.state)
    configuration = infer_configuration(state)
    v1_plans = _plans(args, options)
    assumed: list[str] = []
    if v1_plans is None:
        preprocessing = told_preprocessing(configuration, options)
    else:
        preprocessing, assumed = planned_preprocessing(configuration, v1_plans, options)
    network = build_network(configuration, preprocessing.patch_size)
    report = replace(load_weights(network, state, configuration), dropped_aliases=aliases)
    assumed += assumptions(configuration, preprocessing, dataset, v1_plans, beside=args.plans is None)
    model = ImportedModel(
        network,
        configuration.num_classes,
        make_plans(configuration, preprocessing, dataset.name),
        dataset_json(configuration, preprocessing, dataset),
        TRAINER_NAME,
        MIRRORING_AXES,
    )
    record = import_record(checkpoint, vars(configuration), assumed, report)
    folder = write_model_folder(args.output, model, record, overwrite=args.overwrite)
    return Outcome(folder, report, tuple(assumed))


def _image_options(args: argparse.Namespace) -> ImageOptions:
    from nnunet_ext.weights.unetrpp_images import ImageOptions, parse_intensities

    return ImageOptions(
        None if args.patch_size is None else tuple(args.patch_size),
        None if args.spacing is None else tuple(args.spacing),
        args.modality,
        None if args.intensities is None else parse_intensities(args.intensities),
        args.non_zero_mask,
        args.unpublished_patch,
    )


def _plans(args: argparse.Namespace, options: ImageOptions) -> V1Plans | None:
    """The plans that are named, or lie beside the checkpoint where the user does not say what they would say."""
    from nnunet_ext.weights.nnunet_v1 import read_plans

    if args.plans is not None:
        if options.replaces_plans:
            raise UserError(
                "--plans already says what --spacing, --modality, --intensities and --non-zero-mask say; leave out "
                "the former or the latter"
            )
        return read_plans(args.plans)
    beside = args.checkpoint.with_name(f"{args.checkpoint.name}.pkl")
    return read_plans(beside) if beside.is_file() and not options.replaces_plans else None
