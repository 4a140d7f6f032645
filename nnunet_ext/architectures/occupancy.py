"""What OSS-Net's networks share: they are asked for points, and give nnU-Net the dense logits that it wants.

Occupancy networks: L. Mescheder et al., CVPR 2019; OSS-Net: C. Reich et al., BMVC 2021, arXiv 2110.10640
(``specs/ossnet.md`` 6.2). Coordinates are floating voxel indices of the image x, in its axis order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nnunet_ext.architectures.blocks.adaptive_decoding import MODES, Decoded, DecodeMode, Presence, decode_grid
from nnunet_ext.architectures.blocks.memory import conv_feature_map_units
from nnunet_ext.architectures.blocks.point_grid import PointGrid, voxel_coordinates
from nnunet_ext.architectures.blocks.pooling import pooled

MOVED_SHARE = 0.5
"""Of the points of a training step, that lie between voxel centres."""


class OccupancyNetwork(nn.Module):
    """Base of networks that decode points. A network has the attributes below and `encode`, `decode`, `coarse`.

    Attributes:
        dim: spatial dimensions, 2 or 3.
        input_channels, num_classes: channels C of images, and K of logits.
        regions: K regions with a sigmoid each, instead of K classes with a softmax. One class alone is a region.
        n_points: points a sample that a training step asks for; what memory is reckoned with.
        chunk_points: points decoded at once where nothing is to be differentiated.
        first_stride: of each axis, the first stride of the adaptive decoding.
        strides: of each stage of the plans, for deep supervision.
        decode_mode: how dense logits are made in eval mode: "dense", "adaptive" or "budget"; may be set at any time.
        decoder: has nnU-Net's switch `deep_supervision`.
    """

    supports_deep_supervision = False
    dim: int
    input_channels: int
    num_classes: int
    regions: bool
    n_points: int
    chunk_points: int
    first_stride: tuple[int, ...]
    strides: list[tuple[int, ...]]
    decode_mode: DecodeMode = "adaptive"
    decoder: Any

    def encode(self, x: Tensor) -> Any:
        """What is computed once an image (B, C, *spatial): features, latents; passed on to `decode`."""
        raise NotImplementedError

    def decode(self, context: Any, coords: Tensor, x: Tensor, on_grid: int = 0) -> Tensor:
        """Logits (B, K, N) at points of the image.

        Args:
            context: of `encode(x)`.
            coords: (B, N, dim) float32, voxel indices of x; outside of the image is allowed.
            x: (B, C, *spatial).
            on_grid: in training, so many points at the front are whole voxel indices; they cost less.
        """
        raise NotImplementedError

    def decode_nearby(self, context: Any, coords: Tensor, x: Tensor) -> Tensor:
        """`decode` for points that lie close together, without gradients; may look at the coordinates' values."""
        return self.decode(context, coords, x)

    def coarse(self, context: Any) -> list[Tensor]:
        """Logits of the coarse heads for training, each (B, heads, *cells); none by default."""
        return []

    def presence(self, context: Any) -> Tensor | None:
        """(B, channels, *cells) probabilities that a class occurs in a cell (`Presence`); guides adaptive decoding."""
        return None

    def forward(self, x: Tensor, coords: Tensor | None = None, on_grid: int = 0) -> Any:
        """Logits of points, or dense ones.

        Args:
            x: (B, C, *spatial).
            coords: (B, N, dim) float32, voxel indices of x; None for all voxels.
            on_grid: see `decode`.

        Returns:
            With `coords`, a tuple of point logits (B, K, N) and the list of coarse logits. Without, logits
            (B, K, *spatial): in training all voxels are decoded with gradients, which needs much memory; in eval mode
            by `decode_mode`, without gradients. With `decoder.deep_supervision`, for other trainers of nnU-Net's, a
            list of these: the same logits averaged to the plans' lower scales, without the last.
        """
        self.check_patch_size(x.shape[2:])
        if coords is not None:
            context = self.encode(x)
            return self.decode(context, coords, x, on_grid), self.coarse(context)
        differentiated = self.training and torch.is_grad_enabled()
        logits = self._all_voxels(x) if differentiated else self._dense_logits(x)
        return self._at_scales(logits) if self.decoder.deep_supervision else logits

    def field(self, context: Any, x: Tensor) -> Any:
        """A function of coordinates (N, dim) that gives logits (K, N) of one encoded image x (1, C, *spatial)."""

        def logits_at(coords: Tensor) -> Tensor:
            chunks = coords.split(self.chunk_points)
            parts = [self.decode_nearby(context, part[None], x)[0].float() for part in chunks]
            return torch.cat(parts, 1)

        return logits_at

    def decode_points(self, context: Any, x: Tensor, grid: PointGrid, mode: DecodeMode | None = None) -> Decoded:
        """Logits of a grid of points of one encoded image x (1, C, *spatial); no gradients.

        Args:
            context: of `encode(x)`.
            x: the image.
            grid: the points.
            mode: None for `decode_mode`.
        """
        probabilities = self.presence(context)
        presence = None if probabilities is None else Presence(probabilities[0].float(), tuple(x.shape[2:]))
        return decode_grid(
            self.field(context, x),
            grid,
            mode=mode or self.decode_mode,
            regions=self.regions,
            first_stride=self.first_stride,
            presence=presence,
            device=x.device,
        )

    @torch.compiler.disable  # the number of points depends on the data
    def _dense_logits(self, x: Tensor) -> Tensor:
        grid = PointGrid.of_voxels(x.shape[2:])
        mode = "dense" if self.training else self.decode_mode
        with torch.no_grad():
            return torch.stack([self.decode_points(self.encode(s), s, grid, mode).logits for s in x.split(1)])

    def _all_voxels(self, x: Tensor) -> Tensor:
        coords = voxel_coordinates(x.shape[2:], x.device).expand(x.shape[0], -1, -1)
        logits = self.decode(self.encode(x), coords, x, on_grid=coords.shape[1])
        return logits.unflatten(2, x.shape[2:]).contiguous()

    def _at_scales(self, logits: Tensor) -> list[Tensor]:
        scales = [logits]
        for stride in self.strides[1:-1]:
            scales.append(pooled(scales[-1], stride))
        return scales

    def check_patch_size(self, patch_size: Sequence[int]) -> None:
        """Raise a ValueError that names the size if the network cannot work with it."""
        raise NotImplementedError

    def memory_probe(self, patch_size: Sequence[int], batch_size: int) -> tuple[Tensor, Tensor, int]:
        """Arguments of `forward` for a training step as `OSSNetTrainer`'s, on the parameters' device."""
        device = next(self.parameters()).device
        x = torch.zeros(batch_size, self.input_channels, *patch_size, device=device)
        coords = torch.zeros(batch_size, self.n_points, self.dim, device=device)
        return x, coords, self.n_points - round(self.n_points * MOVED_SHARE)

    def compute_conv_feature_map_size(self, input_size: Sequence[int]) -> int:
        """What a training step keeps, in nnU-Net's units (`blocks.memory`)."""
        return conv_feature_map_units(self, input_size)


def check_decode_mode(mode: str) -> None:
    """Raise a ValueError for an unknown way to make dense logits."""
    if mode not in MODES:
        raise ValueError(f"decode_mode is {mode!r}; allowed are {', '.join(map(repr, MODES))}.")
