"""OSSNetLocal: an occupancy network for patches of any size, which samples feature maps at its points.

Derived from OSS-Net (C. Reich, T. Prangemeier, Ö. Cetin, H. Koeppl, BMVC 2021, arXiv 2110.10640) for nnU-Net's patches,
written from ``specs/ossnet.md`` 6.3. OSS-Net's flattened global code fixes the patch and knows absolute positions; here
points sample the maps of a pyramid instead (Convolutional Occupancy Networks, ECCV 2020; IOSNet, MIDL 2022), beside the
local observation of the image at full resolution that OSS-Net introduced.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nnunet_ext.architectures.blocks.activation import SLOPE
from nnunet_ext.architectures.blocks.adaptive_decoding import DecodeMode
from nnunet_ext.architectures.blocks.convolution import Conv2d, Conv3d
from nnunet_ext.architectures.blocks.local_features import LAYERS, LocalFeatures
from nnunet_ext.architectures.blocks.point_decoder import ModulatedNorm, PointDecoder
from nnunet_ext.architectures.blocks.point_features import cell_position, sample_map
from nnunet_ext.architectures.blocks.pyramid import Pyramid
from nnunet_ext.architectures.occupancy import OccupancyNetwork, check_decode_mode
from nnunet_ext.architectures.ossnet_local_checks import check_arguments, check_image_size

TOP = 2  # the stage of the finest sampled map: stride 4 in nnU-Net's plans
LEVELS = 3
CHUNK = 2**16
FIRST_STRIDE = 8
LOGIT_STD = 0.01


@dataclass(frozen=True)
class LocalContext:
    """What `OSSNetLocal` computes once an image.

    Attributes:
        maps: sampled maps (B, features, *cells), high resolution first.
        coarse: logits of the coarse heads (B, K, *cells), at the same resolutions.
        summary: (B, features), the mean of the deepest stage.
    """

    maps: list[Tensor]
    coarse: list[Tensor]
    summary: Tensor


class CoarseHeads(nn.Module):
    """Whether a class occurs in a cell: a 1-voxel convolution of each map."""

    def __init__(self, dim: int, inputs: int, classes: int, levels: int) -> None:
        super().__init__()
        conv = Conv3d if dim == 3 else Conv2d
        self.seg_layers = nn.ModuleList(conv(inputs, classes, 1) for _ in range(levels))

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps (B, inputs, *cells) to logits (B, classes, *cells)."""
        return [head(m) for head, m in zip(self.seg_layers, maps, strict=True)]


