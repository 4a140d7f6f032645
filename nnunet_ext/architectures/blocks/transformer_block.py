"""UNETR++'s transformer block: paired attention, then residual convolutions (specification unetrpp 1.3)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from nnunet_ext.architectures.blocks.layout import from_tokens, to_tokens
from nnunet_ext.architectures.blocks.paired_attention import PairedAttention
from nnunet_ext.architectures.blocks.residual_block import SLOPE, ResidualBlock

LAYER_SCALE = 1e-6


@dataclass(frozen=True)
class BlockOptions:
    """What all transformer blocks of a network share; the networks' own docstring explains each."""

    norm_op: type[nn.Module]
    norm_op_kwargs: Mapping[str, Any] = field(default_factory=dict)
    slope: float = SLOPE
    projections: str = "tied"
    fusion: str = "concat"
    sa_layout: str = "fixed"
    n_res_blocks: int = 1
    attention_dropout: float = 0.0
    block_dropout: float = 0.1


class TransformerBlock(nn.Module):
    """Position embedding, paired attention with layer scale, residual convolutions, and a 1-voxel convolution.

    Args:
        dim: spatial dimensions, 2 or 3.
        tokens: N, the product of the grid.
        channels: C.
        size: p of the paired attention.
        heads: of the paired attention.
        options: see `BlockOptions`.
    """

    def __init__(self, dim: int, tokens: int, channels: int, size: int, heads: int, options: BlockOptions) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((channels,), LAYER_SCALE))
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens, channels))
        self.norm = nn.LayerNorm(channels)
        self.attention = PairedAttention(
            tokens,
            channels,
            size,
            heads,
            options.projections,
            options.fusion,
            options.sa_layout,
            options.attention_dropout,
        )
        self.residual = nn.Sequential(
            *(
                ResidualBlock(dim, channels, channels, options.norm_op, options.norm_op_kwargs, options.slope)
                for _ in range(options.n_res_blocks)
            )
        )
        self.mix = (nn.Conv3d if dim == 3 else nn.Conv2d)(channels, channels, 1)
        self.block_dropout = options.block_dropout

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, *grid); returns the same shape, channels-last."""
        tokens = to_tokens(x) + self.pos_embed
        attended = self.attention(self.norm(tokens), tokens, self.gamma)
        convolved = self.residual(from_tokens(attended, x.shape[2:]))
        return from_tokens(self._mixed(to_tokens(convolved), attended), x.shape[2:])

    def _mixed(self, x: Tensor, residual: Tensor) -> Tensor:
        """The sum of `residual` and the 1-voxel convolution of x (B, N, C), of which dropout removes whole channels.

        The dropped channels are columns of zeros in a matrix a sample, so no copy of x is made.
        """
        weight = self.mix.weight.flatten(1).expand(x.shape[0], -1, -1)
        if self.training and self.block_dropout > 0:
            keep = functional.dropout(weight.new_ones(x.shape[0], 1, x.shape[2]), self.block_dropout)
            weight = weight * keep
        assert self.mix.bias is not None
        mixed = torch.baddbmm(self.mix.bias, x, weight.mT)
        return mixed + residual
