"""Networks that give every point of a volume a vector that tells where in the body it is.

`SAMEmbedding` is the published one ("Self-supervised Anatomical eMbedding"; with the semantic head its successor UAE):
K. Yan et al., SAM: Self-supervised Learning of Pixel-wise Anatomical Embeddings in Radiological Images, IEEE TMI 2022,
arXiv 2012.02383. Written from the specification `alice` 3.1; parameters have the published names. `SmallEmbedding` is
ours, of specification `alice` 3.2, for any modality and number of channels.

Axes are (z, y, x). Both see volumes of isotropic voxels in the orientation LPS+: indices rise towards superior,
posterior and left.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Triple = tuple[int, int, int]


class Embedding(NamedTuple):
    """Maps of vectors of length 1, (B, channels, *grid) each, over the same volume.

    Attributes:
        fine: at the network's `fine_stride`.
        coarse: at its `coarse_stride`.
        semantic: as fine; None for networks without it.
    """

    fine: Tensor
    coarse: Tensor
    semantic: Tensor | None = None


class EmbeddingNetwork(Protocol):
    """What the rest of the package needs of such a network."""

    fine_stride: Triple
    coarse_stride: Triple

    def __call__(self, x: Tensor) -> Embedding:
        """Embed volumes (B, C, Z, Y, X) whose sizes are multiples of `coarse_stride`."""


class ConvNorm(nn.Module):
    """Convolution without bias, padded to keep the size, and batch norm."""

    def __init__(self, inputs: int, outputs: int, kernel: Triple, stride: Triple = (1, 1, 1)) -> None:
        super().__init__()
        padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
        self.conv = nn.Conv3d(inputs, outputs, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm3d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, *grid) -> (B, outputs, *grid / stride)."""
        normed: Tensor = self.bn(self.conv(x))
        return normed


class BasicBlock(nn.Module):
    """Two normalised convolutions and a shortcut; the stride is the first one's and the shortcut's."""

    def __init__(self, inputs: int, outputs: int, kernel: Triple, stride: Triple, project: bool) -> None:
        super().__init__()
        self.conv1 = ConvNorm(inputs, outputs, kernel, stride)
        self.conv2 = ConvNorm(outputs, outputs, kernel)
        self.downsample = ConvNorm(inputs, outputs, (1, 1, 1), stride) if project else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, *grid) -> (B, outputs, *grid / stride)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        return F.relu(shortcut + self.conv2(F.relu(self.conv1(x), inplace=True)), inplace=True)


class ResNet3d18(nn.Module):
    """The encoder: four stages of two basic blocks, flat kernels in the first two."""

    FEATURES = (64, 128, 256, 512)
    KERNELS: tuple[Triple, ...] = ((1, 3, 3), (1, 3, 3), (3, 3, 3), (3, 3, 3))
    STRIDES: tuple[Triple, ...] = ((1, 2, 2), (1, 2, 2), (1, 2, 2), (2, 2, 2))

    def __init__(self) -> None:
        super().__init__()
        inputs = self.FEATURES[0]
        self.conv1 = ConvNorm(1, inputs, (3, 7, 7))
        for stage, outputs in enumerate(self.FEATURES):
            kernel, stride = self.KERNELS[stage], self.STRIDES[stage]
            first = BasicBlock(inputs, outputs, kernel, stride, True)
            second = BasicBlock(outputs, outputs, kernel, (1, 1, 1), False)
            self.add_module(f"layer{stage + 1}", nn.Sequential(first, second))
            inputs = outputs

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, 1, Z, Y, X) -> the stages' outputs, at the strides (2,2,2), (2,4,4), (2,8,8), (4,16,16)."""
        x = F.relu(self.conv1(x), inplace=True)
        maps = []
        for stage in range(len(self.FEATURES)):
            x = self.get_submodule(f"layer{stage + 1}")(x)
            if stage == 0:
                x = F.max_pool3d(x, (2, 1, 1))
            maps.append(x)
        return maps


