"""Convolutions that keep a channels-last image or volume channels-last."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from nnunet_ext.architectures.blocks.layout import channels_last_format, is_channels_last, to_channels_last


def convolve(
    x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int], bias: Tensor | None = None
) -> Tensor:
    """Convolution of x (B, C, *spatial) with weight (C', C, *kernel), in x's memory layout; a fresh tensor.

    On CPUs, and on the meta device, which stands in for one, torch's own choice would fall back to a slow kernel with
    another layout for channels-last tensors of few channels, small volumes, or 1 x 1 x 1 kernels on one thread.
    torch.compile chooses by itself, and cannot trace the question whether oneDNN is there.
    """
    if torch.compiler.is_compiling() or x.device.type == "cuda" or not is_channels_last(x):
        return _convolution(x)(x, weight, bias, stride, padding)
    if x.device.type != "cpu" or x.dtype != torch.float32 or not torch.backends.mkldnn.is_available():
        return to_channels_last(_convolution(x)(x, weight, bias, stride, padding))
    if max(weight.shape[2:]) == 1 and max(stride) == 1:
        return functional.linear(x.movedim(1, -1), weight.flatten(1), bias).movedim(-1, 1)
    return torch.mkldnn_convolution(x, weight, bias, padding, stride, (1,) * len(stride), 1)


def _convolution(x: Tensor) -> Any:
    return functional.conv3d if x.dim() == 5 else functional.conv2d


class _Convolution(nn.Module):
    """What `Conv2d` and `Conv3d` share."""

    weight: Tensor
    bias: Tensor | None
    stride: tuple[int, ...]
    padding: Any

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, *spatial); returns (B, C', *spatial') in x's memory layout."""
        layout = channels_last_format(x) if is_channels_last(x) else torch.contiguous_format
        weight = self.weight.contiguous(memory_format=layout)
        return convolve(x, weight, self.stride, [int(p) for p in self.padding], self.bias)


class Conv2d(_Convolution, nn.Conv2d):
    """`torch.nn.Conv2d` (no groups, no dilation) by `convolve`."""


class Conv3d(_Convolution, nn.Conv3d):
    """`torch.nn.Conv3d` (no groups, no dilation) by `convolve`."""


def convolution(dim: int, inputs: int, outputs: int, kernel: int, *, bias: bool = False) -> nn.Module:
    """A 2D or 3D convolution of odd `kernel` that keeps the size."""
    module = Conv3d if dim == 3 else Conv2d
    return module(inputs, outputs, kernel, padding=kernel // 2, bias=bias)
