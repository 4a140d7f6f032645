"""SSH-UNet through nnU-Net (``specs/sshunet.md``; Ugwu et al., ICMVA 2024, arXiv 2307.12853)."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any, ClassVar

import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn

from nnunet_ext.architectures.sshunet_plans import NETWORK_CLASS, sshunet_architecture
from nnunet_ext.trainers.base import BaseTrainer
from nnunet_ext.trainers.variants import variant_attribute

MUCH_MORE = 1.1  # times the planned memory, from where the log warns
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
    network_options: ClassVar[Mapping[str, Any]] = {}
    published_loss: ClassVar[bool] = False
    planned_architecture: dict[str, Any] | None = None

    def adapt_plans(self, plans: dict[str, Any], configuration: str) -> dict[str, Any]:
        """Write the suffixes' options into the configuration's network, or translate another network to SSH-UNet.

        Raises:
            NotImplementedError: a 2d configuration.
            ValueError: the plans' network has no strides to translate.
        """
        if configuration not in plans["configurations"]:
            return plans
        resolved = deepcopy(PlansManager(plans).get_configuration(configuration).configuration)
        if len(resolved["patch_size"]) != 3:
            raise NotImplementedError(
                f"SSH-UNet is a 3D network: {type(self).__name__} cannot train the configuration {configuration!r} "
                f"with patch size {tuple(resolved['patch_size'])}. Train 3d_fullres or 3d_lowres, or for 2d use an "
                "nnU-Net trainer such as nnUNetTrainer with the same plans."
            )
        architecture = resolved["architecture"]
        ours = architecture["network_class_name"] == NETWORK_CLASS
        if ours and self.network_options.items() <= architecture["arch_kwargs"].items():
            return plans
        self.planned_architecture = deepcopy(architecture)
        if ours:
            architecture["arch_kwargs"].update(self.network_options)
        else:
            architecture = self._translated(architecture, plans["plans_name"])
        self.set_architecture(plans, configuration, architecture)
        return plans

    def _translated(self, architecture: dict[str, Any], plans_name: str) -> dict[str, Any]:
        """SSH-UNet with the strides and features of another network's stages."""
        arguments = architecture["arch_kwargs"]
        if "strides" not in arguments:
            raise ValueError(
                f"The network of the plans {plans_name} ({architecture['network_class_name']}) has no strides that "
                "could be translated to SSH-UNet: plan with `nnUNetv2_plan_and_preprocess ... -pl SSHUNetPlanner`."
            )
        translated: dict[str, Any] = sshunet_architecture(
            strides=arguments["strides"], features_per_stage=arguments.get("features_per_stage"), **self.network_options
        )
        return translated

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

    def log_memory(self) -> None:
        """As the base's; where the plans were made for another network, what ours needs beside that one."""
        super().log_memory()
        if self.planned_architecture is None:
            return
        name = self.planned_architecture["network_class_name"].rsplit(".", 1)[-1]
        try:
            ours = self.activation_gigabytes(self.bare_network())
            theirs = self.activation_gigabytes(self._planned_network(self.planned_architecture))
        except Exception as error:  # somebody else's network may have no estimate, or not build without memory
            self.print_to_log_file(f"The memory of the planned network, {name}, could not be estimated: {error!r}")
            return
        plans = self.plans_manager.plans_name
        need = f"SSH-UNet needs about {ours:.2f} GB here, {ours / theirs:.1f} times"
        if self.planned_architecture["network_class_name"] != NETWORK_CLASS:
            self.print_to_log_file(
                f"These plans ({plans}) were made for {name}, and its stages were translated to SSH-UNet. {need} "
                f"{name}'s {theirs:.2f} GB. SSHUNetPlanner (or SSHUNetPlannerM, L, XL) plans patch and batch size for "
                "SSH-UNet's own needs."
            )
        elif ours > MUCH_MORE * theirs:
            self.print_to_log_file(
                f"WARNING: these plans ({plans}) were made for {theirs:.2f} GB; with {type(self).__name__}'s options "
                f"{need} that. If the GPU has too little memory, plan for a smaller -gpu_memory_target (by that "
                "factor) or a narrower network (SSHUNetPlanner_W16)."
            )

    def _planned_network(self, architecture: dict[str, Any]) -> nn.Module:
        """The network that the plans were made for, on the meta device: shapes only."""
        plans = deepcopy(self.plans_manager.plans)
        plans["configurations"][self.configuration_name]["architecture"] = architecture
        manager = PlansManager(plans)
        with torch.device("meta"):
            return BaseTrainer.build_network_architecture(
                manager,
                manager.get_configuration(self.configuration_name),
                self.num_input_channels,
                self.label_manager.num_segmentation_heads,
                self.enable_deep_supervision,
            )


__getattr__ = variant_attribute(__name__)
