"""A network of one's own, with its planner, trainer and registration, as docs/extending.md quotes it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from nnunet_ext import registry
from nnunet_ext.architectures.blocks.memory import conv_feature_map_units
from nnunet_ext.planners.base import BasePlanner, Topology
from nnunet_ext.trainers.base import BaseTrainer
from nnunet_ext.trainers.variants import variant_attribute


def norm_act(x: Tensor) -> Tensor:
    """Instance norm and leaky ReLU."""
    return functional.leaky_relu(functional.instance_norm(x))


class ToyDecoder(nn.Module):
    """The way up, index 0 the lowest resolution; nnU-Net switches `deep_supervision`. All heads are built, always."""

    def __init__(self, features: list[int], num_classes: int, conv_op: type[nn.Module], deep_supervision: bool) -> None:
        super().__init__()
        self.deep_supervision = deep_supervision
        widths = list(zip(features[:0:-1], features[-2::-1], strict=True))
        self.stages = nn.ModuleList(conv_op(below + here, here, 3, 1, 1) for below, here in widths)
        self.seg_layers = nn.ModuleList(conv_op(here, num_classes, 1) for _, here in widths)

    def forward(self, skips: list[Tensor]) -> Tensor | list[Tensor]:
        """Features of all resolutions to logits."""
        x = skips.pop()
        outputs: list[Tensor] = []
        for stage, head in zip(self.stages, self.seg_layers, strict=True):
            skip = skips.pop()
            x = norm_act(stage(torch.cat([functional.interpolate(x, skip.shape[2:]), skip], 1)))
            outputs.insert(0, head(x))
        return outputs if self.deep_supervision else outputs[0]


class ToyUNet(nn.Module):
    """A U-Net with one convolution a stage, for volumes and for images."""

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        features_per_stage: Sequence[int],
        strides: Sequence[Sequence[int]],
        conv_op: type[nn.Module],
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        self.input_channels, self.strides = input_channels, strides
        features = list(features_per_stage)
        widths = zip([input_channels, *features], features, strides, strict=False)
        self.encoder = nn.ModuleList(conv_op(above, here, 3, stride, 1) for above, here, stride in widths)
        self.decoder = ToyDecoder(features, num_classes, conv_op, deep_supervision)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """(B, C, *spatial) to logits (B, K, *spatial); with deep supervision a list, full resolution first."""
        skips: list[Tensor] = []
        for stage in self.encoder:
            x = norm_act(stage(x))
            skips.append(x)
        outputs: Tensor | list[Tensor] = self.decoder(skips)
        return outputs

    def check_patch_size(self, patch_size: Sequence[int]) -> None:
        """Raise a ValueError for patches that cannot be halved as the strides ask."""
        divisors = [math.prod(stride) for stride in zip(*self.strides, strict=True)]
        if any(edge % divisor for edge, divisor in zip(patch_size, divisors, strict=True)):
            raise ValueError(f"ToyUNet: patch size {tuple(patch_size)} must be divisible by {divisors}.")

    def compute_conv_feature_map_size(self, input_size: Sequence[int]) -> int:
        """What a training step keeps, in the units of nnU-Net's planner; measured."""
        return conv_feature_map_units(self, input_size)


class ToyPlanner(BasePlanner):
    """nnU-Net's search with `ToyUNet`."""

    def architecture_block(self, topology: Topology) -> dict[str, Any]:
        """The network for a topology, JSON values only."""
        arguments = {
            "features_per_stage": [min(self.base_width * 2**i, 320) for i in range(topology.n_stages)],
            "strides": topology.strides,
            "conv_op": f"torch.nn.Conv{topology.dim}d",
        }
        return {
            "network_class_name": f"{__name__}.ToyUNet",
            "arch_kwargs": arguments,
            "_kw_requires_import": ["conv_op"],
        }


class ToyTrainer(BaseTrainer):
    """nnU-Net's recipe on the network of the plans."""


__getattr__ = variant_attribute(__name__)  # ToyTrainer_AdamW_20epochs and all the others

for entry in (
    registry.NetworkEntry("ToyUNet", f"{__name__}:ToyUNet"),
    registry.PlannerEntry("ToyPlanner", f"{__name__}:ToyPlanner", network="ToyUNet"),
    registry.TrainerEntry("ToyTrainer", f"{__name__}:ToyTrainer", network="ToyUNet", planner="ToyPlanner"),
):
    registry.register(entry)
