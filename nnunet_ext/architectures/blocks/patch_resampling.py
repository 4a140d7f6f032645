"""Convolutions whose kernel is as large as their stride, down and up (specification unetrpp 1.2 and 1.6)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from nnunet_ext.architectures.blocks.convolution import Conv2d, Conv3d
from nnunet_ext.architectures.blocks.layout import is_channels_last, to_channels_last


class PatchEmbedding(nn.Module):
    """Joins each patch of `stride` voxels to one token: convolution without bias, then group norm.

    Args:
        inputs, outputs: feature maps.
        stride: (D, H, W) or (H, W); the kernel, too.
        groups: of the norm; divides `outputs`.
    """

    def __init__(self, inputs: int, outputs: int, stride: Sequence[int], groups: int) -> None:
        super().__init__()
        step = tuple(stride)
        self.conv = (Conv3d if len(step) == 3 else Conv2d)(inputs, outputs, step, step, bias=False)  # type: ignore[arg-type]
        self.norm = nn.GroupNorm(groups, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, inputs, *size); returns (B, outputs, *(size / stride))."""
        tokens: Tensor = self.norm(self.conv(x))
        return to_channels_last(tokens) if is_channels_last(x) else tokens


class PatchExpansion(nn.Module):
    """Transposed convolution without bias, its kernel as large as its stride, plus the skip connection.

    Args:
        inputs, outputs: feature maps.
        stride: (D, H, W) or (H, W).
    """

    def __init__(self, inputs: int, outputs: int, stride: Sequence[int]) -> None:
        super().__init__()
        step = tuple(stride)
        conv = nn.ConvTranspose3d if len(step) == 3 else nn.ConvTranspose2d
        self.conv = conv(inputs, outputs, step, step, bias=False)  # type: ignore[arg-type]

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """x: (B, inputs, *size), skip: (B, outputs, *(size * stride)); returns the skip's shape."""
        up: Tensor = self.conv(x) + skip
        return to_channels_last(up) if is_channels_last(skip) else up
