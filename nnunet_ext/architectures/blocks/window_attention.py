"""nnFormer's transformer block: attention within shifted windows of a 3D grid of tokens, and an MLP.

H.-Y. Zhou et al., nnFormer: Volumetric Medical Image Segmentation via a 3D Transformer, IEEE TIP 2023, arXiv 2109.03201
(authors' code: Apache-2.0). Written from the specification `alice` 1.5; parameters keep the published names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from timm.layers.drop import DropPath
from torch import Tensor, nn
from torch.nn import functional

from nnunet_ext.architectures.blocks.shifted_windows import (
    ALIGNED,
    cut_windows,
    effective_window,
    join_windows,
    relative_index,
    separation,
    shifts_of,
    table_rows,
    triple,
)

MOST_WINDOWS = 65_535  # in one call: fused kernels count the batch in a grid dimension of CUDA, which ends there


@dataclass(frozen=True)
class WindowOptions:
    """What all blocks of a network have in common.

    Attributes:
        style: of the relative position index, "aligned" or "legacy" (see `blocks/shifted_windows.py`).
        mlp_ratio: width of the MLP by that of its stage.
    """

    style: str = ALIGNED
    mlp_ratio: float = 4.0


class WindowAttention(nn.Module):
    """Multi-head attention among the tokens of a window, with a bias for each relative position.

    Args:
        width: channels.
        heads: they divide the width.
        window: tokens along each axis, as it is for the grid.
        style: of the relative position index.
        cross: keys and values of the skip connection, queries without a projection (specification 1.5, quirk 3).
    """

    relative_position_index: Tensor

    def __init__(self, width: int, heads: int, window: Sequence[int], style: str, cross: bool) -> None:
        super().__init__()
        self.heads = heads
        self.relative_position_bias_table = nn.Parameter(torch.zeros(table_rows(window), heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.register_buffer("relative_position_index", relative_index(window, style).int(), persistent=False)
        if cross:
            self.kv = nn.Linear(width, 2 * width)
        else:
            self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, queries: Tensor, source: Tensor | None, mask: Tensor | None) -> Tensor:
        """Attend.

        Args:
            queries: (B * windows, tokens, C); keys and values, too, in self attention.
            source: the same shape, in cross attention.
            mask: (windows, tokens, tokens), added to the logits.
        """
        count, tokens, width = queries.shape
        if source is None:
            q, k, v = self._split(self.qkv(queries), 3)
        else:
            k, v = self._split(self.kv(source), 2)
            (q,) = self._split(queries, 1)
            q = q.to(k.dtype)
        bias = self.bias()[None].to(q.dtype)
        if mask is not None:
            together = bias + mask[:, None].to(q.dtype)
            bias = together.expand(count // len(mask), *together.shape).flatten(0, 1)
        else:
            bias = bias.expand(count, -1, -1, -1)
        attended = _attend(q, k, v, bias)
        out: Tensor = self.proj(attended.transpose(1, 2).reshape(count, tokens, width))
        return out

    def bias(self) -> Tensor:
        """(heads, tokens, tokens): the table's numbers for every pair of tokens."""
        index = self.relative_position_index
        rows = self.relative_position_bias_table.index_select(0, index.flatten())
        return rows.view(*index.shape, -1).permute(2, 0, 1)

    def _split(self, x: Tensor, parts: int) -> list[Tensor]:
        """(windows, tokens, parts * C) to tensors (windows, heads, tokens, C / heads)."""
        count, tokens, _ = x.shape
        return list(x.view(count, tokens, parts, self.heads, -1).permute(2, 0, 3, 1, 4))


def _attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Attention of (windows, heads, tokens, C / heads), in pieces where there are more windows than kernels take."""
    if len(q) <= MOST_WINDOWS:
        return functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    pieces = zip(*(x.split(MOST_WINDOWS) for x in (q, k, v, bias)), strict=True)
    return torch.cat([functional.scaled_dot_product_attention(*piece) for piece in pieces])


class Mlp(nn.Module):
    """Two linear maps with a GELU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Any shape whose last axis is the width."""
        out: Tensor = self.fc2(self.act(self.fc1(x)))
        return out


class WindowBlock(nn.Module):
    """Attention within windows and an MLP, each after a layer norm and with its residual connection.

    Grids that windows do not fill are padded with zeros at the far end after the norm; the padded tokens take part in
    the attention, as published.

    Args:
        width: channels.
        grid: (S, H, W) tokens that the block is for; windows are fitted to it once, so that the weights' shapes do not
            depend on what comes later. Other grids work as well.
        heads: of the attention.
        window: wished edge of the windows.
        shifted: whether windows are shifted by half their edge, along axes longer than a window.
        cross: see `WindowAttention`.
        drop_path: rate at which each of the two branches is dropped for a sample, in training.
        options: of the network.
    """

    def __init__(
        self,
        width: int,
        grid: Sequence[int],
        heads: int,
        window: int,
        shifted: bool,
        cross: bool,
        drop_path: float,
        options: WindowOptions,
    ) -> None:
        super().__init__()
        self.style, self.shifted = options.style, shifted
        self.window = effective_window(grid, window, options.style)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = WindowAttention(width, heads, self.window, options.style, cross)
        self.mlp = Mlp(width, int(width * options.mlp_ratio))
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        """x: (B, S, H, W, C). With a skip of the same shape, cross attention: from x to the skip, onto their sum."""
        if skip is None:
            shortcut, attended = x, self._attended(self.norm1(x), None)
        else:
            shortcut, attended = x + skip, self._attended(self.norm1(x), self.norm1(skip))
        x = shortcut + self.drop_path(attended)
        out: Tensor = x + self.drop_path(self.mlp(self.norm2(x)))
        return out

    def _attended(self, x: Tensor, source: Tensor | None) -> Tensor:
        """Attention of normed tokens (B, S, H, W, C)."""
        grid = triple(x.shape[1:4])
        shifts = shifts_of(grid, self.window, self.style) if self.shifted else (0, 0, 0)
        fill = [-edge % size for edge, size in zip(grid, self.window, strict=True)]
        filled = triple([edge + more for edge, more in zip(grid, fill, strict=True)])
        mask = separation(filled, self.window, shifts, x.device) if any(shifts) else None

        def cut(tokens: Tensor) -> Tensor:
            if any(fill):
                tokens = functional.pad(tokens, (0, 0, 0, fill[2], 0, fill[1], 0, fill[0]))
            if any(shifts):
                tokens = torch.roll(tokens, [-shift for shift in shifts], (1, 2, 3))
            return cut_windows(tokens, self.window)

        windows = self.attn(cut(x), None if source is None else cut(source), mask)
        out = join_windows(windows, self.window, filled)
        if any(shifts):
            out = torch.roll(out, shifts, (1, 2, 3))
        return out[:, : grid[0], : grid[1], : grid[2]] if any(fill) else out
