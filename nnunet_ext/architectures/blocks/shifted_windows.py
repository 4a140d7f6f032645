"""Windows of 3D grids of tokens: cutting, shifting, and numbering the positions in them.

Z. Liu et al., Swin Transformer, ICCV 2021, arXiv 2103.14030, in three dimensions as nnFormer has it (H.-Y. Zhou et al.,
nnFormer, IEEE TIP 2023, arXiv 2109.03201). Specification alice 1.5.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

ALIGNED, LEGACY = "aligned", "legacy"
INDEX_STYLES = (ALIGNED, LEGACY)
"""How pairs of positions are numbered: one row of the table for each offset, or as published (specification 1.5)."""
SEPARATED = -100.0  # added to the logits of pairs that do not attend to each other, as published

Triple = tuple[int, int, int]


def triple(values: Sequence[int]) -> Triple:
    """Three whole numbers (z, y, x)."""
    z, y, x = (int(value) for value in values)
    return z, y, x


def effective_window(grid: Sequence[int], window: int, style: str) -> Triple:
    """The window that fits a grid: an axis no longer than the grid is.

    Args:
        grid: (S, H, W) tokens.
        window: wished edge.
        style: "legacy": windows are cubes, so the shortest axis decides for all three (specification 1.5).
    """
    if style == LEGACY:
        return (min(window, *grid),) * 3
    return triple([min(window, edge) for edge in grid])


def shifts_of(grid: Sequence[int], window: Sequence[int], style: str) -> Triple:
    """By how many tokens windows are shifted along each axis; not at all where one window spans it.

    "legacy": along no axis where one window spans any.
    """
    longer = [edge > size for edge, size in zip(grid, window, strict=True)]
    if style == LEGACY:
        longer = [all(longer)] * 3
    return triple([size // 2 if moves else 0 for size, moves in zip(window, longer, strict=True)])


def cut_windows(x: Tensor, window: Sequence[int]) -> Tensor:
    """(B, S, H, W, C), divisible by the window, to (B * windows, tokens of a window, C)."""
    batch, s, h, w, channels = x.shape
    a, b, c = window
    x = x.reshape(batch, s // a, a, h // b, b, w // c, c, channels)
    return x.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(-1, a * b * c, channels)


def join_windows(windows: Tensor, window: Sequence[int], grid: Sequence[int]) -> Tensor:
    """The reverse of `cut_windows`: (B * windows, tokens, C) to (B, S, H, W, C)."""
    (a, b, c), (s, h, w), channels = window, grid, windows.shape[-1]
    x = windows.reshape(-1, s // a, h // b, w // c, a, b, c, channels)
    return x.permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(-1, s, h, w, channels)


def separation(
    grid: Sequence[int], window: Sequence[int], shifts: Sequence[int], device: torch.device | None = None
) -> Tensor:
    """What keeps tokens apart that became neighbours by the cyclic shift.

    Args:
        grid: (S, H, W) of the filled-up grid, a multiple of the window.
        window: tokens along each axis.
        shifts: tokens along each axis.
        device: of the result.

    Returns:
        (windows, tokens, tokens) float32, 0 or -100; to be added to attention logits.
    """
    region = torch.zeros((1, 1, 1), dtype=torch.float32, device=device)
    for axis, (edge, size, shift) in enumerate(zip(grid, window, shifts, strict=True)):
        position = torch.arange(edge, device=device)
        part = (position >= edge - size).float() + (position >= edge - shift).float()
        shape = [1, 1, 1]
        shape[axis] = edge
        region = 3 * region + (part if shift else torch.zeros_like(part)).view(shape)
    cut = cut_windows(region[None, ..., None], window)[..., 0]
    different = cut[:, None, :] != cut[:, :, None]
    return torch.zeros_like(different, dtype=torch.float32).masked_fill(different, SEPARATED)


def table_rows(window: Sequence[int]) -> int:
    """Rows of a relative position bias table: the offsets in a window."""
    return math.prod(2 * edge - 1 for edge in window)


def relative_index(window: Sequence[int], style: str, device: torch.device | None = None) -> Tensor:
    """The table's row for every pair of tokens of a window.

    Offsets are counted from the smallest. "aligned" numbers them row by row, z first. "legacy" multiplies z by
    3 w - 1 instead of (2 w - 1) ** 2, as published, so that different offsets share a row (specification 1.5, quirk 1).

    Args:
        window: tokens along each axis; a cube for "legacy".
        style: "aligned" or "legacy".
        device: of the result.

    Returns:
        (tokens, tokens) long: query by key.

    Raises:
        ValueError: "legacy" and a window that is no cube.
    """
    if style == LEGACY and len(set(window)) > 1:
        raise ValueError(f"relative_index 'legacy' needs cubic windows; got {tuple(window)}. Use 'aligned'.")
    axes = [torch.arange(edge, device=device) for edge in window]
    positions = torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1)
    offsets = positions[:, :, None] - positions[:, None, :]
    dz, dy, dx = (offset + edge - 1 for offset, edge in zip(offsets, window, strict=True))
    return _row(dz, dy, dx, window, style)


def offset_rows(window: Sequence[int], style: str) -> Tensor:
    """The table's row for every offset, (offsets,) long, offsets in the order of an aligned table."""
    axes = [torch.arange(2 * edge - 1) for edge in window]
    dz, dy, dx = torch.meshgrid(*axes, indexing="ij")
    return _row(dz, dy, dx, window, style).flatten()


def _row(dz: Tensor, dy: Tensor, dx: Tensor, window: Sequence[int], style: str) -> Tensor:
    _, h, w = window
    across = 3 * h - 1 if style == LEGACY else (2 * h - 1) * (2 * w - 1)
    return dz * across + dy * (2 * w - 1) + dx
