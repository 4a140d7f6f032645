"""SSH-UNet through nnU-Net (``specs/sshunet.md``; Ugwu et al., ICMVA 2024, arXiv 2307.12853)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn

from nnunet_ext.architectures.sshunet_plans import NETWORK_CLASS, sshunet_architecture
from nnunet_ext.trainers.base import BaseTrainer
from nnunet_ext.trainers.variants import variant_attribute

VFN_CLASSES = 20  # view fusion network: cost grows with the square of the classes

# The authors' BTCV run (their run_btcv.sh): AdamW 4e-4, weight decay 1e-5, cosine to zero, 60 000 steps (5000 epochs of
# 12). The same steps in epochs of nnU-Net's length; `_Published_12its_5000epochs` steps the schedule as they did.
_PUBLISHED: Mapping[str, Any] = {
    "optimizer_name": "adamw",
    "schedule": "cosine",
    "published_loss": True,
    "hyperparameters": {
        "initial_lr": 4e-4,
        "weight_decay": 1e-5,
        "num_epochs": 240,
        "enable_deep_supervision": False,
    },
}


class SSHUNetTrainer(BaseTrainer):
    """Trains SSH-UNet with nnU-Net's recipe: SGD, poly schedule, deep supervision, Dice and cross-entropy.

    The network is the plans' (``SSHUNetPlanner``). Plans of another 3D network are translated: strides and features of
    its stages become an SSH-UNet's, in a copy of the plans, and the log says what that needs. Suffixes:

    * ``_TSM``, ``_GSM``, ``_GSF``: the gate, whatever the plans say (without suffix: the plans' gate, else TSM);
    * ``_VFN``: the views are fused by the view fusion network instead of a sum;
    * ``_Published``: the published optimiser and schedule (BTCV), no deep supervision, Dice per sample with background.
      Unlike the authors': nnU-Net's augmentation, sampling, batch size and gradient clipping (norm 12), and Dice stays
      part of the loss with two classes. (Their AMOS run used SGD 0.01 and 200 000 steps.)
    """

    OPTIONS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "TSM": {"network_options": {"gate": "tsm"}},
        "GSM": {"network_options": {"gate": "gsm"}},
        "GSF": {"network_options": {"gate": "gsf"}},
        "VFN": {"network_options": {"fusion": "vfn"}},
        "Published": _PUBLISHED,
    }
    network_class = NETWORK_CLASS
    method = "SSH-UNet"
    published_loss: ClassVar[bool] = False

    def adapt_plans(self, plans: dict[str, Any], configuration: str) -> dict[str, Any]:
        """The base's.

        Raises:
            NotImplementedError: a 2d configuration.
            ValueError: the plans' network has no strides to translate.
        """
        if configuration in plans["configurations"]:
            patch_size = PlansManager(plans).get_configuration(configuration).patch_size
            if len(patch_size) != 3:
                raise NotImplementedError(
                    f"SSH-UNet is a 3D network: {type(self).__name__} cannot train the configuration "
                    f"{configuration!r} with patch size {tuple(patch_size)}. Train 3d_fullres or 3d_lowres, or for 2d "
                    "use an nnU-Net trainer such as nnUNetTrainer with the same plans."
                )
        return super().adapt_plans(plans, configuration)

    def translated(self, architecture: dict[str, Any], patch_size: Sequence[int]) -> dict[str, Any]:
        """SSH-UNet with the strides and features of another network's stages."""
        arguments = architecture["arch_kwargs"]
        made: dict[str, Any] = sshunet_architecture(arguments["strides"], arguments.get("features_per_stage"))
        return made

    def initialize(self) -> None:
        """As the base's; says in the log when the view fusion network gets expensive."""
        super().initialize()
        heads = self.label_manager.num_segmentation_heads
        arguments = self.configuration_manager.network_arch_init_kwargs
        if arguments.get("fusion") == "vfn" and heads > VFN_CLASSES and not arguments.get("vfn_channels"):
            self.print_to_log_file(
                f"WARNING: VFN fusion with {heads} classes: its memory and time grow with the square of the classes. "
                f"Above about {VFN_CLASSES}, use sum fusion (no _VFN), or set vfn_channels in the plans' arch_kwargs."
            )

    def _build_loss(self) -> nn.Module:
        """nnU-Net's loss; published: its Dice per sample and with background (smooth 1e-5), plus cross-entropy."""
        loss: nn.Module = super()._build_loss()
        if self.published_loss:
            inner: Any = getattr(loss, "loss", loss)
            dice = getattr(inner.dc, "_orig_mod", inner.dc)
            dice.batch_dice, dice.do_bg = False, True
        return loss


__getattr__ = variant_attribute(__name__)
