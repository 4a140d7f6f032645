"""The network that weights are wanted for: one configuration of a plans file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_ext.errors import UserError


@dataclass(frozen=True)
class PlannedNetwork:
    """What plans say of a configuration.

    Attributes:
        architecture: the block of the planned network, of whatever class.
        patch_size: voxels, (D, H, W) or (H, W).
        channels: of the images.
    """

    architecture: dict[str, Any]
    patch_size: tuple[int, ...]
    channels: int


def read_planned(file: Path, configuration: str) -> PlannedNetwork:
    """Read a configuration of a plans file, with what it inherits.

    Raises:
        UserError: not such a file, or the configuration lacks something or is not in it.
    """
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    try:
        plans = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(plans, dict):  # PlansManager would open a number or a string as a file
            raise TypeError(f"expected an object, got {type(plans).__name__}")
        settings = PlansManager(plans).get_configuration(configuration).configuration
        patch, channels = settings["patch_size"], len(settings["normalization_schemes"])
        architecture: dict[str, Any] = settings["architecture"]
        architecture["network_class_name"]
    except (AttributeError, OSError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(
            f"cannot read the configuration {configuration!r} of {file} as plans of nnU-Net ({error!r}): give the file "
            "that nnUNetv2_plan_and_preprocess wrote, and one of its configurations to -c"
        ) from error
    if not isinstance(patch, list) or not patch or not all(type(edge) is int and edge > 0 for edge in patch):
        raise UserError(
            f"the patch_size of {configuration} in {file.name} must be a list of positive whole numbers; got {patch!r}:"
            " correct it, or plan anew"
        )
    if channels < 1:
        raise UserError(
            f"the normalization_schemes of {configuration} in {file.name} must name one scheme for each channel; got "
            "none: correct them, or plan anew"
        )
    return PlannedNetwork(architecture, tuple(patch), channels)
