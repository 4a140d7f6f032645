"""nnFormer's encoder and decoder (specification alice 1.5; references in `nnformer.py`)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from nnunet_ext.architectures.blocks.patch_convolutions import (
    TokenEmbedding,
    TokenExpansion,
    TokenMerging,
    channels_first,
    channels_last,
    sine_cosine_table,
)
from nnunet_ext.architectures.blocks.shifted_windows import triple
from nnunet_ext.architectures.blocks.window_attention import WindowBlock, WindowOptions

logger = logging.getLogger(__name__)


class EncoderStage(nn.Module):
    """Blocks of self attention, every second one with shifted windows."""

    def __init__(
        self,
        width: int,
        grid: Sequence[int],
        heads: int,
        window: int,
        rates: Sequence[float],
        options: WindowOptions,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            WindowBlock(width, grid, heads, window, j % 2 == 1, False, rate, options) for j, rate in enumerate(rates)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B, *grid, width) to tokens of the same shape."""
        for block in self.blocks:
            x = block(x)
        return x


class DecoderStage(nn.Module):
    """Upsampling, a block that attends to the skip, and blocks of self attention."""

    def __init__(
        self,
        width: int,
        stride: Sequence[int],
        grid: Sequence[int],
        heads: int,
        window: int,
        rates: Sequence[float],
        options: WindowOptions,
    ) -> None:
        super().__init__()
        self.upsample = TokenExpansion(width, stride)
        self.blocks = nn.ModuleList(
            WindowBlock(width, grid, heads, window, j % 2 == 1, j == 0, rate, options) for j, rate in enumerate(rates)
        )

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Tokens (B, *coarser grid, 2 * width) and the skip (B, *grid, width) to tokens of the skip's shape."""
        first, *others = self.blocks
        x = first(self.upsample(x), skip)
        for block in others:
            x = block(x)
        return x


class NNFormerEncoder(nn.Module):
    """Tokens, and stages of window attention; every stage's output is normed on its own to become a skip."""

    absolute_pos_embed: Tensor

    def __init__(
        self,
        input_channels: int,
        features: Sequence[int],
        strides: Sequence[Sequence[int]],
        blocks: Sequence[int],
        grids: Sequence[Sequence[int]],
        heads: Sequence[int],
        windows: Sequence[int],
        drop_path_rate: float,
        options: WindowOptions,
    ) -> None:
        super().__init__()
        widths = features[1:]
        self.grid = triple(grids[0])
        self.patch_embed = TokenEmbedding(input_channels, features[0], widths[0], strides[1])
        self.register_buffer("absolute_pos_embed", sine_cosine_table(self.grid, widths[0]))
        self.register_load_state_dict_pre_hook(_without_position_table)
        rates = drop_path_rates(drop_path_rate, blocks)
        self.stages = nn.ModuleList(
            EncoderStage(width, grids[i], heads[i], windows[i], rates[i], options) for i, width in enumerate(widths)
        )
        self.downsamples = nn.ModuleList(
            TokenMerging(width, stride) for width, stride in zip(widths[:-1], strides[2:], strict=True)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in widths)

    def forward(self, x: Tensor) -> list[Tensor]:
        """x: (B, C, *patch); returns the normed tokens (B, *grid, width) of every stage, finest first."""
        x = self._positioned(self.patch_embed(x))
        skips = []
        for i, (stage, norm) in enumerate(zip(self.stages, self.norms, strict=True)):
            x = stage(self.downsamples[i - 1](x) if i else x)
            skips.append(norm(x))
        return skips

    def _positioned(self, tokens: Tensor) -> Tensor:
        """Tokens and their positions' rows of the table, which is interpolated for other grids than its own."""
        grid, table = triple(tokens.shape[1:4]), self.absolute_pos_embed.view(1, *self.grid, -1)
        if grid != self.grid:
            table = channels_last(functional.interpolate(channels_first(table), grid, mode="trilinear"))
        return tokens + table


class NNFormerDecoder(nn.Module):
    """The expanding path and the heads. Index 0 is the lowest resolution, as in nnU-Net's decoder."""

    def __init__(
        self,
        num_classes: int,
        features: Sequence[int],
        strides: Sequence[Sequence[int]],
        blocks: Sequence[int],
        grids: Sequence[Sequence[int]],
        heads: Sequence[int],
        windows: Sequence[int],
        drop_path_rate: float,
        options: WindowOptions,
        deep_supervision: bool,
    ) -> None:
        super().__init__()
        self.deep_supervision = deep_supervision
        rates = drop_path_rates(drop_path_rate, blocks)
        self.stages = nn.ModuleList(
            DecoderStage(features[i + 1], strides[i + 2], grids[i], heads[i], windows[i], rates[j], options)
            for j, i in enumerate(range(len(rates) - 1, -1, -1))
        )
        self.seg_layers = nn.ModuleList(
            nn.ConvTranspose3d(width, num_classes, triple(step), triple(step))
            for width, step in zip(features[:0:-1], strides[:0:-1], strict=True)
        )

    def forward(self, skips: Sequence[Tensor]) -> list[Tensor]:
        """Maps (B, width, *grid) that the heads look at, lowest resolution first: the deepest skip, then all stages."""
        x = skips[-1]
        maps = [channels_first(x)]
        for stage, skip in zip(self.stages, skips[-2::-1], strict=True):
            x = stage(x, skip)
            maps.append(channels_first(x))
        return maps

    def logits(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Logits, full resolution first, of all maps, or of the last alone without deep supervision."""
        pairs = list(zip(self.seg_layers, maps, strict=True))
        return [head(x) for head, x in (pairs[::-1] if self.deep_supervision else pairs[-1:])]


def drop_path_rates(largest: float, blocks: Sequence[int]) -> list[list[float]]:
    """Rates of each stage's blocks, rising linearly from 0 over all of them."""
    total = sum(blocks)
    rates = [largest * i / max(1, total - 1) for i in range(total)]
    return [rates[start:end] for start, end in pairwise([sum(blocks[:i]) for i in range(len(blocks) + 1)])]


def _without_position_table(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: object) -> None:
    """Weights from elsewhere have no position table: nothing is added to the tokens then."""
    key = f"{prefix}absolute_pos_embed"
    if key not in state_dict and f"{prefix}patch_embed.norm.weight" in state_dict:
        logger.warning("The weights have no %s: zeros are used, so that nothing is added to the tokens.", key)
        state_dict[key] = torch.zeros_like(module.get_buffer("absolute_pos_embed"))
