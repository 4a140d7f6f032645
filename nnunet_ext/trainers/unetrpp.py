"""UNETR++ through nnU-Net (``specs/unetrpp.md``; Shaker et al., IEEE TMI 2024, arXiv 2212.04497)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from nnunetv2.training.data_augmentation.compute_initial_patch_size import get_patch_size

from nnunet_ext.architectures.unetrpp_plans import NETWORK_CLASS, fitting_topology, unetrpp_architecture, within_caps
from nnunet_ext.trainers.base import BaseTrainer
from nnunet_ext.trainers.variants import variant_attribute

SCALES = (0.85, 1.25)  # that nnU-Net reckons with when it cuts patches to be augmented


def _recipe(dummy_2d: bool, batch_dice: bool) -> dict[str, Any]:
    """A published training: float32, and two settings of which nnU-Net v2 decides differently."""
    return {"network_options": {"float32": True}, "dummy_2d": dummy_2d, "batch_dice": batch_dice}


class UNETRPPTrainer(BaseTrainer):
    """Trains UNETR++ with nnU-Net's recipe: SGD, poly schedule, deep supervision, Dice and cross-entropy.

    The network is the plans' (``UNETRPPPlanner``). Plans of another network keep their patch and get a UNETR++ for it,
    in a copy of the plans; the log says what that needs. The authors trained with nnU-Net's optimiser, schedule, loss
    and augmentation too, so a recipe sets only what differs; its plans come from the planner of the same suffix:

    * ``_Synapse``: float32; rotation and scaling within slices; Dice over the batch.
    * ``_ACDC``: float32; rotation and scaling within slices; Dice a sample.
    * ``_Lung``, ``_BraTS``: float32; rotation and scaling in 3D; Dice a sample.

    Attributes:
        dummy_2d: augment within slices (nnU-Net's dummy 2D); None: nnU-Net decides by the patch.
        batch_dice: Dice over the batch instead of a sample; None: as the plans say.
    """

    OPTIONS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "Synapse": _recipe(dummy_2d=True, batch_dice=True),
        "ACDC": _recipe(dummy_2d=True, batch_dice=False),
        "Lung": _recipe(dummy_2d=False, batch_dice=False),
        "BraTS": _recipe(dummy_2d=False, batch_dice=False),
    }
    network_class = NETWORK_CLASS
    method = "UNETR++"
    dummy_2d: ClassVar[bool | None] = None
    batch_dice: ClassVar[bool | None] = None

    def adapt_plans(self, plans: dict[str, Any], configuration: str) -> dict[str, Any]:
        """The base's, and a recipe's Dice in the configuration."""
        plans = super().adapt_plans(plans, configuration)
        if self.batch_dice is not None and configuration in plans["configurations"]:
            plans["configurations"][configuration]["batch_dice"] = self.batch_dice
        return plans

    def translated(self, architecture: dict[str, Any], patch_size: Sequence[int]) -> dict[str, Any]:
        """UNETR++ for the patch, with strides that divide it.

        Raises:
            ValueError: the patch cannot be divided into few enough tokens.
        """
        patch, strides = fitting_topology(patch_size, exact=True)
        if not within_caps(patch, strides):
            fitting, _ = fitting_topology(patch_size)
            raise ValueError(
                f"UNETR++: the plans' patch {tuple(patch_size)} cannot be divided into few enough tokens, since its "
                f"axes have too few factors of 2: plan with UNETRPPPlanner, or use e.g. {fitting}."
            )
        made: dict[str, Any] = unetrpp_architecture(patch, strides)
        return made

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> tuple[Any, ...]:
        """The base's; a recipe says whether 3D patches are augmented within slices."""
        rotation, dummy_2d, initial, mirror_axes = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        patch = self.configuration_manager.patch_size
        if self.dummy_2d is None or self.dummy_2d == dummy_2d or len(patch) != 3:
            return rotation, dummy_2d, initial, mirror_axes
        limit = np.pi if self.dummy_2d else np.pi / 6  # nnU-Net's: 180 degrees in plane, 30 about each axis in 3D
        rotation = (-limit, limit)
        initial = get_patch_size(patch, rotation, rotation, rotation, SCALES)
        if self.dummy_2d:
            initial[0] = patch[0]
        self.print_to_log_file(f"do_dummy_2d_data_aug: {self.dummy_2d}, as {type(self).__name__} asks for")
        return rotation, self.dummy_2d, initial, mirror_axes


__getattr__ = variant_attribute(__name__)
