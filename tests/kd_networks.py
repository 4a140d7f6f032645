"""Small U-shaped networks for the tests of self-regularisation."""

from __future__ import annotations

import pydoc
from collections.abc import Sequence
from typing import Any

import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from torch import Tensor, nn

from nnunet_ext.architectures.sshunet_plans import sshunet_architecture
from nnunet_ext.architectures.unetrpp_plans import unetrpp_architecture
from nnunet_ext.losses.self_regularisation import Features
from nnunet_ext.losses.store import FeatureStore

WIDTHS = (4, 6, 7, 8)
CLASSES = 3


def u_net(axes: int = 2, stages: int = 3, residual: bool = False, strides: Sequence[Any] | None = None) -> nn.Module:
    """nnU-Net's own networks with deep supervision, seeded."""
    torch.manual_seed(0)
    blocks = {"n_blocks_per_stage": 1} if residual else {"n_conv_per_stage": 1}
    made: nn.Module = (ResidualEncoderUNet if residual else PlainConvUNet)(
        input_channels=1,
        n_stages=stages,
        features_per_stage=WIDTHS[:stages],
        conv_op=nn.Conv2d if axes == 2 else nn.Conv3d,
        kernel_sizes=3,
        strides=strides or [1] + [2] * (stages - 1),
        num_classes=CLASSES,
        n_conv_per_stage_decoder=1,
        conv_bias=True,
        norm_op=nn.InstanceNorm2d if axes == 2 else nn.InstanceNorm3d,
        norm_op_kwargs={"affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        deep_supervision=True,
        **blocks,
    )
    return made


def planned(block: dict[str, Any]) -> Any:
    """The network of an architecture block, with deep supervision, seeded."""
    arguments = dict(block["arch_kwargs"])
    for key in block["_kw_requires_import"]:
        arguments[key] = None if arguments[key] is None else pydoc.locate(arguments[key])
    torch.manual_seed(0)
    network: Any = pydoc.locate(block["network_class_name"])
    return network(input_channels=1, num_classes=CLASSES, deep_supervision=True, **arguments)


def sshunet(strides: Sequence[Sequence[int]] = ((1, 1, 1), (2, 2, 2), (2, 2, 2)), **options: Any) -> Any:
    """SSH-UNet of three stages."""
    return planned(sshunet_architecture(strides, [4, 8, 12], **options))


def unetrpp(patch: Sequence[int] = (16, 32, 32)) -> Any:
    """UNETR++ of four stages, one block each, without dropout."""
    axes = len(patch)
    short = {"n_blocks_per_stage": [1] * 3, "n_blocks_per_stage_decoder": [1] * 2}
    quiet = {"attention_dropout": [0.0, 0.0], "block_dropout": 0.0}
    return planned(unetrpp_architecture(patch, [[1] * axes, *[[2] * axes] * 3], base_width=4, **short, **quiet))


def captured(network: nn.Module, x: Tensor) -> tuple[Any, Features]:
    """Output and features of one training forward."""
    store = FeatureStore(network)
    output = network.train()(x)
    features = store.take()
    store.remove()
    assert features is not None
    return output, features
