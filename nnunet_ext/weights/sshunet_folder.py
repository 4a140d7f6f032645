"""Plans and data set description of an imported SSH-UNet.

The published pipeline (specification sshunet 4.2, 6.3): orientation RAS, 1 mm, a fixed intensity window mapped to
[0, 1], tensors in x, y, z order. Here: `NibabelIOWithReorient`, the plan's spacing, `CTNormalization` with fixed
properties, and a network that swaps the axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nnunet_ext.errors import UserError
from nnunet_ext.weights.checks import check_spacing, check_window
from nnunet_ext.weights.dataset_json import DatasetOptions, default_channel_names, make_dataset_json
from nnunet_ext.weights.plans_json import (
    CT,
    Z_SCORE,
    Channel,
    Preprocessing,
    Resampling,
    imported_plans,
    window_properties,
)
from nnunet_ext.weights.sshunet_configuration import Configuration

PLANS_NAME = "SSHUNetPlans_Imported"
TRAINER_NAME = "SSHUNetTrainer"
PUBLISHED_WINDOWS = {"btcv": (-175.0, 250.0), "amos": (-991.0, 362.0)}


@dataclass(frozen=True)
class FolderOptions:
    """What the weights do not say about the images.

    Attributes:
        dataset: labels and name of the data set.
        modality: "ct" (fixed intensity window) or "mr" (z-score of the non-zero region).
        window: (a_min, a_max) in HU, mapped to [0, 1]; for "ct" only. None: that of the published run whose labels are
            asked for ("amos": -991, 362), else BTCV's (-175, 250).
        patch_size: (z, y, x) in voxels.
        spacing: (z, y, x) in mm.
    """

    dataset: DatasetOptions
    modality: str = "ct"
    window: tuple[float, float] | None = None
    patch_size: tuple[int, int, int] = (96, 96, 96)
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def __post_init__(self) -> None:
        if self.modality not in ("ct", "mr"):
            raise UserError(f"modality {self.modality!r} unknown; choose ct or mr")
        if self.window is not None:
            check_window(self.window)
        check_spacing(self.spacing)

    @property
    def ct_window(self) -> tuple[float, float]:
        """The window that is used for CT images."""
        if self.window is not None:
            return self.window
        labels = self.dataset.labels
        run = labels[0] if labels is not None and len(labels) == 1 else "btcv"
        return PUBLISHED_WINDOWS.get(run, PUBLISHED_WINDOWS["btcv"])


def intensity_properties(options: FolderOptions) -> dict[str, float]:
    """One channel's properties that make nnU-Net's CT normalisation the map of the window to [0, 1], clipped.

    MR images are normalised by their own values; nnU-Net wants an entry all the same and gets the window (0, 1).
    """
    a_min, a_max = options.ct_window if options.modality == "ct" else (0.0, 1.0)
    return window_properties(a_min, a_max)


def dataset_json(configuration: Configuration, options: FolderOptions) -> dict[str, Any]:
    """The data set's description: the user's own, or one made of the label names.

    Raises:
        UserError: channels or classes that differ from the network's, or images that are not NIfTI.
    """
    channels = default_channel_names(options.modality, configuration.input_channels)
    return make_dataset_json(options.dataset, channels, configuration.num_classes, (".nii.gz", ".nii"))


def make_plans(configuration: Configuration, options: FolderOptions) -> dict[str, Any]:
    """The plans that rebuild the published network and its preprocessing."""
    is_ct, size = options.modality == "ct", options.patch_size
    names = default_channel_names(options.modality, configuration.input_channels)
    properties = intensity_properties(options)
    preprocessing = Preprocessing(
        patch_size=size,
        spacing=options.spacing,
        channels=tuple(Channel(name, CT if is_ct else Z_SCORE, not is_ct, properties) for name in names),
        resampling=Resampling(data=1, seg=1, probabilities=1, separate_z=False),
        reader="NibabelIOWithReorient",
        batch_size=2,
        batch_dice=False,
        median_size=tuple(float(n) for n in size),
        original_spacing=options.spacing,
        original_size=size,
    )
    architecture = configuration.architecture(axes="xyz")
    return imported_plans(
        preprocessing, architecture, dataset_name=options.dataset.name, plans_name=PLANS_NAME, method="sshunet"
    )


def assumptions(configuration: Configuration, options: FolderOptions, told_gates: bool) -> list[str]:
    """Everything that the file does not say or that nnU-Net does differently, one sentence each."""
    z, y, x = options.spacing
    listed = [
        f"Images are reoriented to RAS and resampled (linearly) to {z:g} x {y:g} x {x:g} mm (z, y, x); the network "
        "sees them in x, y, z order.",
        "No mirroring at prediction: the published inference has none.",
        "nnU-Net crops to the non-zero region and normalises before it resamples; the original resamples first.",
        "The training images' statistics are unknown: median sizes in the plans and the fingerprint are stand-ins.",
    ]
    if configuration.gate in ("tsm", "none"):
        source = "as told" if told_gates else "the published setting"
        encoder, decoder = list(map(int, configuration.gate_stages)), list(map(int, configuration.gate_decoder))
        listed.append(
            f"The file cannot show a parameter-free gate: {configuration.gate} ({source}), encoder blocks "
            f"{encoder} (full resolution first), decoder blocks {decoder} (lowest first)."
        )
    if options.modality == "ct":
        low, high = options.ct_window
        listed += [
            f"CT numbers from {low:g} to {high:g} HU are mapped to 0 to 1 and clipped.",
            "Small images are padded with the window's lower end; the original pads with 0 HU and crops by the window.",
        ]
    else:
        listed.append(
            "MR: z-score over the non-zero region with its holes filled, in the whole image; the original leaves out "
            "zeros inside it too, and normalises patches while training."
        )
    if configuration.vfn:
        listed.append(
            "VFN fuses the views in their own axis orders, as the published code does (vfn_alignment legacy)."
        )
    return listed


def check_patch(network: Any, patch_size: Sequence[int]) -> None:
    """Raise UserError where the network cannot take patches of this size (voxels)."""
    try:
        network.check_patch_size(patch_size)
    except ValueError as error:
        raise UserError(str(error)) from error
