"""Convolutions and blocks of SSH-UNet that serve the three views of a volume with one set of weights.

Kernels are kept as (slice, row, column) of a view; a call names the view by its slice axis and gets (D, H, W) volumes.
Specification sshunet 1.4, 1.5 and 6.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from nnunet_ext.architectures.blocks.convolution import convolve
from nnunet_ext.architectures.blocks.gates import GateShift, SliceShift, make_gate
from nnunet_ext.architectures.blocks.layout import is_channels_last, to_channels_last
from nnunet_ext.architectures.blocks.norm_act import norm_act
from nnunet_ext.architectures.blocks.views import (
    VIEWS,
    swap_axes,
    transposed_weight,
    view_weight,
)


@dataclass(frozen=True)
class BlockOptions:
    """What all blocks of one network share; see `SSHUNet` for the meaning."""

    eps: float = 1e-5
    affine: bool = False
    slope: float = 0.01
    dropout_op: type[nn.Module] | None = None
    dropout_op_kwargs: dict[str, Any] | None = None
    fold_div: int = 4
    ratio: float = 0.25
    stride_space: str = "volume"
    transpconv_bias: bool = True

    def dropout(self) -> nn.Module | None:
        return None if self.dropout_op is None else self.dropout_op(**(self.dropout_op_kwargs or {}))


def padding_for(kernel: int, stride: int) -> int:
    """Zero padding on both sides: (kernel - stride + 1) / 2, truncated (specification sshunet 1.4)."""
    return max(0, int((kernel - stride + 1) / 2))


class ViewConv(nn.Conv3d):
    """A 3D convolution with a (slice, row, column) kernel and no bias, applied along any of the three views.

    Args:
        in_channels: channels of all inputs together.
        out_channels: feature maps.
        kernel_size: (slice, row, column).
        stride: (D, H, W) for every view if `stride_space` is "volume", else (slice, row, column) of each view.
        stride_space: "volume" or "view".
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Sequence[int],
        stride: Sequence[int] = (1, 1, 1),
        stride_space: str = "volume",
    ) -> None:
        super().__init__(in_channels, out_channels, swap_axes(kernel_size, 0), bias=False)
        self.steps = [swap_axes(stride, 0 if stride_space == "volume" else axis) for axis in VIEWS]
        self.pads = [
            [padding_for(k, s) for k, s in zip(swap_axes(kernel_size, axis), self.steps[axis], strict=True)]
            for axis in VIEWS
        ]

    def forward(self, inputs: Sequence[Tensor], axis: int) -> Tensor:  # type: ignore[override]
        """Convolve the inputs (B, Ci, D, H, W), as if concatenated on channels, along view `axis`; a new tensor."""
        result: Tensor | None = None
        weights = self.weight.split([x.shape[1] for x in inputs], dim=1)
        for x, part in zip(inputs, weights, strict=True):
            y = convolve(x, view_weight(part, axis, x), self.steps[axis], self.pads[axis])
            result = y if result is None else result.add_(y)  # neither is kept by the convolutions
        assert result is not None
        return result


