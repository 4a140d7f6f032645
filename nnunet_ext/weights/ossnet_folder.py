"""Plans, data set description and assumptions of an imported OSS-Net (specification ossnet 2.1, 2.2, 6.11)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nnunet_ext.weights.dataset_json import DatasetOptions, default_channel_names, make_dataset_json
from nnunet_ext.weights.ossnet_configuration import Configuration
from nnunet_ext.weights.plans_json import Z_SCORE, Channel, Preprocessing, Resampling, imported_plans, window_properties

PLANS_NAME, TRAINER = "OSSNetPlans_Published", "OSSNetTrainer"
FILE_ENDINGS = (".nii.gz",)
READER = "SimpleITKIO"
CHANNELS = {"brats2020": ("flair", "t1", "t1ce", "t2"), "lits": ("CT",)}
LABELS = {"brats2020": "whole_tumour", "lits": "liver"}
SIZES = {"brats2020": (240, 240, 155), "lits": (512, 512, 512)}
"""Voxels (x, y, z) of a usual image as it is prepared, before padding."""
BATCH = {"brats2020": 4, "lits": 2}  # a GPU, of the published training
_REVERSED = (2, 1, 0)  # nnU-Net reads (z, y, x); the network was trained on (x, y, z)


def trainer_name(configuration: Configuration) -> str:
    """The trainer whose recipe the network is of; the plain one for networks that were not published."""
    variant = configuration.variant
    return TRAINER if variant is None else f"{TRAINER}_Published_{variant}"


def make_plans(
    configuration: Configuration, patch_size: Sequence[int], large_pooling: str, dataset_name: str
) -> dict[str, Any]:
    """The plans that rebuild the network, for images of `patch_size` voxels (x, y, z) of 1 mm.

    Published networks' plans name the preparation of their cases (`nnunet_ext.inference.published_volume`).
    """
    kind, c = configuration.data_set, configuration
    size = SIZES.get(kind or "", tuple(patch_size))
    names = CHANNELS.get(kind or "", default_channel_names("mr", c.input_channels))
    preprocessing = Preprocessing(
        patch_size=tuple(patch_size),
        spacing=(1.0, 1.0, 1.0),
        channels=tuple(Channel(name, Z_SCORE, False, window_properties(0.0, 1.0)) for name in names),
        resampling=Resampling(data=1, seg=0, probabilities=1, separate_z=False),
        reader=READER,
        batch_size=BATCH.get(kind or "", 2),
        batch_dice=False,
        median_size=tuple(float(edge) for edge in size),
        original_spacing=(1.0, 1.0, 1.0),
        original_size=size,
        transpose_forward=_REVERSED,
        transpose_backward=_REVERSED,
    )
    plans = imported_plans(
        preprocessing,
        c.architecture(patch_size, large_pooling),
        dataset_name=dataset_name,
        plans_name=PLANS_NAME,
        method="ossnet",
    )
    if kind is not None:
        plans["nnunet_ext"]["case_adapter"] = kind
    return plans


def dataset_json(configuration: Configuration, dataset: DatasetOptions) -> dict[str, Any]:
    """The data set's description: the user's own, or one with the published label.

    Raises:
        UserError: channels or classes that differ from the network's, or images that cannot be read.
    """
    kind = configuration.data_set
    names = CHANNELS.get(kind or "", default_channel_names("mr", configuration.input_channels))
    if dataset.own is None and dataset.labels is None and kind is not None:
        dataset = DatasetOptions(dataset.name, (LABELS[kind],))
    return make_dataset_json(dataset, names, 2, FILE_ENDINGS)


def assumptions(configuration: Configuration, patch_size: Sequence[int], large_pooling: str) -> list[str]:
    """Everything that the file does not say or that is not as the authors published it, one sentence each."""
    kind, size = configuration.data_set, " x ".join(map(str, patch_size))
    listed = [f"The network is for a grid of {size} voxels (x, y, z, in the order in which the files store them)."]
    if kind == "brats2020":
        listed.append(
            "BraTS 2020: channels flair, t1, t1ce, t2, each normalised over its whole image, padded with zeros and "
            "cropped back; the only label is the whole tumour."
        )
    elif kind == "lits":
        listed.append(
            "LiTS: CT numbers normalised over the whole image without a window, resized to the grid whatever the "
            "spacing; the only label is the liver with its tumours."
        )
    else:
        listed.append(
            "The weights are none of the published ones: nnU-Net crops and normalises each channel over the whole "
            "image, and images are expected at 1 mm."
        )
    if kind is not None:
        listed.append(
            "nnunet-ext predict-volume prepares cases so; nnUNetv2_predict_from_modelfolder runs too, but with "
            "nnU-Net's own cropping, resampling and padding, which these weights were not trained with."
        )
    if configuration.large_patches:
        trained = "as in the authors' training" if large_pooling == "average" else "as in the authors' inference script"
        listed.append(f"Large windows are reduced by their {large_pooling}, {trained} (they differ).")
    if configuration.variant is None:
        listed.append("The network is none of the paper's table (ONet, A, B, C, D).")
    return [
        *listed,
        "The published network has one logit; here it is that of the second class, and the background's is 0.",
        "No mirroring at prediction: the network knows positions.",
        "The training images' statistics are unknown: sizes in the plans and the fingerprint are stand-ins.",
    ]
