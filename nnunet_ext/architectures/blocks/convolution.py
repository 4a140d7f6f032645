"""3D convolutions that keep a channels-last volume channels-last."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from nnunet_ext.architectures.blocks.views import is_channels_last, to_channels_last, view_weight


def convolve(
    x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int], bias: Tensor | None = None
) -> Tensor:
    """3D convolution of x (B, C, D, H, W) with weight (C', C, d, h, w), in x's memory layout; a fresh tensor.

    Channels-last volumes occur on CPUs only (`SSHUNet`), and on the meta device, which stands in for one. For them
    torch's own choice would fall back to a slow kernel with another layout for few channels, small volumes, or
    1 x 1 x 1 kernels on one thread.
    """
    if not is_channels_last(x):
        return functional.conv3d(x, weight, bias, stride, padding)
    if x.device.type != "cpu" or x.dtype != torch.float32 or not torch.backends.mkldnn.is_available():
        return to_channels_last(functional.conv3d(x, weight, bias, stride, padding))
    if max(weight.shape[2:]) == 1 and max(stride) == 1:
        return functional.linear(x.permute(0, 2, 3, 4, 1), weight.flatten(1), bias).permute(0, 4, 1, 2, 3)
    return torch.mkldnn_convolution(x, weight, bias, padding, stride, (1, 1, 1), 1)


class Conv3d(nn.Conv3d):
    """`torch.nn.Conv3d` (no groups, no dilation) by `convolve`."""

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, D, H, W); returns (B, C', D', H', W') in x's memory layout."""
        padding = [int(p) for p in self.padding]
        return convolve(x, view_weight(self.weight, 0, x), self.stride, padding, self.bias)
