"""How the images of a published UNETR++ are prepared: nnU-Net v1's plans say it, or else the user."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from nnunet_ext.architectures.unetrpp_plans import PRESETS
from nnunet_ext.errors import UserError
from nnunet_ext.weights.checks import check_spacing
from nnunet_ext.weights.dataset_json import default_channel_names
from nnunet_ext.weights.nnunet_v1 import READER, RESAMPLING, STAND_IN, V1_INTENSITIES, V1Plans
from nnunet_ext.weights.plans_json import CT, INTENSITIES, Z_SCORE, Channel, Preprocessing
from nnunet_ext.weights.unetrpp_configuration import Configuration

_NEEDED = ("mean", "std", "percentile_00_5", "percentile_99_5")
INTENSITIES_FORMAT = " ".join(f"{key}=.." for key in _NEEDED)


@dataclass(frozen=True)
class ImageOptions:
    """What the user says about the images; None: nothing.

    Attributes:
        patch_size: (z, y, x) in voxels.
        spacing: (z, y, x) in mm.
        modality: "ct" (clipped and scaled by `intensities`) or "mr" (z-score of each image).
        intensities: of each channel of CT images, every one of `plans_json.INTENSITIES`.
        non_zero_mask: z-scores are those of the non-zero region.
        unpublished_patch: weights with the tokens of a published network may be for another patch than it.
    """

    patch_size: tuple[int, ...] | None = None
    spacing: tuple[float, ...] | None = None
    modality: str | None = None
    intensities: tuple[Mapping[str, float], ...] | None = None
    non_zero_mask: bool = False
    unpublished_patch: bool = False

    def __post_init__(self) -> None:
        if self.spacing is not None:
            check_spacing(self.spacing)
        if self.modality == "mr" and self.intensities is not None:
            raise UserError("--intensities belongs to CT images; MR images are normalised by their own values")
        if self.modality == "ct" and self.non_zero_mask:
            raise UserError("--non-zero-mask belongs to MR images; CT images are normalised by --intensities")

    @property
    def replaces_plans(self) -> bool:
        """Whether the user says anything that plans say, too, but for the patch size."""
        return self.spacing is not None or self.modality is not None or bool(self.intensities) or self.non_zero_mask


def parse_intensities(groups: Sequence[Sequence[str]]) -> tuple[dict[str, float], ...]:
    """Read `key=value` texts, one group a channel; nnU-Net v1's names (sd, mn, mx) may be used.

    Only mean, std and the percentiles take part in nnU-Net's CT normalisation; the others have stand-ins.

    Raises:
        UserError: an unknown or missing key, or a value that is no number.
    """
    return tuple(_one_channel(group) for group in groups)


def _one_channel(texts: Sequence[str]) -> dict[str, float]:
    values: dict[str, float] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        key = V1_INTENSITIES.get(key, key)
        if not equals or key not in INTENSITIES or key in values:
            raise UserError(f"--intensities takes {INTENSITIES_FORMAT}, each once; got {text!r}")
        try:
            values[key] = float(value)
        except ValueError as error:
            raise UserError(f"--intensities: {value!r} is not a number (in {text!r})") from error
    missing = [key for key in _NEEDED if key not in values]
    if missing:
        raise UserError(f"--intensities takes {INTENSITIES_FORMAT} of a channel; missing: {', '.join(missing)}")
    low, high = values["percentile_00_5"], values["percentile_99_5"]
    if not all(map(math.isfinite, values.values())) or values["std"] <= 0 or low >= high:
        raise UserError(
            "--intensities must be finite, with std > 0 and percentile_00_5 < percentile_99_5; got "
            + " ".join(f"{key}={value:g}" for key, value in values.items())
        )
    values = {"median": values["mean"], "min": low, "max": high, **values}
    return {key: values[key] for key in INTENSITIES}


def told_preprocessing(configuration: Configuration, options: ImageOptions) -> Preprocessing:
    """The preprocessing that the user describes.

    Raises:
        UserError: something is not said (one sentence names all of it), or does not fit the weights.
    """
    _check_complete(configuration, options)
    patch_size, spacing = options.patch_size or (), options.spacing or ()
    _check_patch(configuration, options, patch_size)
    size = tuple(float(edge) for edge in patch_size)
    return Preprocessing(
        patch_size=patch_size,
        spacing=spacing,
        channels=_told_channels(configuration, options),
        resampling=RESAMPLING,
        reader=READER,
        batch_size=2 if configuration.variant is None else PRESETS[configuration.variant].batch_size,
        batch_dice=False,
        median_size=size,
        original_spacing=spacing,
        original_size=size,
    )


def _check_patch(configuration: Configuration, options: ImageOptions, patch_size: Sequence[int]) -> None:
    configuration.check_patch_size(patch_size)
    if not options.unpublished_patch:
        configuration.check_published_patch(patch_size)


def _check_complete(configuration: Configuration, options: ImageOptions) -> None:
    published = ""
    if configuration.published_patch is not None:
        size = " ".join(map(str, configuration.published_patch))
        published = f"; the published {configuration.same_tokens} network has {size}"
    intensities = f"--intensities {INTENSITIES_FORMAT} (once a channel)"
    wanted = {
        f"--patch-size Z Y X (voxels{published})": options.patch_size is None,
        "--spacing Z Y X (mm)": options.spacing is None,
        "--modality ct or mr": options.modality is None,
        (intensities if options.modality == "ct" else f"for CT {intensities}"): options.modality != "mr"
        and options.intensities is None,
    }
    missing = [text for text, absent in wanted.items() if absent]
    if missing:
        raise UserError(
            f"the weights do not say how their images were prepared; missing: {', '.join(missing)}. Or give "
            "nnU-Net v1's plans, or the .model.pkl that belongs to the checkpoint: --plans FILE.pkl"
        )


def _told_channels(configuration: Configuration, options: ImageOptions) -> tuple[Channel, ...]:
    number, is_ct = configuration.input_channels, options.modality == "ct"
    intensities = options.intensities or (STAND_IN,) * number
    if len(intensities) != number:
        raise UserError(
            f"the weights have {number} input channels; give --intensities that many times, got {len(intensities)}"
        )
    return tuple(
        Channel(name, CT if is_ct else Z_SCORE, options.non_zero_mask, dict(values))
        for name, values in zip(default_channel_names(options.modality or "", number), intensities, strict=True)
    )


def planned_preprocessing(
    configuration: Configuration, plans: V1Plans, options: ImageOptions
) -> tuple[Preprocessing, list[str]]:
    """The preprocessing of nnU-Net v1's plans, and what had to be assumed, one sentence each.

    The reference edits its plans at every start, not always in the right place (specification unetrpp 4.4): their patch
    size may be another than the network's.

    Args:
        configuration: of the weights.
        plans: that came with them.
        options: whose patch size is taken; None: that of the plans, or of the published network.

    Raises:
        UserError: plans of another network, or no patch size that fits.
    """
    planned = plans.preprocessing
    for what, here, there in (
        ("input channels", configuration.input_channels, len(planned.channels)),
        ("classes with the background", configuration.num_classes, plans.num_classes),
    ):
        if here != there:
            raise UserError(
                f"{plans.file_name} has {there} {what}, the weights have {here}: they do not belong together"
            )
    if options.patch_size is not None:
        _check_patch(configuration, options, options.patch_size)
        return replace(planned, patch_size=options.patch_size), []
    published = configuration.published_patch
    try:
        configuration.check_patch_size(planned.patch_size)
    except UserError as error:
        if published is None or options.unpublished_patch:
            raise UserError(f"{plans.file_name}: {error}; give --patch-size Z Y X") from error
        mistake = "does not fit the weights"
    else:
        if published is None or options.unpublished_patch or planned.patch_size == published:
            return planned, []
        mistake = "fits only the numbers of the weights' tokens (--unpublished-patch takes it all the same)"
    sizes = [" x ".join(map(str, size)) for size in (planned.patch_size, published)]
    sentence = (
        f"The patch size in {plans.file_name}, {sizes[0]}, {mistake}; that of the published "
        f"{configuration.same_tokens} network is used: {sizes[1]} (z, y, x)."
    )
    return replace(planned, patch_size=published), [sentence]
