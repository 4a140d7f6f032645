"""UNETR++'s residual block of two convolutions (specification unetrpp 1.5)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from nnunet_ext.architectures.blocks.convolution import convolution
from nnunet_ext.architectures.blocks.norm_act import norm_act

SLOPE = 0.01


class ResidualBlock(nn.Module):
    """leaky_relu(norm(conv(leaky_relu(norm(conv(x))))) + shortcut), convolutions of 3 voxels, without bias.

    The shortcut is x, or where the widths differ its normalised 1-voxel convolution. Instance normalisation without
    weights keeps only the activated outputs for backward (`norm_act`).

    Args:
        dim: spatial dimensions, 2 or 3.
        inputs, outputs: feature maps.
        norm_op: class of the normalisations, for `dim` dimensions.
        norm_op_kwargs: its keyword arguments beside the number of features.
        slope: of the leaky ReLU.
    """

    def __init__(
        self,
        dim: int,
        inputs: int,
        outputs: int,
        norm_op: type[nn.Module],
        norm_op_kwargs: Mapping[str, Any],
        slope: float = SLOPE,
    ) -> None:
        super().__init__()
        self.slope = slope
        self.conv1 = convolution(dim, inputs, outputs, 3)
        self.norm1 = norm_op(outputs, **norm_op_kwargs)
        self.conv2 = convolution(dim, outputs, outputs, 3)
        self.norm2 = norm_op(outputs, **norm_op_kwargs)
        self.shortcut: nn.Module | None = None
        if inputs != outputs:
            self.shortcut = convolution(dim, inputs, outputs, 1)
            self.shortcut_norm = norm_op(outputs, **norm_op_kwargs)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, inputs, *spatial); returns (B, outputs, *spatial)."""
        shortcut = x
        if self.shortcut is not None:
            shortcut = _norm(self.shortcut_norm, self.shortcut(x), None)
        y = _norm(self.norm1, self.conv1(x), self.slope)
        return _norm(self.norm2, self.conv2(y), self.slope, shortcut)


def _norm(norm: Any, x: Tensor, slope: float | None, shortcut: Tensor | None = None) -> Tensor:
    """leaky_relu(norm(x) + shortcut) for a convolution's fresh output x; without slope, no activation."""
    instance = isinstance(norm, (nn.InstanceNorm2d, nn.InstanceNorm3d))
    if instance and norm.weight is None and not norm.track_running_stats:
        return norm_act(x, eps=norm.eps, slope=slope, shortcut=shortcut)
    y: Tensor = norm(x)
    if shortcut is not None:
        y = y + shortcut
    return y if slope is None else functional.leaky_relu(y, slope, inplace=True)
