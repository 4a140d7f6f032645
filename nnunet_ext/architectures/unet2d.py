"""The plain 2D U-Net of SelfReg-UNet's paper, for its published weights; new trainings have nnU-Net's PlainConvUNet.

W. Zhu et al., SelfReg-UNet, MICCAI 2024, arXiv 2406.14896; the network is that of `milesial/Pytorch-UNet`. Written from
the specification `selfreg` 2.1. Parameters have the published names, but for the head: `outc.conv` is
`decoder.seg_layers.0` here, so that nnU-Net leaves it out of pretrained weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nnunet_ext.architectures.blocks.memory import conv_feature_map_units
from nnunet_ext.losses.points import KDPoint, KDPoints

NETWORK_CLASS = "nnunet_ext.architectures.unet2d.PublishedUNet2d"
STAGES = 5
UPSAMPLING = ("bilinear", "transposed")


def unet2d_features(base_width: int, upsampling: str) -> list[int]:
    """Feature maps of each stage; they double, but for the last with bilinear up-sampling."""
    last = 8 if upsampling == "bilinear" else 16
    return [base_width * factor for factor in (1, 2, 4, 8, last)]


def unet2d_architecture(base_width: int = 64, upsampling: str = "bilinear") -> dict[str, Any]:
    """The `architecture` block of a plans file; JSON values only.

    Args:
        base_width: features at full resolution.
        upsampling: "bilinear" or "transposed" (convolutions).
    """
    return {
        "network_class_name": NETWORK_CLASS,
        "arch_kwargs": {
            "n_stages": STAGES,
            "features_per_stage": unet2d_features(base_width, upsampling),
            "conv_op": "torch.nn.modules.conv.Conv2d",
            "strides": [[1, 1], *([2, 2] for _ in range(STAGES - 1))],
            "upsampling": upsampling,
        },
        "_kw_requires_import": ["conv_op"],
    }


class DoubleConv(nn.Module):
    """Twice: 3 x 3 convolution without bias, batch norm, ReLU."""

    def __init__(self, inputs: int, middle: int, outputs: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in ((inputs, middle), (middle, outputs)):
            layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
        self.double_conv = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, H, W)."""
        result: Tensor = self.double_conv(x)
        return result


class Down(nn.Module):
    """Maximum of 2 x 2 pixels, then convolutions."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.maxpool_conv = nn.Sequential(nn.MaxPool2d(2), DoubleConv(inputs, outputs, outputs))

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, H // 2, W // 2)."""
        result: Tensor = self.maxpool_conv(x)
        return result


