"""Plans, data set description and assumptions of networks that were trained on slices zoomed to one size.

The published pipeline (specification selfreg 3.1 to 3.3): axial slices zoomed to 224 x 224 pixels whatever their size,
one channel, a fixed window of CT numbers mapped to [0, 1].
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nnunet_ext.errors import UserError
from nnunet_ext.weights.arguments import add_dataset_arguments, dataset_options
from nnunet_ext.weights.checks import check_spacing, check_window

if TYPE_CHECKING:
    from nnunet_ext.weights.dataset_json import DatasetOptions

CONFIGURATION = "2d"
PUBLISHED_SIZE = (224, 224)
PUBLISHED_WINDOW = (-125.0, 275.0)
PUBLISHED_BATCH = 24
FILE_ENDINGS = (".nii.gz", ".nrrd", ".mha", ".gipl")
READER = "SimpleITKIO"


@dataclass(frozen=True)
class SliceOptions:
    """What the weights do not say about the images.

    Attributes:
        dataset: labels and name of the data set.
        spacing: (y, x) in mm.
        patch_size: (y, x) in pixels.
        modality: "ct" (a fixed window) or "mr" (z-score of each image).
        window: (a_min, a_max) in HU, mapped to [0, 1]; for "ct" only.
    """

    dataset: DatasetOptions
    spacing: tuple[float, float]
    patch_size: tuple[int, int] = PUBLISHED_SIZE
    modality: str = "ct"
    window: tuple[float, float] = PUBLISHED_WINDOW

    def __post_init__(self) -> None:
        check_window(self.window)
        check_spacing(self.spacing)
        if min(self.patch_size) < 16:
            raise UserError(f"patches need at least 16 x 16 pixels; got {self.patch_size}")


def add_slice_arguments(parser: argparse.ArgumentParser, dataset_name: str) -> None:
    """Add what `slice_options` reads; imports neither torch nor nnU-Net."""
    images = parser.add_argument_group("images", "for a model folder: what the weights do not say about their images")
    images.add_argument(
        "--spacing", type=float, nargs=2, metavar=("Y", "X"),
        help="mm; needed: the authors zoomed slices of any size to 224 x 224 pixels, so it is a slice's edge / 224",
    )  # fmt: skip
    images.add_argument("--patch-size", type=int, nargs=2, metavar=("Y", "X"), help="pixels; default: 224 224")
    images.add_argument("--modality", choices=("ct", "mr"), default="ct", help="default: ct")
    images.add_argument(
        "--window", type=float, nargs=2, metavar=("A_MIN", "A_MAX"),
        help="CT numbers (HU) mapped to [0, 1]; default: -125 275 (Synapse)",
    )  # fmt: skip
    add_dataset_arguments(images, ("synapse_8", "acdc"), dataset_name)


def slice_options(args: argparse.Namespace, dataset_name: str) -> SliceOptions:
    """What the user says about the images.

    Raises:
        UserError: no spacing, or something impossible.
    """
    if args.spacing is None:
        raise UserError(
            "a model folder needs --spacing Y X (mm): the authors zoomed every slice to 224 x 224 pixels whatever its "
            "size, and nnU-Net resamples to a spacing; give the edge of your slices divided by 224"
        )
    if args.modality == "mr" and args.window is not None:
        raise UserError("--window belongs to CT images; MR images are normalised by their own mean and deviation")
    given = {name: tuple(getattr(args, name)) for name in ("patch_size", "window") if getattr(args, name) is not None}
    return SliceOptions(dataset_options(args, dataset_name), tuple(args.spacing), modality=args.modality, **given)


def make_plans(
    options: SliceOptions, architecture: Mapping[str, Any], channels: int, plans_name: str, method: str
) -> dict[str, Any]:
    """The plans that rebuild the published network, with a 2d configuration.

    Args:
        options: of the images.
        architecture: the network's block.
        channels: of the images.
        plans_name: of the plans.
        method: what was imported ("swinunet").
    """
    from nnunet_ext.weights.dataset_json import default_channel_names
    from nnunet_ext.weights.plans_json import (
        CT,
        Z_SCORE,
        Channel,
        Preprocessing,
        Resampling,
        imported_plans,
        window_properties,
    )

    is_ct = options.modality == "ct"
    properties = window_properties(*(options.window if is_ct else (0.0, 1.0)))
    names = default_channel_names(options.modality, channels)
    preprocessing = Preprocessing(
        patch_size=options.patch_size,
        spacing=options.spacing,
        channels=tuple(Channel(name, CT if is_ct else Z_SCORE, False, properties) for name in names),
        resampling=Resampling(data=3, seg=1, probabilities=1, separate_z=None),
        reader=READER,
        batch_size=PUBLISHED_BATCH,
        batch_dice=True,
        median_size=tuple(float(n) for n in options.patch_size),
        original_spacing=(1.0, *options.spacing),
        original_size=(1, *options.patch_size),
    )
    return imported_plans(
        preprocessing,
        architecture,
        dataset_name=options.dataset.name,
        plans_name=plans_name,
        method=method,
        configuration=CONFIGURATION,
    )


def dataset_json(options: SliceOptions, channels: int, classes: int) -> dict[str, Any]:
    """The data set's description: the user's own, or one made of the label names.

    Raises:
        UserError: channels or classes that differ from the network's, or images that cannot be read.
    """
    from nnunet_ext.weights.dataset_json import default_channel_names, make_dataset_json

    names = default_channel_names(options.modality, channels)
    return make_dataset_json(options.dataset, names, classes, FILE_ENDINGS)


def assumptions(options: SliceOptions) -> list[str]:
    """Everything that the file does not say or that nnU-Net does differently, one sentence each."""
    y, x = options.spacing
    listed = [
        f"Slices along the files' first axis (z) are resampled to {y:g} x {x:g} mm and predicted in patches of "
        f"{options.patch_size[0]} x {options.patch_size[1]} pixels; the originals zoomed each slice to 224 x 224.",
        "Slices keep the files' orientation; those that the authors trained on may be rotated or mirrored.",
        "No mirroring at prediction: the published inference has none.",
        "The training images' statistics are unknown: median sizes in the plans and the fingerprint are stand-ins.",
    ]
    if options.modality == "ct":
        low, high = options.window
        listed.append(f"CT numbers from {low:g} to {high:g} HU are mapped to 0 to 1 and clipped.")
    else:
        listed.append("MR: each channel of an image is normalised by its mean and standard deviation.")
    return listed
