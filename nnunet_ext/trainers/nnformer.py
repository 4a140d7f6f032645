"""nnFormer through nnU-Net (``specs/alice.md`` 1.5, 2; Zhou et al., IEEE TIP 2023, arXiv 2109.03201)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_ext.architectures.nnformer_plans import NETWORK_CLASS, translated_architecture
from nnunet_ext.trainers.base import BaseTrainer
from nnunet_ext.trainers.variants import variant_attribute


class NNFormerTrainer(BaseTrainer):
    """Trains nnFormer with nnU-Net's recipe: SGD, poly schedule, deep supervision, Dice and cross-entropy.

    That is the original nnFormer's recipe, too. The network is the plans' (``NNFormerPlanner``). 3D plans of another
    network keep their patch and get an nnFormer of Alice's widths for it, in a copy of the plans; the log says what
    that needs. Start from Alice's or nnFormer's published weights with ``-pretrained_weights`` (``nnunet-ext
    import-weights nnformer``).
    """

    network_class = NETWORK_CLASS
    method = "nnFormer"

    def adapt_plans(self, plans: dict[str, Any], configuration: str) -> dict[str, Any]:
        """The base's; 2D configurations are left as they are, the constructor refuses them."""
        if configuration in plans["configurations"]:
            patch_size = PlansManager(plans).get_configuration(configuration).patch_size
            if len(patch_size) != 3:
                return plans
        return super().adapt_plans(plans, configuration)

    def translated(self, architecture: dict[str, Any], patch_size: Sequence[int]) -> dict[str, Any]:
        """An nnFormer for the patch, halving first the axes that the other network halves first.

        Raises:
            ValueError: no axis of the patch can be halved.
        """
        made: dict[str, Any] = translated_architecture(architecture["arch_kwargs"]["strides"], patch_size)
        return made


__getattr__ = variant_attribute(__name__)