class PlainConv(nn.Module):
    """A convolution with bias, under the published name."""

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(inputs, outputs, kernel, padding=kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, *grid) -> (B, outputs, *grid)."""
        y: Tensor = self.conv(x)
        return y


class FeaturePyramid(nn.Module):
    """Maps of several resolutions in one of the finest resolution, of vectors of length 1.

    Args:
        inputs: channels of the maps, finest first.
        outputs: numbers of a vector.
    """

    def __init__(self, inputs: Sequence[int], outputs: int) -> None:
        super().__init__()
        self.lateral_convs = nn.ModuleList(PlainConv(channels, outputs, 1) for channels in inputs)
        self.fpn_convs = nn.ModuleList([PlainConv(outputs, outputs, 3)])

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps (B, inputs[i], *grid[i]), finest first -> (B, outputs, *grid[0])."""
        laterals = [conv(x) for conv, x in zip(self.lateral_convs, maps, strict=True)]
        merged = laterals[-1]
        for finer in laterals[-2::-1]:
            merged = finer + F.interpolate(merged, size=finer.shape[2:], mode="nearest")
        return F.normalize(self.fpn_convs[0](merged), dim=1)


class SAMEmbedding(nn.Module):
    """The published network: a ResNet3d-18, a pyramid for the fine map and a convolution for the coarse one.

    It sees one channel, CT at 2 mm: HU clipped to [-1024, 3071], mapped to [0, 255], minus 50.

    Args:
        semantic: with UAE's second pyramid.
        outputs: numbers of a vector.
    """

    fine_stride: Triple = (2, 2, 2)
    coarse_stride: Triple = (4, 16, 16)

    def __init__(self, semantic: bool = False, outputs: int = 128) -> None:
        super().__init__()
        self.backbone = ResNet3d18()
        features = self.backbone.FEATURES
        self.neck = FeaturePyramid(features[:3], outputs)
        self.read_out_head = FeaturePyramid(features[3:], outputs)
        self.semantic_head = FeaturePyramid(features[:3], outputs) if semantic else None

    def forward(self, x: Tensor) -> Embedding:
        """(B, 1, Z, Y, X) -> maps of vectors."""
        maps = self.backbone(x)
        semantic = None if self.semantic_head is None else self.semantic_head(maps[:3])
        return Embedding(self.neck(maps[:3]), self.read_out_head(maps[3:]), semantic)


class SmallEmbedding(nn.Module):
    """Our own network: instance norm, so that the batch does not matter; 2^3 convolutions halve the resolution.

    A cell of a map is exactly a block of voxels, which lets a mirrored volume give the mirrored grid.

    Args:
        input_channels: channels of the volumes.
        features: of the stages at the strides 1, 2, 4, 8.
        fine: numbers of a fine vector.
        coarse: numbers of a coarse vector.
    """

    fine_stride: Triple = (2, 2, 2)
    coarse_stride: Triple = (8, 8, 8)

    def __init__(
        self, input_channels: int, features: Sequence[int] = (16, 32, 64, 128), fine: int = 32, coarse: int = 32
    ) -> None:
        super().__init__()
        if len(features) != 4:
            raise ValueError(f"features are those of four stages (strides 1, 2, 4, 8), got {tuple(features)}")
        stages = [self._convolutions(input_channels, features[0])]
        for before, after in pairwise(features):
            halve = nn.Conv3d(before, after, 2, 2)
            stages.append(nn.Sequential(halve, *self._convolutions(after, after)))
        self.stages = nn.ModuleList(stages)
        self.fine = FeaturePyramid(features[1:], fine)
        self.coarse = FeaturePyramid(features[3:], coarse)

    @staticmethod
    def _convolutions(inputs: int, outputs: int) -> nn.Sequential:
        layers: list[nn.Module] = []
        for before in (inputs, outputs):
            norm = nn.InstanceNorm3d(outputs, affine=True)
            layers += [nn.Conv3d(before, outputs, 3, padding=1, bias=False), norm, nn.LeakyReLU(0.01)]
        return nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Embedding:
        """(B, C, Z, Y, X) -> maps of vectors.

        Raises:
            ValueError: sizes that are no multiples of the coarse stride.
        """
        if any(size % stride or not size for size, stride in zip(x.shape[2:], self.coarse_stride, strict=True)):
            raise ValueError(f"sizes must be multiples of {self.coarse_stride}, got {tuple(x.shape[2:])}")
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return Embedding(self.fine(maps[1:]), self.coarse(maps[3:]))


def upsampled(coarse: Tensor, size: Sequence[int]) -> Tensor:
    """A coarse map (B, C, *grid) at a finer grid: trilinear, vectors of length 1 again (specification 1.3)."""
    return F.normalize(F.interpolate(coarse, size=torch.Size(size), mode="trilinear", align_corners=False), dim=1)
