"""nnFormer's changes of resolution: convolutions between volumes and grids of tokens (specification alice 1.5)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from nnunet_ext.architectures.blocks.shifted_windows import triple


def channels_first(x: Tensor) -> Tensor:
    """(B, S, H, W, C) to (B, C, S, H, W), a view."""
    return x.permute(0, 4, 1, 2, 3)


def channels_last(x: Tensor) -> Tensor:
    """(B, C, S, H, W) to (B, S, H, W, C), a view."""
    return x.permute(0, 2, 3, 4, 1)


class ConvolutionPair(nn.Module):
    """Two convolutions, each followed by GELU and layer norm, but for the last where `open_end`."""

    def __init__(self, inputs: int, outputs: int, stride: Sequence[int], open_end: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(inputs, outputs, 3, triple(stride), 1)
        self.conv2 = nn.Conv3d(outputs, outputs, 3, 1, 1)
        self.norm1 = nn.LayerNorm(outputs)
        self.norm2 = None if open_end else nn.LayerNorm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, *spatial) to (B, outputs, *spatial / stride)."""
        x = _activated(self.conv1(x), self.norm1)
        x = self.conv2(x)
        return x if self.norm2 is None else _activated(x, self.norm2)


def _activated(x: Tensor, norm: nn.Module) -> Tensor:
    return channels_first(norm(channels_last(functional.gelu(x))))


class TokenEmbedding(nn.Module):
    """Four convolutions from the image to tokens, and their layer norm.

    The first and the third convolution share the stride: at most 2 in the first, the rest in the third. That is Alice's
    (2: 2 and 1) as well as the original nnFormer's (2 x 4 x 4: 2 x 2 x 2 and 1 x 2 x 2).

    Args:
        inputs: channels of the image.
        hidden: features of the first two convolutions.
        outputs: features of the tokens.
        stride: 1, 2 or 4 along each axis.
    """

    def __init__(self, inputs: int, hidden: int, outputs: int, stride: Sequence[int]) -> None:
        super().__init__()
        first = [min(2, step) for step in stride]
        self.proj1 = ConvolutionPair(inputs, hidden, first, open_end=False)
        self.proj2 = ConvolutionPair(
            hidden, outputs, [step // done for step, done in zip(stride, first, strict=True)], open_end=True
        )
        self.norm = nn.LayerNorm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, D, H, W) to (B, *grid, outputs)."""
        tokens: Tensor = self.norm(channels_last(self.proj2(self.proj1(x))))
        return tokens


class TokenMerging(nn.Module):
    """GELU, layer norm and a strided convolution: half the resolution, twice the features."""

    def __init__(self, width: int, stride: Sequence[int]) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.reduction = nn.Conv3d(width, 2 * width, 3, triple(stride), 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, *grid, width) to (B, *grid / stride, 2 * width)."""
        return channels_last(self.reduction(channels_first(self.norm(functional.gelu(x)))))


class TokenExpansion(nn.Module):
    """Layer norm and a transposed convolution: a finer grid, half the features."""

    def __init__(self, width: int, stride: Sequence[int]) -> None:
        super().__init__()
        steps = triple(stride)
        self.norm = nn.LayerNorm(2 * width)
        self.up = nn.ConvTranspose3d(2 * width, width, steps, steps)

    def forward(self, x: Tensor) -> Tensor:
        """(B, *grid, 2 * width) to (B, *grid * stride, width)."""
        return channels_last(self.up(channels_first(self.norm(x))))


def sine_cosine_table(grid: Sequence[int], width: int) -> Tensor:
    """Sines and cosines of each token's position, slow to fast, axes one after another.

    Returns:
        (1, tokens, width) float32.
    """
    frequencies = -(-width // (2 * len(grid)))
    rates = 10_000.0 ** -(torch.arange(frequencies, dtype=torch.float64) / frequencies)
    parts = []
    for axis in torch.meshgrid(*(torch.arange(edge, dtype=torch.float64) for edge in grid), indexing="ij"):
        angle = axis.flatten()[:, None] * rates
        parts += [angle.sin(), angle.cos()]
    return torch.stack(parts, -1).flatten(1)[:, :width].float()[None].contiguous()