class Up(nn.Module):
    """A deeper map to the size of a skip connection's, both convolved together."""

    def __init__(self, deep: int, skip: int, outputs: int, upsampling: str) -> None:
        super().__init__()
        self.up: nn.Module
        if upsampling == "bilinear":
            self.up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
            self.conv = DoubleConv(deep + skip, (deep + skip) // 2, outputs)
        else:
            self.up = nn.ConvTranspose2d(deep, deep // 2, 2, 2)
            self.conv = DoubleConv(deep // 2 + skip, outputs, outputs)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """(B, deep, h, w) and (B, skip, H, W), about twice as large, to (B, outputs, H, W)."""
        x = self.up(x)
        rows, columns = skip.shape[2] - x.shape[2], skip.shape[3] - x.shape[3]
        if rows or columns:
            x = F.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
        result: Tensor = self.conv(torch.cat([skip, x], 1))
        return result


class PublishedUNet2d(nn.Module):
    """The paper's U-Net for images (B, C, H, W) of at least 16 pixels along each axis.

    Args:
        input_channels: C.
        num_classes: K, number of segmentation heads.
        n_stages: 5.
        features_per_stage: as of `unet2d_features`.
        conv_op: `torch.nn.Conv2d`.
        strides: (H, W) per stage: 1, then 2.
        upsampling: "bilinear" or "transposed" (convolutions).
        deep_supervision: must be off: the network has one output.

    Raises:
        NotImplementedError: another `conv_op`, or deep supervision.
        ValueError: anything else that the network cannot be built with.
    """

    supports_deep_supervision = False  # our trainers then leave it off

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        n_stages: int,
        features_per_stage: Sequence[int],
        conv_op: type[nn.Module],
        strides: Sequence[Sequence[int]],
        upsampling: str = "bilinear",
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        features = list(features_per_stage)
        _check(n_stages, features, conv_op, strides, upsampling, deep_supervision)
        self.input_channels, self.num_classes = input_channels, num_classes
        self.inc = DoubleConv(input_channels, features[0], features[0])
        for i in range(1, n_stages):
            self.add_module(f"down{i}", Down(features[i - 1], features[i]))
        deep = features[-1]
        for i, skip in enumerate(features[-2::-1], start=1):
            outputs = skip // 2 if upsampling == "bilinear" and i < n_stages - 1 else skip
            self.add_module(f"up{i}", Up(deep, skip, outputs, upsampling))
            deep = outputs
        self.decoder = nn.Module()
        self.decoder.seg_layers = nn.ModuleList([nn.Conv2d(deep, num_classes, 1)])

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W), floating, to logits (B, K, H, W).

        Raises:
            ValueError: fewer than 16 pixels along an axis, or no image.
        """
        self.check_patch_size(x.shape[2:])
        skips = [self.inc(x)]
        for i in range(1, STAGES):
            skips.append(self.get_submodule(f"down{i}")(skips[-1]))
        x = skips.pop()
        for i in range(1, STAGES):
            x = self.get_submodule(f"up{i}")(x, skips.pop())
        logits: Tensor = self.decoder.seg_layers[0](x)  # type: ignore[index, operator]  # a ModuleList
        return logits

    def check_patch_size(self, patch_size: Sequence[int]) -> None:
        """Raise a ValueError unless there are two axes of at least 16 pixels."""
        least = 2 ** (STAGES - 1)
        if len(patch_size) != 2 or min(patch_size) < least:
            raise ValueError(
                f"The 2D U-Net needs images of at least {least} x {least} pixels; got {tuple(patch_size)}."
            )

    def compute_conv_feature_map_size(self, input_size: Sequence[int]) -> int:
        """Memory of a training step in nnU-Net's units, one sample of `input_size`; see blocks/memory.py."""
        return conv_feature_map_units(self, input_size)

    def kd_points(self) -> KDPoints:
        """All stages but the stem; the head's input teaches (specification selfreg 1.4)."""
        encoder = tuple((KDPoint(f"down{i}"),) for i in range(1, STAGES))
        decoder = tuple((KDPoint(f"up{i}"),) for i in range(1, STAGES - 1))
        return KDPoints(encoder, decoder, KDPoint(f"up{STAGES - 1}"))


def _check(
    n_stages: int,
    features: list[int],
    conv_op: Any,
    strides: Sequence[Sequence[int]],
    upsampling: str,
    deep_supervision: bool,
) -> None:
    if conv_op is not nn.Conv2d:
        raise NotImplementedError(
            f"The published U-Net is a 2D network: conv_op must be torch.nn.Conv2d, got {conv_op}."
        )
    if deep_supervision:
        raise NotImplementedError(
            "The published U-Net has one output: train it without deep supervision, e.g. with "
            "-tr nnUNetTrainerNoDeepSupervision."
        )
    if upsampling not in UPSAMPLING:
        raise ValueError(f"upsampling {upsampling!r} unknown; choose {' or '.join(UPSAMPLING)}.")
    expected = unet2d_architecture(features[0], upsampling)["arch_kwargs"]
    given = {"n_stages": n_stages, "features_per_stage": features, "strides": [list(stride) for stride in strides]}
    for name, value in given.items():
        if value != expected[name]:
            raise ValueError(f"The published U-Net has {name} {expected[name]} with these features; got {value}.")
