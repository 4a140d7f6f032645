"""Command-line arguments that all methods of `nnunet-ext import-weights` share; imports neither torch nor nnU-Net."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nnunet_ext.weights.dataset_json import DatasetOptions

_Group = Any  # argparse's groups have no public type


def add_file_arguments(parser: argparse.ArgumentParser, checkpoint: str) -> None:
    """Add the checkpoint, which is described as `checkpoint`, and the folder to write."""
    parser.add_argument("checkpoint", type=Path, help=f"{checkpoint}; nothing in it is executed")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the model folder to write")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier import in that folder")


def add_size_arguments(group: _Group, patch_size: str, spacing: str) -> None:
    """Add patch size and spacing, whose defaults are described by the texts."""
    group.add_argument("--patch-size", type=int, nargs=3, metavar=("Z", "Y", "X"), help=f"voxels; {patch_size}")
    group.add_argument("--spacing", type=float, nargs=3, metavar=("Z", "Y", "X"), help=f"mm; {spacing}")


def add_dataset_arguments(
    group: _Group, published: Sequence[str], default_name: str, default_labels: str = "class_1 class_2 ..."
) -> None:
    """Add labels and name of the data set.

    Args:
        group: where to.
        published: data sets whose labels have names in `dataset_json.PUBLISHED_LABELS`.
        default_name: of the data set.
        default_labels: what labels are called without the user's help.
    """
    one_of = f", or one of: {', '.join(published)}" if published else ""
    named = group.add_mutually_exclusive_group()
    named.add_argument(
        "--dataset-json", type=Path, metavar="FILE", help="the dataset.json to take labels and channels from"
    )
    named.add_argument(
        "--labels", nargs="+", metavar="NAME",
        help=f"names of the classes after the background{one_of}; default: {default_labels}",
    )  # fmt: skip
    group.add_argument("--dataset-name", metavar="DatasetXXX_NAME", help=f"default: {default_name}")


def dataset_options(args: argparse.Namespace, default_name: str) -> DatasetOptions:
    """What the user says about the data set.

    Raises:
        UserError: an impossible name, or a file that is not a dataset.json.
    """
    from nnunet_ext.weights.dataset_json import DatasetOptions, read_dataset_json

    return DatasetOptions(
        default_name if args.dataset_name is None else args.dataset_name,
        None if args.labels is None else tuple(args.labels),
        None if args.dataset_json is None else read_dataset_json(args.dataset_json),
    )
