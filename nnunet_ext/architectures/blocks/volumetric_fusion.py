"""The volumetric fusion net (VFN) that merges the three views' maps in 3D (specification sshunet 1.10)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nnunet_ext.architectures.blocks.convolution import Conv3d
from nnunet_ext.architectures.blocks.norm_act import norm_act

DIVISOR = 8
"""Every patch axis must be divisible by this: three halvings."""


class _DoubleConv(nn.Module):
    """conv-norm-lrelu twice, 3 x 3 x 3, no bias, no affine parameters; the first convolution may be strided."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = Conv3d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.conv2 = Conv3d(out_channels, out_channels, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return norm_act(self.conv2(norm_act(self.conv1(x))))


class _Up(_DoubleConv):
    """Transposed convolution (2 x 2 x 2, stride 2, no bias), concatenation with the skip, double convolution."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(2 * out_channels, out_channels)
        self.transpconv = nn.ConvTranspose3d(in_channels, out_channels, 2, 2, bias=False)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(torch.cat([self.transpconv(x), skip], dim=1))


class VolumetricFusion(nn.Module):
    """A small 3D U-Net on the three views' class maps. Its cost grows with the square of `width`.

    Args:
        in_channels: feature maps of the decoder's full-resolution stage.
        num_classes: K, number of segmentation heads.
        width: maps per view and unit of width inside; K in the published network.
    """

    def __init__(self, in_channels: int, num_classes: int, width: int | None = None) -> None:
        super().__init__()
        k = num_classes if width is None else width
        self.project = Conv3d(in_channels, k, 1)
        self.down1 = _DoubleConv(3 * k, 6 * k, stride=2)
        self.down2 = _DoubleConv(6 * k, 9 * k, stride=2)
        self.bottleneck = _DoubleConv(9 * k, 12 * k, stride=2)
        self.up2 = _Up(12 * k, 9 * k)
        self.up1 = _Up(9 * k, 6 * k)
        self.up0 = _Up(6 * k, 3 * k)
        self.out = Conv3d(3 * k, num_classes, 1)

    def forward(self, projected: Sequence[Tensor]) -> Tensor:
        """Three projected views (B, width, D, H, W), in view order; returns logits (B, K, D, H, W)."""
        maps = torch.cat(list(projected), dim=1)
        half = self.down1(maps)
        quarter = self.down2(half)
        x = self.up2(self.bottleneck(quarter), quarter)
        logits: Tensor = self.out(self.up0(self.up1(x, half), maps))
        return logits
