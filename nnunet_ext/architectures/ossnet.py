"""OSS-Net: a decoder of points with global latent vectors and windows of the image, as published.

C. Reich, T. Prangemeier, Ö. Cetin, H. Koeppl, OSS-Net: Memory Efficient High Resolution Semantic Segmentation of 3D
Medical Data, BMVC 2021, arXiv 2110.10640. Written from the specification ``specs/ossnet.md`` (sections 1, 4, 5.6).
Parameters have the published names, but for the head: `decoder.final_mapping.0.weight` is `decoder.seg_layers.0.weight`
here, so that nnU-Net leaves it out of pretrained weights.

The same function as the original in a cheaper form: latent vectors enter the first layer once an image instead of once
a point, conditional norms are broadcast, convolutions inside of windows are matrix products, and large windows are
sampled from an image whose neighbours were pooled once.

Differences from the published network:
    * K classes or regions: K logits without sigmoid. Published weights become two classes with the logits 0 and z.
    * 2D or 3D, any image size, any number of blocks; axes that the first block does not pool are not halved.
    * Large windows are pooled by their average in training and prediction; the original predicts with their maximum
      (`large_pooling`).

`OSSNetLocal`, for patches of any size, is in `ossnet_local.py` and can be imported from here, too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from nnunet_ext.architectures.blocks.adaptive_decoding import DecodeMode
from nnunet_ext.architectures.blocks.occupancy_decoder import PointDecoder
from nnunet_ext.architectures.blocks.occupancy_encoder import OccupancyEncoder, average_pool
from nnunet_ext.architectures.blocks.patch_mapping import around, large_windows, pooled_pairs, small_windows
from nnunet_ext.architectures.blocks.point_features import inside
from nnunet_ext.architectures.occupancy import OccupancyNetwork, check_decode_mode
from nnunet_ext.architectures.ossnet_checks import check_arguments, check_image_size
from nnunet_ext.architectures.ossnet_local import OSSNetLocal
from nnunet_ext.architectures.ossnet_plans import pooling_strides

__all__ = ["OSSNet", "OSSNetContext", "OSSNetLocal"]

FIRST_STRIDE = 4  # of the published coarse-to-fine decoding


class OSSNetContext(NamedTuple):
    """What is computed once an image.

    Attributes:
        latents: (B, latents, cells).
        head: logits (B, 1, *cells) that some foreground occurs in a cell; None without the head.
        pooled: the image as large windows see it (`pooled_pairs`); None without large windows.
    """

    latents: Tensor
    head: Tensor | None
    pooled: Tensor | None = None


class OSSNet(OccupancyNetwork):
    """OSS-Net for images (B, C, *spatial) of one size, built from nnU-Net plans.

    Args:
        input_channels: C.
        n_stages: the full resolution, and one for each block of the encoder.
        features_per_stage: features of each block, after an entry for the full resolution, which has none.
        conv_op: `torch.nn.Conv2d` or `torch.nn.Conv3d`.
        strides: of each stage and axis: 1, then the blocks'. The first block's contains the halving of the image.
        patch_size: voxels of the image; the network knows positions in it.
        num_classes: K, background included, or regions.
        latent_shape: cells of each axis that are flattened to a latent vector.
        decoder_width: features of a point.
        decoder_blocks: residual blocks of the decoder.
        patches: the decoder sees windows of 7 voxels an axis.
        large_patches: beside them windows of 14 voxels an axis, pooled to 7.
        skip: all blocks of the encoder make latent vectors, one for each block of the decoder and one more.
        fourier: coordinates also as cosines and sines of random frequencies.
        head: a coarse segmentation beside the latents; None: with `skip`.
        large_pooling: of large windows, "average" or "max".
        regions: K regions with a sigmoid each, instead of K classes with a softmax.
        n_points: points a sample that a training step asks for; what memory is reckoned with.
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
        strides: Sequence[Sequence[int]],
        patch_size: Sequence[int],
        num_classes: int,
        latent_shape: Sequence[int],
        decoder_width: int = 512,
        decoder_blocks: int = 5,
        patches: bool = True,
        large_patches: bool = False,
        skip: bool = True,
        fourier: bool = False,
        head: bool | None = None,
        large_pooling: str = "average",
        regions: bool = False,
        n_points: int = 2**14,
        decode_mode: DecodeMode = "adaptive",
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        check_decode_mode(decode_mode)
        self.decode_mode = decode_mode
        head = skip if head is None else head
        self.dim = check_arguments(
            n_stages=n_stages,
            features_per_stage=features_per_stage,
            conv_op=conv_op,
            strides=strides,
            patch_size=patch_size,
            latent_shape=latent_shape,
            patches=patches,
            large_patches=large_patches,
            skip=skip,
            head=head,
            large_pooling=large_pooling,
            sizes=(input_channels, num_classes, decoder_width, decoder_blocks, n_points),
        )
        self.input_channels, self.num_classes = input_channels, num_classes
        self.regions = regions or num_classes == 1
        self.n_points, self.chunk_points = n_points, 2**14
        self.patch_size = tuple(int(edge) for edge in patch_size)
        self.patches, self.large_patches, self.large_pooling = patches, large_patches, large_pooling
        self.strides = [tuple(int(step) for step in stride) for stride in strides]
        self.halving, poolings = pooling_strides(strides)
        self.first_stride = tuple(FIRST_STRIDE if half == 2 else 1 for half in self.halving)
        self.encoder = OccupancyEncoder(
            [input_channels, *features_per_stage[1:]],
            poolings,
            latent_shape,
            decoder_blocks + 1 if skip else 1,
            skip,
            head,
            conv_op,
        )
        self.decoder = PointDecoder(
            self.dim,
            input_channels * (int(patches) + int(large_patches)),
            math.prod(latent_shape),
            decoder_width,
            decoder_blocks,
            num_classes,
            fourier,
            conv_op,
            deep_supervision,
        )

    def encode(self, x: Tensor) -> OSSNetContext:
        """Latent vectors of images (B, C, *spatial) at full resolution."""
        context = self.encode_halved(average_pool(x, self.halving))
        return context._replace(pooled=pooled_pairs(x, self.large_pooling)) if self.large_patches else context

    def encode_halved(self, x: Tensor) -> OSSNetContext:
        """Latent vectors of images that were averaged to half their resolution; any size that leaves the same cells."""
        return OSSNetContext(*self.encoder(x))

    def decode(self, context: OSSNetContext, coords: Tensor, x: Tensor, on_grid: int = 0) -> Tensor:
        """Logits (B, K, N) at points of the image; windows are cut at the nearest voxel inside of it.

        Args:
            context: of `encode(x)`.
            coords: (B, N, dim) float32, voxel indices of x; outside of the image is allowed.
            x: (B, C, *spatial).
            on_grid: makes no difference here.
        """
        windows = self.windows(context, coords, x) if self.patches else None
        return self.decode_windows(context, coords, windows)

    def decode_nearby(self, context: OSSNetContext, coords: Tensor, x: Tensor) -> Tensor:
        """`decode` for points that lie close together: only the part of the image around them is padded."""
        windows = self.windows(context, coords, x, nearby=True) if self.patches else None
        return self.decode_windows(context, coords, windows)

    def windows(self, context: OSSNetContext, coords: Tensor, x: Tensor, nearby: bool = False) -> Tensor:
        """What the decoder sees of the image around points: (B, N, C or 2C, 7, ...); see `decode`."""
        index = inside((coords.detach() + 0.5).floor(), x.shape[2:]).long()
        small = small_windows(*around(x, index)) if nearby else small_windows(x, index)
        if context.pooled is None:
            return small
        return torch.cat([small, large_windows(context.pooled, index)], 2)

    def decode_windows(self, context: OSSNetContext, coords: Tensor, windows: Tensor | None) -> Tensor:
        """Logits (B, K, N) at points (B, N, dim) whose windows (B, N, C or 2C, 7, ...) are given; None for O-Net."""
        logits: Tensor = self.decoder(coords, windows, context.latents)
        return logits.transpose(1, 2)

    def coarse(self, context: OSSNetContext) -> list[Tensor]:
        """Logits (B, 1, *cells) that some foreground occurs in a cell, of networks that have the head."""
        return [] if context.head is None else [context.head]

    def presence(self, context: OSSNetContext) -> Tensor | None:
        """Probabilities (B, 2, *cells) that background and that some foreground occurs in a cell; of regions (B, 1).

        The head tells no foreground classes apart. Of the background it only says that it is all there is with the
        rest of the probability.
        """
        if context.head is None:
            return None
        some = context.head.float().sigmoid()
        return some if self.regions else torch.cat([1 - some, some], 1)

    def check_patch_size(self, patch_size: Sequence[int]) -> None:
        """Raise a ValueError that names both sizes if `patch_size` is not the one that the network is for."""
        check_image_size(patch_size, self.patch_size)
