"""nnU-Net v1's plans, from its pickles to what nnU-Net v2's plans.json needs (specification unetrpp 2.3, 2.4).

Two files hold them: the plans (`nnUNetPlansv2.1_plans_3D.pkl`, or what a fork calls it), and the `.model.pkl` that lies
beside a checkpoint, where they are the entry `plans`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_ext.weights.loading import CheckpointError, shorten
from nnunet_ext.weights.pickles import read_pickle
from nnunet_ext.weights.plans_json import CT, NO_NORMALIZATION, Z_SCORE, Channel, Preprocessing, Resampling

READER = "SimpleITKIO"
FILE_ENDINGS = (".nii.gz", ".nrrd", ".mha", ".gipl")
"""Of the images that `READER` reads, the usual one first."""
RESAMPLING = Resampling(data=3, seg=1, probabilities=1, separate_z=None)
"""What nnU-Net v1 does without saying so in its plans."""
STAND_IN = {
    "max": 1.0,
    "mean": 0.0,
    "median": 0.0,
    "min": -1.0,
    "percentile_00_5": -1.0,
    "percentile_99_5": 1.0,
    "std": 1.0,
}
"""Intensities of channels that are normalised by their own values: nnU-Net v2 wants an entry all the same."""
V1_INTENSITIES = {"mean": "mean", "sd": "std", "median": "median", "mn": "min", "mx": "max"}
"""nnU-Net v1's name of a property -> v2's; percentiles are called the same."""

_NORMALIZATION = {"CT": CT, "nonCT": Z_SCORE, "noNorm": NO_NORMALIZATION}
_STAGE, _BATCH_DICE = 5, 4  # places in the trainer's arguments, `init` of a .model.pkl
_REQUIRED = ("plans_per_stage", "num_modalities", "num_classes", "normalization_schemes", "use_mask_for_norm")


@dataclass(frozen=True)
class V1Plans:
    """What is known of a network trained with nnU-Net v1 or one of its forks.

    Attributes:
        preprocessing: of its images.
        num_classes: labels, background included.
        file_name: where it comes from.
    """

    preprocessing: Preprocessing
    num_classes: int
    file_name: str


def read_plans(path: str | Path) -> V1Plans:
    """Read a plans pickle or the `.model.pkl` beside a checkpoint; nothing in it is executed.

    Raises:
        CheckpointError: a file that cannot be read, is something else, or holds plans that have no v2 equivalent.
    """
    path = Path(path)
    content = read_pickle(path)
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"{path.name}: expected nnU-Net v1's plans, got an object of type {type(content).__name__}"
        )
    init = content.get("init")
    init = init if isinstance(init, Sequence) and len(init) > _STAGE else ()
    plans = content.get("plans", content)
    absent = [key for key in _REQUIRED if not isinstance(plans, Mapping) or key not in plans]
    if absent:
        raise CheckpointError(
            f"{path.name}: not nnU-Net v1's plans: {shorten(absent)} missing, found {shorten(map(str, content))}"
        )
    try:
        return _parse(plans, path.name, *((init[_STAGE], init[_BATCH_DICE]) if init else (None, None)))
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:160]
        raise CheckpointError(f"{path.name}: these are not complete plans of nnU-Net v1 ({reason})") from error


def _parse(plans: Mapping[str, Any], file_name: str, stage: Any, batch_dice: Any) -> V1Plans:
    stages = plans["plans_per_stage"]
    number = stage if stage in stages else max(stages)
    used = stages[number]
    forward = _integers(plans.get("transpose_forward", (0, 1, 2)))
    backward = _integers(plans.get("transpose_backward", (0, 1, 2)))
    spacing, patch_size = _numbers(used["current_spacing"]), _numbers(used["patch_size"])
    if len(patch_size) != 3 or len(spacing) != 3 or sorted(forward) != [0, 1, 2] or sorted(backward) != [0, 1, 2]:
        raise CheckpointError(
            f"{file_name}: only plans of 3D configurations can be used; got a patch of {len(patch_size)} axes"
        )
    if min(spacing) <= 0 or min(patch_size) < 1:
        raise CheckpointError(f"{file_name}: spacing and patch size must be positive; got {spacing} and {patch_size}")
    median_size = _axes(used.get("median_patient_size_in_voxels", patch_size), f"{file_name}: the median image size")
    original_spacing = _median(plans.get("original_spacings"), forward, f"{file_name}: an original spacing")
    original_size = _median(plans.get("original_sizes"), forward, f"{file_name}: an original image size")
    preprocessing = Preprocessing(
        patch_size=tuple(_count(edge, f"{file_name}: each edge of the patch size") for edge in patch_size),
        spacing=spacing,
        channels=_channels(plans, file_name),
        resampling=RESAMPLING,
        reader=READER,
        batch_size=_count(used.get("batch_size", 2), f"{file_name}: batch_size"),
        batch_dice=len(stages) > 1 if batch_dice is None else bool(batch_dice),
        median_size=median_size,
        original_spacing=spacing if original_spacing is None else original_spacing,
        original_size=median_size if original_size is None else original_size,
        transpose_forward=forward,
        transpose_backward=backward,
    )
    return V1Plans(preprocessing, _count(plans["num_classes"], f"{file_name}: num_classes") + 1, file_name)


def _channels(plans: Mapping[str, Any], file_name: str) -> tuple[Channel, ...]:
    properties = plans.get("dataset_properties") or {}
    intensities = properties.get("intensityproperties") or {}
    names = plans.get("modalities") or {}
    if not isinstance(names, Mapping):
        raise CheckpointError(
            f"{file_name}: modalities must be a dict of the channels' names by their numbers; got {names!r:.60}"
        )
    channels = []
    for i in range(_count(plans["num_modalities"], f"{file_name}: num_modalities")):
        scheme = str(plans["normalization_schemes"][i])
        if scheme not in _NORMALIZATION:
            raise CheckpointError(
                f"{file_name}: channel {i} is normalised by {scheme!r}, which nnU-Net v2 lacks; it has "
                f"{', '.join(_NORMALIZATION)}"
            )
        name = str(names.get(i, scheme))
        values = _intensities(intensities[i]) if scheme == "CT" else dict(STAND_IN)
        channels.append(Channel(name, _NORMALIZATION[scheme], bool(plans["use_mask_for_norm"][i]), values))
    return tuple(channels)


def _intensities(properties: Mapping[str, Any]) -> dict[str, float]:
    """One channel's properties by nnU-Net v2's names, in alphabetical order."""
    values = {
        V1_INTENSITIES.get(key, key): properties[key] for key in (*V1_INTENSITIES, "percentile_00_5", "percentile_99_5")
    }
    numbers = {key: float(values[key]) for key in sorted(values)}
    if not all(math.isfinite(value) for value in numbers.values()) or numbers["std"] <= 0:
        raise ValueError(f"intensity properties {numbers}")
    return numbers


def _median(values: Any, order: Sequence[int], what: str) -> tuple[float, ...] | None:
    """The median over cases of (z, y, x) in another order of the axes; None where there are no cases."""
    if values is None or len(values) == 0:
        return None
    median = np.median(np.asarray([_axes(value, what) for value in values]), axis=0)
    return tuple(float(median[axis]) for axis in order)


def _axes(values: Any, what: str) -> tuple[float, ...]:
    numbers = _numbers(values)
    if len(numbers) != 3 or min(numbers) <= 0:
        raise CheckpointError(f"{what} must be three positive numbers (z, y, x); got {numbers}")
    return numbers


def _count(value: Any, what: str) -> int:
    number = float(value)
    if not number.is_integer() or number < 1:
        raise CheckpointError(f"{what} must be a whole number of at least 1; got {number:g}")
    return int(number)


def _numbers(values: Any) -> tuple[float, ...]:
    numbers = tuple(float(value) for value in values)
    if not all(math.isfinite(value) for value in numbers):
        raise ValueError(f"{numbers} is not finite")
    return numbers


def _integers(values: Any) -> tuple[int, ...]:
    return tuple(int(value) for value in values)
