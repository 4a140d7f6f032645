"""A network of one's own, with its planner, trainer and registration, as docs/extending.md quotes it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from nnunet_ext import registry
from nnunet_ext.architectures.blocks.memory import conv_feature_map_units
from nnunet_ext.planners.base import BasePlanner, Topology
from nnunet_ext.trainers.base import BaseTrainer
from nnunet_ext.trainers.variants import variant_attribute


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
        down, up = list(features_per_stage), list(features_per_stage)[-2::-1]
        widths = zip([input_channels, *down], down, strides, strict=False)
        self.encoder = nn.ModuleList(conv_op(i, o, 3, s, 1) for i, o, s in widths)
        self.decoder = decoder = cast(Any, nn.Module())
        decoder.deep_supervision = deep_supervision  # nnU-Net switches it
        decoder.stages = nn.ModuleList(conv_op(i + o, o, 3, 1, 1) for i, o in zip(down[:0:-1], up, strict=True))
        decoder.seg_layers = nn.ModuleList(conv_op(o, num_classes, 1) for o in up)  # all heads, always

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """(B, C, *spatial) to logits (B, K, *spatial); with deep supervision a list, full resolution first."""
        skips, outputs = [x], list[Tensor]()
        for stage in self.encoder:
            skips.append(functional.leaky_relu(functional.instance_norm(stage(skips[-1]))))
        x = skips.pop()
        for stage, head in zip(self.decoder.stages, self.decoder.seg_layers, strict=True):
            skip = skips.pop()
            x = stage(torch.cat([functional.interpolate(x, skip.shape[2:]), skip], 1))
            x = functional.leaky_relu(functional.instance_norm(x))
            outputs.insert(0, head(x))
        return outputs if self.decoder.deep_supervision else outputs[0]

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
