"""OSS-Net's decoder of points: a residual MLP whose norms the latent vectors control (``specs/ossnet.md`` 1.5)."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn

from nnunet_ext.architectures.blocks.conditional_norm import ConditionalBatchNorm, affine_linear
from nnunet_ext.architectures.blocks.pade import PadeActivation
from nnunet_ext.architectures.blocks.patch_mapping import WINDOW, PatchMapping
from nnunet_ext.architectures.blocks.precision import in_autocast_dtype, without_autocast

FREQUENCIES = 16  # of the Fourier features; a cosine and a sine each
FREQUENCY_SCALE = 4.0


class ResidualPointBlock(nn.Module):
    """Two linear layers with conditional batch norms, and a shortcut.

    Args:
        inputs, outputs: features of a point.
        latent_features: numbers of a latent vector.
        first: the block that `first` is called of.
    """

    def __init__(self, inputs: int, outputs: int, latent_features: int, first: bool = False) -> None:
        super().__init__()
        self.linear_layer_1 = nn.Linear(inputs, outputs)
        self.linear_layer_2 = nn.Linear(outputs, outputs)
        self.activation, self.final_activation = PadeActivation(), PadeActivation()
        self.residual_mapping = nn.Linear(inputs, outputs) if first or inputs != outputs else nn.Identity()
        self.cnb_1 = ConditionalBatchNorm(latent_features, outputs)
        self.cnb_2 = ConditionalBatchNorm(latent_features, outputs)

    def forward(self, x: Tensor, latent: Tensor) -> Tensor:
        """(B, N, inputs) and (B, L) to (B, N, outputs)."""
        return self._rest(self.linear_layer_1(x), self.residual_mapping(x), latent)

    def first(self, x: Tensor, constant: Tensor, latent: Tensor) -> Tensor:
        """The same for the concatenation of x (B, N, V) and `constant` (B, C); the first layers in float32.

        Raw coordinates meet weights of order 0.05 here: half precision would not tell neighbouring voxels apart.
        """
        with without_autocast(x):
            layers = (self.linear_layer_1, cast(nn.Linear, self.residual_mapping))
            dtype = self.linear_layer_1.weight.dtype
            h, shortcut = (affine_linear(layer, x.to(dtype), constant.to(dtype)) for layer in layers)
        return self._rest(h, shortcut, latent)

    def _rest(self, h: Tensor, shortcut: Tensor, latent: Tensor) -> Tensor:
        h = self.linear_layer_2(self.activation(in_autocast_dtype(self.cnb_1(h, latent))))
        outputs: Tensor = self.final_activation(in_autocast_dtype(self.cnb_2(h, latent) + shortcut))
        return outputs


class PointDecoder(nn.Module):
    """Coordinates, windows and latent vectors to logits.

    Args:
        dim: axes of the image.
        window_channels: channels of the windows; 0 for none.
        latent_features: numbers of a latent vector.
        width: features of a point.
        blocks: residual blocks.
        num_classes: logits of a point.
        fourier: coordinates also as cosines and sines of random frequencies, which are part of the weights.
        conv_op: `torch.nn.Conv2d` or `torch.nn.Conv3d`, of the windows.
        deep_supervision: nnU-Net's switch, for whoever uses the decoder.
    """

    frequencies: Tensor | None

    def __init__(
        self,
        dim: int,
        window_channels: int,
        latent_features: int,
        width: int,
        blocks: int,
        num_classes: int,
        fourier: bool,
        conv_op: type[nn.Module],
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        self.deep_supervision = deep_supervision
        inputs = dim + latent_features + (WINDOW**dim if window_channels else 0) + (2 * FREQUENCIES if fourier else 0)
        self.register_buffer("frequencies", FREQUENCY_SCALE * torch.randn(1, dim, FREQUENCIES) if fourier else None)
        self.patch_mapping = PatchMapping(window_channels, conv_op) if window_channels else None
        self.blocks = nn.ModuleList(
            ResidualPointBlock(width if i else inputs, width, latent_features, first=i == 0) for i in range(blocks)
        )
        self.seg_layers = nn.ModuleList([nn.Linear(width, num_classes, bias=False)])

    def forward(self, coords: Tensor, windows: Tensor | None, latents: Tensor) -> Tensor:
        """Logits of points.

        Args:
            coords: (B, N, dim) float32, raw voxel indices.
            windows: (B, N, window_channels, 7, ...); None where the decoder has none.
            latents: (B, latents, latent_features); one for all blocks, or one more than blocks.

        Returns:
            (B, N, K).
        """
        parts = [*self._frequencies_of(coords), coords]
        if self.patch_mapping is not None:
            parts.append(self.patch_mapping(windows).to(coords.dtype))
        x = torch.cat(parts, -1)
        for i, block in enumerate(self.blocks):
            latent = latents[:, i + 1 if latents.shape[1] > 1 else 0]
            x = block(x, latent) if i else cast(ResidualPointBlock, block).first(x, latents[:, 0], latent)
        logits: Tensor = self.seg_layers[0](x)
        return logits

    def _frequencies_of(self, coords: Tensor) -> list[Tensor]:
        if self.frequencies is None:
            return []
        with without_autocast(coords):
            angles = 2 * math.pi * coords @ self.frequencies.to(coords.dtype)
        return [angles.cos(), angles.sin()]