class ViewTransposedConv(nn.ConvTranspose3d):
    """A transposed convolution with kernel = stride for the three views; the kernel is (slice, row, column).

    Args:
        in_channels, out_channels: feature maps.
        stride: as for `ViewConv`. With "volume" strides that differ between axes the stored kernel has the largest
            stride along every axis, and `transposed_weight` averages it where a view does not upsample.
        stride_space: "volume" or "view".
        bias: whether there is one.
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: Sequence[int], stride_space: str, bias: bool
    ) -> None:
        kernel = (max(stride),) * 3 if stride_space == "volume" else swap_axes(stride, 0)
        super().__init__(in_channels, out_channels, kernel, kernel, bias=bias)
        self.steps = [swap_axes(stride, 0 if stride_space == "volume" else axis) for axis in VIEWS]

    def forward(self, x: Tensor, axis: int) -> Tensor:  # type: ignore[override]
        """x: (B, C, D, H, W); returns the volume upsampled by the stride, (B, C', D', H', W')."""
        steps = self.steps[axis]
        y = functional.conv_transpose3d(x, transposed_weight(self.weight, axis, steps), self.bias, steps)
        return to_channels_last(y) if is_channels_last(x) else y


class InstanceNormAct(nn.Module):
    """Gate, residual, instance normalisation and leaky ReLU of one convolution's output (fused without affine)."""

    def __init__(self, channels: int, options: BlockOptions, activation: bool = True) -> None:
        super().__init__()
        self.eps = options.eps
        self.slope = options.slope if activation else None
        self.weight = nn.Parameter(torch.ones(channels)) if options.affine else None
        self.bias = nn.Parameter(torch.zeros(channels)) if options.affine else None

    def forward(
        self, x: Tensor, axis: int = 0, gate: SliceShift | GateShift | None = None, residual: Tensor | None = None
    ) -> Tensor:
        """x: (B, C, D, H, W), a fresh tensor that may be overwritten; returns the same shape."""
        fold = 0
        if isinstance(gate, SliceShift) and self.weight is None:
            fold = gate.fold_along(x.shape[2 + axis])
        elif gate is not None:
            x = gate(x, axis)
        if self.weight is None:
            return norm_act(x, eps=self.eps, slope=self.slope, residual=residual, shift_axis=axis, fold=fold)
        x = x if residual is None else x + residual
        x = functional.instance_norm(x, weight=self.weight, bias=self.bias, eps=self.eps)
        return x if self.slope is None else functional.leaky_relu(x, self.slope)


class ShiftBlock(nn.Module):
    """Two convolutions, each followed by the same gate, and a shortcut (specification sshunet 1.4).

    Differences from nnU-Net's residual block: the second normalisation acts on the sum, and the gate sits between
    convolution and normalisation.

    Args:
        in_channels, out_channels: feature maps.
        kernel: (slice, row, column).
        stride: see `ViewConv`.
        gate: "tsm", "gsm", "gsf" or "none".
        decoder: whether GSM and GSF move in the decoder's directions.
        residual: False for the published basic decoder block, which has no shortcut.
        options: see `BlockOptions`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: Sequence[int],
        stride: Sequence[int],
        gate: str,
        options: BlockOptions,
        *,
        decoder: bool = False,
        residual: bool = True,
    ) -> None:
        super().__init__()
        space = options.stride_space
        self.residual = residual
        self.conv1 = ViewConv(in_channels, out_channels, kernel, stride, space)
        self.conv2 = ViewConv(out_channels, out_channels, kernel)
        self.norm1 = InstanceNormAct(out_channels, options)
        self.norm2 = InstanceNormAct(out_channels, options)
        self.gate = make_gate(gate, out_channels, decoder=decoder, fold_div=options.fold_div, ratio=options.ratio)
        self.dropout = options.dropout()
        self.shortcut: ViewConv | None = None
        if residual and (in_channels != out_channels or max(stride) > 1):
            self.shortcut = ViewConv(in_channels, out_channels, (1, 1, 1), stride, space)
            self.norm3 = InstanceNormAct(out_channels, options, activation=False)

    def _convolved(self, conv: ViewConv, inputs: Sequence[Tensor], axis: int) -> Tensor:
        x = conv(inputs, axis)
        return x if self.dropout is None else self.dropout(x)

    def forward(self, inputs: Sequence[Tensor], axis: int) -> Tensor:
        """inputs: (B, Ci, D, H, W) each, as if concatenated; returns (B, C, D', H', W') of the view `axis`."""
        x = self.norm1(self._convolved(self.conv1, inputs, axis), axis, self.gate)
        x = self._convolved(self.conv2, [x], axis)
        if self.shortcut is not None:
            return self.norm2(x, axis, self.gate, self.norm3(self._convolved(self.shortcut, inputs, axis)))
        identity = torch.cat(list(inputs), dim=1) if self.residual else None
        return self.norm2(x, axis, self.gate, identity)
