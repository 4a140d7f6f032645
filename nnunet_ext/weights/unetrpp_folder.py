"""Plans, data set description and assumptions of an imported UNETR++ (specification unetrpp 2.4, 2.5)."""

from __future__ import annotations

from typing import Any

from nnunet_ext.weights.dataset_json import DatasetOptions, make_dataset_json
from nnunet_ext.weights.nnunet_v1 import FILE_ENDINGS, V1Plans
from nnunet_ext.weights.plans_json import CT, Z_SCORE, Preprocessing, imported_plans
from nnunet_ext.weights.unetrpp_configuration import Configuration

PLANS_NAME = "UNETRPPPlans_Imported"
TRAINER_NAME = "UNETRPPTrainer"
MIRRORING_AXES = (0, 1, 2)
"""What the published inference mirrors."""


def make_plans(configuration: Configuration, preprocessing: Preprocessing, dataset_name: str) -> dict[str, Any]:
    """The plans that rebuild the published network and its preprocessing."""
    architecture = configuration.architecture(preprocessing.patch_size)
    return imported_plans(
        preprocessing, architecture, dataset_name=dataset_name, plans_name=PLANS_NAME, method="unetrpp"
    )


def dataset_json(configuration: Configuration, preprocessing: Preprocessing, dataset: DatasetOptions) -> dict[str, Any]:
    """The data set's description: the user's own, or one made of the names of labels and channels.

    Raises:
        UserError: channels or classes that differ from the network's, or images that cannot be read.
    """
    names = [channel.name for channel in preprocessing.channels]
    return make_dataset_json(dataset, names, configuration.num_classes, FILE_ENDINGS)


def assumptions(
    configuration: Configuration,
    preprocessing: Preprocessing,
    dataset: DatasetOptions,
    plans: V1Plans | None,
    beside: bool,
) -> list[str]:
    """Everything that the weights do not say or that nnU-Net does differently, one sentence each.

    Args:
        configuration: of the weights.
        preprocessing: of the images.
        dataset: what the user says about it.
        plans: nnU-Net v1's; None: the user described the images.
        beside: the plans were found beside the checkpoint.
    """
    spacing, patch_size = _times(preprocessing.spacing), _times(preprocessing.patch_size)
    listed = [f"Images are resampled to {spacing} mm and predicted in patches of {patch_size} voxels (z, y, x)."]
    if preprocessing.patch_size != configuration.published_patch:
        listed.append(
            f"The weights show the numbers of tokens only: that a patch is {patch_size} voxels in this order (z, y, x) "
            "is not checked."
        )
    if plans is None:
        listed.append("The training images are unknown: median sizes in the plans and the fingerprint are stand-ins.")
    else:
        where = ", found beside the checkpoint" if beside else ""
        listed.append(f"Spacing, normalisation and axis order are those of {plans.file_name}{where}.")
    listed += [_normalization(preprocessing), "nnU-Net normalises before it resamples; nnU-Net v1 resampled first."]
    if configuration.variant is not None and dataset.labels is None and dataset.own is None:
        listed.append(
            f"The file has no names of the labels, they are class_1, ...; for the published {configuration.variant} "
            f"weights add --labels {configuration.variant}."
        )
    return [
        *listed,
        "The spatial attention's tokens are in the published order (sa_layout legacy), which the weights are for.",
        "Prediction mirrors along all three axes, as published.",
    ]


def _normalization(preprocessing: Preprocessing) -> str:
    schemes = {channel.normalization for channel in preprocessing.channels}
    if schemes == {CT}:
        return "CT numbers are clipped to the percentiles and scaled by mean and standard deviation of the foreground."
    if schemes == {Z_SCORE}:
        masked = {channel.use_mask for channel in preprocessing.channels}
        region = "the non-zero region" if masked == {True} else "the whole image" if masked == {False} else "its mask"
        return f"Each channel of an image is normalised by its mean and standard deviation in {region}."
    return f"Channels are normalised by {', '.join(channel.normalization for channel in preprocessing.channels)}."


def _times(values: tuple[float, ...]) -> str:
    return " x ".join(f"{value:g}" for value in values)
