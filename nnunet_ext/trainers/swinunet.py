"""Swin-Unet through nnU-Net (``specs/selfreg.md`` 3.1, 4.8; Cao et al., ECCV 2022 workshops, arXiv 2105.05537)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn

from nnunet_ext.architectures.swinunet_plans import NETWORK_CLASS, swinunet_architecture
from nnunet_ext.trainers.base import BaseTrainer
from nnunet_ext.trainers.options import ADAMW_WARMUP
from nnunet_ext.trainers.variants import variant_attribute

LEARNING_RATE = 3e-4
WEIGHT_DECAY = 0.05
WARMUP = 250  # iterations, an epoch of nnU-Net's length
NOT_DECAYED = "relative_position_bias_table"  # beside norms and biases

_SHORT: Mapping[str, Any] = {
    "optimizer_name": "adamw",
    "warmup_iterations": ADAMW_WARMUP,
    "hyperparameters": {"initial_lr": 1e-3, "weight_decay": WEIGHT_DECAY},
}
# The reference's Synapse run (its README): batches of 32, 150 epochs of 70 steps; the same steps in epochs of nnU-Net's
# length. `_Published_70its_150epochs` steps the schedule as they are counted there.
_PUBLISHED: Mapping[str, Any] = {
    "optimizer_name": "sgd",
    "warmup_iterations": 0,
    "published": True,
    "hyperparameters": {"initial_lr": 0.05, "weight_decay": 1e-4, "num_epochs": 42},
}


class SwinUNetTrainer(BaseTrainer):
    """Trains Swin-Unet in 2D: AdamW after a linear warm-up, poly schedule, nnU-Net's loss and augmentation.

    Learning rate 3e-4, weight decay 0.05 except for norms, biases and position bias tables, 250 iterations of warm-up
    (nnU-Net's SGD at 1e-2 is unsuitable). The network is the plans' (``SwinUNetPlanner``); 2d plans of another network
    keep their patch and get a Swin-Unet for it, in a copy of the plans; the log says what that needs. Start from
    ImageNet weights with ``-pretrained_weights`` (``nnunet-ext import-weights swinunet``). Suffixes:

    * ``_Published``: the authors' Synapse recipe as far as nnU-Net has it: SGD 0.05 with momentum 0.9 and weight decay
      1e-4, 10,500 steps, 0.4 cross-entropy + 0.6 Dice over the batch with background. Unlike theirs: nnU-Net's
      augmentation, sampling, batch and patch size (theirs: 32 whole slices zoomed to 224 x 224), gradient clipping
      (norm 12), poly schedule by the epoch instead of the step, and no squares in the Dice's denominator.
    * ``_AdamW``: for short trainings and narrow networks: learning rate 1e-3 after 40 iterations.

    Attributes:
        published: momentum and loss of the reference.
    """

    OPTIONS: ClassVar[Mapping[str, Mapping[str, Any]]] = {"Published": _PUBLISHED, "AdamW": _SHORT}
    network_class = NETWORK_CLASS
    method = "Swin-Unet"
    supports_deep_supervision: ClassVar[bool] = False
    optimizer_name: ClassVar[str] = "adamw"
    warmup_iterations: int = WARMUP
    hyperparameters: ClassVar[Mapping[str, Any]] = {"initial_lr": LEARNING_RATE, "weight_decay": WEIGHT_DECAY}
    published: ClassVar[bool] = False

    def adapt_plans(self, plans: dict[str, Any], configuration: str) -> dict[str, Any]:
        """The base's; 3D configurations are left as they are, the constructor refuses them."""
        if configuration in plans["configurations"]:
            patch_size = PlansManager(plans).get_configuration(configuration).patch_size
            if len(patch_size) != 2:
                return plans
        return super().adapt_plans(plans, configuration)

    def translated(self, architecture: dict[str, Any], patch_size: Sequence[int]) -> dict[str, Any]:
        """Swin-Unet of the published widths; it takes any patch."""
        made: dict[str, Any] = swinunet_architecture(patch_size)
        return made

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, Any]:
        """The base's, without weight decay where Swin networks have none; published: momentum 0.9, not Nesterov's."""
        optimizer, schedule = super().configure_optimizers()
        if self.optimizer_name == "adamw":
            kept = {
                id(parameter) for name, parameter in self.network.named_parameters() if _is_decayed(name, parameter)
            }
            everything = optimizer.param_groups[0]["params"]
            optimizer.param_groups[0]["params"] = [p for p in everything if id(p) in kept]
            bare = {key: value for key, value in optimizer.param_groups[0].items() if key != "params"}
            others = [p for p in everything if id(p) not in kept]
            optimizer.add_param_group({**bare, "params": others, "weight_decay": 0.0})
        elif self.published:
            optimizer.param_groups[0].update(momentum=0.9, nesterov=False)
        return optimizer, schedule

    def _build_loss(self) -> nn.Module:
        """nnU-Net's loss; published: 0.4 cross-entropy + 0.6 Dice, over the batch and with background."""
        loss: Any = super()._build_loss()
        if self.published:
            loss.weight_ce, loss.weight_dice = 0.4, 0.6
            dice = getattr(loss.dc, "_orig_mod", loss.dc)
            dice.batch_dice, dice.do_bg = True, True
        made: nn.Module = loss
        return made


def _is_decayed(name: str, parameter: nn.Parameter) -> bool:
    return parameter.dim() > 1 and not name.endswith(NOT_DECAYED)


__getattr__ = variant_attribute(__name__)
