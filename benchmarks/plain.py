"""nnU-Net's PlainConvUNet as its planner configures it, for context in every measurement."""

from __future__ import annotations

from collections.abc import Sequence

from dynamic_network_architectures.architectures.unet import PlainConvUNet
from torch import nn


def plain_network(
    features: Sequence[int],
    strides: Sequence[Sequence[int]],
    classes: int,
    *,
    kernels: Sequence[Sequence[int]] | None = None,
    deep_supervision: bool = False,
) -> nn.Module:
    """A PlainConvUNet for images of one channel.

    Args:
        features: feature maps of each stage, full resolution first.
        strides: (D, H, W) or (H, W) of each stage, the first all ones.
        classes: output channels.
        kernels: the same; None: 3 along every axis.
        deep_supervision: it returns the logits of all stages, not of the first alone.
    """
    two = len(strides[0]) == 2
    return PlainConvUNet(
        input_channels=1,
        n_stages=len(features),
        features_per_stage=list(features),
        conv_op=nn.Conv2d if two else nn.Conv3d,
        kernel_sizes=3 if kernels is None else [list(kernel) for kernel in kernels],
        strides=[list(stride) for stride in strides],
        n_conv_per_stage=2,
        num_classes=classes,
        n_conv_per_stage_decoder=2,
        conv_bias=True,
        norm_op=nn.InstanceNorm2d if two else nn.InstanceNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        deep_supervision=deep_supervision,
    )
