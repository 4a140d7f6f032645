"""The plans.json of an imported model: how its images are prepared, and its network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nnunet_ext import __version__
from nnunet_ext.weights.model_folder import CONFIGURATION

CT, Z_SCORE, NO_NORMALIZATION = "CTNormalization", "ZScoreNormalization", "NoNormalization"
INTENSITIES = ("max", "mean", "median", "min", "percentile_00_5", "percentile_99_5", "std")
"""Properties of the foreground's intensities that nnU-Net lists for a channel."""


@dataclass(frozen=True)
class Channel:
    """One channel of the images.

    Attributes:
        name: for people, and for nnU-Net's planners where the model's data set is planned anew.
        normalization: nnU-Net's class, such as `CT` or `Z_SCORE`.
        use_mask: normalise within the non-zero region only.
        intensities: every one of `INTENSITIES`, in the units of the images; used by `CT`.
    """

    name: str
    normalization: str
    use_mask: bool
    intensities: Mapping[str, float]


@dataclass(frozen=True)
class Resampling:
    """Orders of the splines that nnU-Net resamples with.

    Attributes:
        data, seg, probabilities: orders in the plane, or everywhere where no axis is treated separately.
        separate_z: whether the coarsest axis is resampled separately, to nearest neighbours; None: nnU-Net decides by
            the spacing.
    """

    data: int
    seg: int
    probabilities: int
    separate_z: bool | None


@dataclass(frozen=True)
class Preprocessing:
    """What happens to images before the network sees them, and the sizes that come with it.

    Attributes:
        patch_size: (z, y, x) in voxels, axes transposed; (y, x) for slices.
        spacing: (z, y, x) in mm, axes transposed; (y, x) for slices.
        channels: of the images.
        resampling: how images come to `spacing`.
        reader: nnU-Net's image reader.
        batch_size: patches a training step.
        batch_dice: whether the training's Dice is that of the whole batch.
        median_size: as many axes as the patch, in voxels, of a usual image at `spacing`, axes transposed.
        original_spacing: (z, y, x) in mm of a usual image, axes transposed.
        original_size: (z, y, x) in voxels of a usual image, axes transposed.
        transpose_forward: new order of the axes of an image as it is read.
        transpose_backward: the inverse.
    """

    patch_size: tuple[int, ...]
    spacing: tuple[float, ...]
    channels: tuple[Channel, ...]
    resampling: Resampling
    reader: str
    batch_size: int
    batch_dice: bool
    median_size: tuple[float, ...]
    original_spacing: tuple[float, ...]
    original_size: tuple[float, ...]
    transpose_forward: tuple[int, ...] = (0, 1, 2)
    transpose_backward: tuple[int, ...] = (0, 1, 2)


def window_properties(low: float, high: float) -> dict[str, float]:
    """One channel's intensities that make nnU-Net's CT normalisation the map of a window to [0, 1], clipped.

    Args:
        low: the window's lower end, in the units of the images.
        high: its upper end.
    """
    return {
        "max": high,
        "mean": low,
        "median": (low + high) / 2,
        "min": low,
        "percentile_00_5": low,
        "percentile_99_5": high,
        "std": high - low,
    }


def imported_plans(
    preprocessing: Preprocessing,
    architecture: Mapping[str, Any],
    *,
    dataset_name: str,
    plans_name: str,
    method: str,
    configuration: str = CONFIGURATION,
) -> dict[str, Any]:
    """The content of plans.json.

    Args:
        preprocessing: of the images.
        architecture: the `architecture` block of the network.
        dataset_name: nnU-Net's name of the data set.
        plans_name: of the plans.
        method: what was imported ("sshunet").
        configuration: its name; "2d" for a preprocessing with two axes.
    """
    return {
        "dataset_name": dataset_name,
        "plans_name": plans_name,
        "original_median_spacing_after_transp": list(preprocessing.original_spacing),
        "original_median_shape_after_transp": list(preprocessing.original_size),
        "image_reader_writer": preprocessing.reader,
        "transpose_forward": list(preprocessing.transpose_forward),
        "transpose_backward": list(preprocessing.transpose_backward),
        "configurations": {configuration: _configuration(preprocessing, architecture, plans_name, configuration)},
        "experiment_planner_used": "nnunet-ext import-weights",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {
            str(i): dict(channel.intensities) for i, channel in enumerate(preprocessing.channels)
        },
        "nnunet_ext": {"version": __version__, "imported": method},
    }


def _configuration(
    preprocessing: Preprocessing, architecture: Mapping[str, Any], plans_name: str, configuration: str
) -> dict[str, Any]:
    resampling = preprocessing.resampling
    orders = {"data": resampling.data, "seg": resampling.seg, "probabilities": resampling.probabilities}
    block: dict[str, Any] = {
        "data_identifier": f"{plans_name}_{configuration}",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": preprocessing.batch_size,
        "patch_size": list(preprocessing.patch_size),
        "median_image_size_in_voxels": list(preprocessing.median_size),
        "spacing": list(preprocessing.spacing),
        "normalization_schemes": [channel.normalization for channel in preprocessing.channels],
        "use_mask_for_norm": [channel.use_mask for channel in preprocessing.channels],
    }
    for what, order in orders.items():
        block[f"resampling_fn_{what}"] = "resample_data_or_seg_to_shape"
        block[f"resampling_fn_{what}_kwargs"] = {
            "is_seg": what == "seg",
            "order": order,
            "order_z": 0,
            "force_separate_z": resampling.separate_z,
        }
    return {**block, "batch_dice": preprocessing.batch_dice, "architecture": dict(architecture)}
