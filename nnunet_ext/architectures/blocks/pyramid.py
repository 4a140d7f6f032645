"""OSSNetLocal's encoder: a residual network on a pooled image, and a light way back up."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from nnunet_ext.architectures.blocks.activation import SLOPE, make_activation
from nnunet_ext.architectures.blocks.layout import CPU_LIKE, to_channels_last
from nnunet_ext.architectures.blocks.norm_act import norm_act
from nnunet_ext.architectures.blocks.pooling import pooled


class NormAct(nn.Module):
    """Instance normalisation without weights, a shortcut to add, and an activation."""

    def __init__(self, activation: str) -> None:
        super().__init__()
        self.fused = activation == "leaky_relu"
        self.activation = nn.Identity() if self.fused else make_activation(activation)

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        """x: a convolution's fresh output (B, C, *spatial); shortcut: of its shape."""
        out: Tensor = self.activation(norm_act(x, slope=SLOPE if self.fused else None, shortcut=shortcut))
        return out


class DownBlock(nn.Module):
    """act(norm(conv(act(norm(conv_strided(x))))) + shortcut), the shortcut a pooled 1-voxel convolution."""

    def __init__(
        self, conv: type[nn.Module], inputs: int, outputs: int, kernel: Sequence[int], stride: Sequence[int], act: str
    ) -> None:
        super().__init__()
        padding = tuple(k // 2 for k in kernel)
        self.stride = tuple(stride)
        self.conv1 = conv(inputs, outputs, tuple(kernel), self.stride, padding, bias=False)
        self.conv2 = conv(outputs, outputs, tuple(kernel), padding=padding, bias=False)
        self.shortcut = conv(inputs, outputs, 1, bias=False)
        self.norm_act1, self.norm_act2 = NormAct(act), NormAct(act)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, *spatial) to (B, outputs, *spatial / stride)."""
        shortcut = self.shortcut(pooled(x, self.stride))
        out: Tensor = self.norm_act2(self.conv2(self.norm_act1(self.conv1(x))), shortcut)
        return out


class Pyramid(nn.Module):
    """The encoder and the maps that points sample.

    Args:
        conv: `Conv2d` or `Conv3d` of the house.
        inputs: channels of the image.
        features: of each stage, the first one at the first stride.
        kernels, strides: of each of these stages; the image is averaged by the first stride.
        width: of the way back up.
        sampled: of the maps that points sample.
        top: the stage whose resolution is the highest on the way back up.
        levels: how many maps are sampled, from there downwards.
        activation: "leaky_relu", "gelu" or "pade".
    """

    def __init__(
        self,
        conv: type[nn.Module],
        inputs: int,
        features: Sequence[int],
        kernels: Sequence[Sequence[int]],
        strides: Sequence[Sequence[int]],
        *,
        width: int,
        sampled: int,
        top: int,
        levels: int,
        activation: str,
    ) -> None:
        super().__init__()
        self.strides = [tuple(stride) for stride in strides]
        self.top, self.levels = top, levels
        first = tuple(kernels[0])
        self.stem = conv(inputs, features[0], first, padding=tuple(k // 2 for k in first), bias=False)
        self.stem_norm_act = NormAct(activation)
        self.stages = nn.ModuleList(
            DownBlock(conv, features[i - 1], features[i], kernels[i], strides[i], activation)
            for i in range(1, len(features))
        )
        stages = range(top, len(features))
        self.laterals = nn.ModuleList(conv(features[i], width, 1, bias=False) for i in stages)
        self.smooth = nn.ModuleList(
            conv(width, width, tuple(kernels[i]), padding=tuple(k // 2 for k in kernels[i]), bias=False) for i in stages
        )
        self.smooth_norm_act = nn.ModuleList(NormAct(activation) for _ in stages)
        self.projections = nn.ModuleList(conv(width, sampled, 1) for _ in range(levels))

    def forward(self, x: Tensor) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """Encode an image.

        Args:
            x: (B, C, *spatial), divisible by the total stride.

        Returns:
            The sampled maps (B, sampled, *cells), high resolution first; the same before their projection (B, width,
            *cells); and the mean of the deepest stage (B, features[-1]).
        """
        x = pooled(x, self.strides[0])
        if x.device.type in CPU_LIKE:
            x = to_channels_last(x)
        maps = [self.stem_norm_act(self.stem(x))]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        up: Tensor | None = None
        ways: list[Tensor] = []
        for i in range(len(maps) - 1, self.top - 1, -1):
            merged = self.laterals[i - self.top](maps[i])
            if up is not None:
                merged = merged + functional.interpolate(up, size=merged.shape[2:], mode="nearest")
            up = self.smooth_norm_act[i - self.top](self.smooth[i - self.top](merged))
            ways.insert(0, up)
        ways = ways[: self.levels]
        sampled = [project(way) for project, way in zip(self.projections, ways, strict=True)]
        return sampled, ways, maps[-1].flatten(2).mean(2)