class OSSNetLocal(OccupancyNetwork):
    """Occupancy network for patches (B, C, *spatial) of any size, built from nnU-Net plans.

    Stage 0 is the image itself, seen by the local features at full resolution; the encoder works on the image averaged
    by the stride of stage 1. A point's features are its surroundings of 7 voxels (3 along axes with kernels of 1), the
    maps at strides of 4, 8 and 16 at its place, and its place in the finest cell.

    Args:
        input_channels: C.
        n_stages: resolutions, the full one included; at least two.
        features_per_stage: feature maps; that of stage 0 sets the width of all that belongs to points (local features
            twice, decoder eight times that).
        conv_op: `torch.nn.Conv2d` or `torch.nn.Conv3d`.
        kernel_sizes: of each stage, 1 or 3 along each axis.
        strides: of each stage, the first all ones.
        num_classes: K, number of segmentation heads.
        regions: K regions (a sigmoid each) instead of K classes.
        n_points: points a sample in training, for the planner.
        decoder_blocks: residual blocks of the point decoder.
        activation: "leaky_relu", "gelu" or "pade" (OSS-Net's own, slower).
        decode_mode: how dense logits are made in prediction: "adaptive", "dense" or "budget".
        deep_supervision: see `OccupancyNetwork.forward`.

    Raises:
        NotImplementedError: another `conv_op`.
        ValueError: anything impossible; the text says what is allowed.
    """

    def __init__(
        self,
        input_channels: int,
        n_stages: int,
        features_per_stage: Sequence[int],
        conv_op: type[nn.Module],
        kernel_sizes: Sequence[Sequence[int]],
        strides: Sequence[Sequence[int]],
        num_classes: int,
        regions: bool = False,
        n_points: int = 2**14,
        decoder_blocks: int = 3,
        activation: str = "leaky_relu",
        decode_mode: DecodeMode = "adaptive",
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        check_decode_mode(decode_mode)
        self.decode_mode = decode_mode
        check_arguments(
            n_stages=n_stages,
            conv_op=conv_op,
            features_per_stage=features_per_stage,
            kernel_sizes=kernel_sizes,
            strides=strides,
            n_points=n_points,
            decoder_blocks=decoder_blocks,
        )
        self.dim = 3 if issubclass(conv_op, nn.Conv3d) else 2
        self.input_channels, self.num_classes = input_channels, num_classes
        self.regions = regions or num_classes == 1
        self.n_points, self.chunk_points = n_points, CHUNK
        self.strides = [tuple(int(s) for s in stride) for stride in strides]
        self.total_stride = _product(self.strides)
        top = min(TOP, n_stages - 1)
        levels = min(LEVELS, n_stages - top)
        self.cell = _product(self.strides[: top + 1])
        self.first_stride = tuple(_power_of_two(min(FIRST_STRIDE, total)) for total in self.total_stride)
        width = int(features_per_stage[0])
        self.pyramid = Pyramid(
            Conv3d if self.dim == 3 else Conv2d,
            input_channels,
            features_per_stage[1:],
            kernel_sizes[1:],
            self.strides[1:],
            width=2 * width,
            sampled=width,
            top=top - 1,
            levels=levels,
            activation=activation,
        )
        flat = [1 if k == 1 else 3 for k in kernel_sizes[0]]
        self.local = LocalFeatures(
            self.dim,
            input_channels,
            (max(width // 2, 1), width, 2 * width),
            [*([flat] * (LAYERS - 1)), [3] * self.dim],
            activation,
        )
        self.heads = CoarseHeads(self.dim, 2 * width, num_classes, levels)
        self.decoder = PointDecoder(
            2 * width + levels * width + 2 * self.dim,
            8 * width,
            int(features_per_stage[-1]),
            num_classes,
            decoder_blocks,
            activation,
            deep_supervision,
        )
        _initialise(self)

    def encode(self, x: Tensor) -> LocalContext:
        """Maps and global context of images (B, C, *spatial)."""
        maps, ways, summary = self.pyramid(x)
        return LocalContext(maps, self.heads(ways), summary)

    def decode(self, context: LocalContext, coords: Tensor, x: Tensor, on_grid: int = 0) -> Tensor:
        """Logits (B, K, N) at points; see `OccupancyNetwork.decode`."""
        return self._decode(context, self.local(x, coords, on_grid), coords, x.shape[2:])

    def decode_nearby(self, context: LocalContext, coords: Tensor, x: Tensor) -> Tensor:
        """`decode` with the local features of the part of the image that holds the points."""
        return self._decode(context, self._local_nearby(x, coords), coords, x.shape[2:])

    def _decode(self, context: LocalContext, local: Tensor, coords: Tensor, image_size: Sequence[int]) -> Tensor:
        parts = [local, *(sample_map(m, coords, image_size).to(local.dtype) for m in context.maps)]
        parts.append(cell_position(coords, self.cell).to(local.dtype))
        logits: Tensor = self.decoder(torch.cat(parts, -1), context.summary)
        return logits

    def _local_nearby(self, x: Tensor, coords: Tensor) -> Tensor:
        """Local features (B, N, width), from no more of the image than the points need."""
        whole = int(coords.shape[1]) if bool((coords == coords.round()).all()) else 0
        reach = torch.tensor(self.local.reach, device=x.device)
        last = torch.tensor([edge - 1 for edge in x.shape[2:]], device=x.device)
        inside = coords.clamp(min=0).minimum(last.to(coords.dtype))
        low = (inside.amin((0, 1)).floor().long() - reach).clamp(min=0)
        high = (inside.amax((0, 1)).ceil().long() + reach).minimum(last)
        part = x
        for axis, (a, b) in enumerate(zip(low.tolist(), high.tolist(), strict=True)):
            part = part.narrow(axis + 2, a, b + 1 - a)
        features: Tensor = self.local(part, inside - low.to(coords.dtype), whole)
        return features

    def coarse(self, context: LocalContext) -> list[Tensor]:
        """Logits (B, K, *cells) that a class occurs in a cell, high resolution first."""
        return context.coarse

    def presence(self, context: LocalContext) -> Tensor:
        """Their probabilities at the highest resolution."""
        return context.coarse[0].sigmoid()

    def check_patch_size(self, patch_size: Sequence[int]) -> None:
        """Raise a ValueError that names the size if it is not divisible by the total stride."""
        check_image_size(patch_size, self.total_stride)


def _product(strides: Sequence[Sequence[int]]) -> tuple[int, ...]:
    return tuple(math.prod(axis) for axis in zip(*strides, strict=True))


def _power_of_two(number: int) -> int:
    """The largest power of two that is not above the number."""
    return 1 << (number.bit_length() - 1)


def _initialise(network: OSSNetLocal) -> None:
    """He's, but of the modulation, which begins without effect, and of the last layers: small first logits."""
    for module in network.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.Conv3d)):
            nn.init.kaiming_normal_(module.weight, a=SLOPE)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for module in network.modules():  # after their layers
        if isinstance(module, ModulatedNorm):
            nn.init.zeros_(module.modulation.weight)
        if isinstance(module, (PointDecoder, CoarseHeads)):
            for layer in module.seg_layers:
                nn.init.normal_(layer.get_parameter("weight"), std=LOGIT_STD)
