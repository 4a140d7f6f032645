"""Where channels lie in memory: last on CPUs, where torch's convolutions are then about twice as fast."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

CPU_LIKE = ("cpu", "meta")
"""Devices whose tensors are laid out channels-last; meta, where memory is estimated, stands in for a CPU."""


def channels_last_format(x: Tensor) -> torch.memory_format:
    """Name of the layout for x (B, C, D, H, W) or (B, C, H, W)."""
    return torch.channels_last_3d if x.dim() == 5 else torch.channels_last


def is_channels_last(x: Tensor) -> bool:
    """Whether x (B, C, *spatial) lies channels-last in memory; with one channel, whether its strides say so."""
    return x.stride(1) == 1 and x.is_contiguous(memory_format=channels_last_format(x))


def to_channels_last(x: Tensor) -> Tensor:
    """Lay x (B, C, *spatial) out channels-last, with strides that say so even for one channel; a copy if needed."""
    x = x.contiguous(memory_format=channels_last_format(x))
    return x.as_strided(x.shape, channels_last_strides(x.shape)) if x.shape[1] == 1 else x


def channels_last_strides(shape: Sequence[int]) -> tuple[int, ...]:
    """Strides of a dense channels-last tensor of shape (B, C, *spatial)."""
    strides: list[int] = []
    step = int(shape[1])
    for edge in reversed(shape[2:]):
        strides.insert(0, step)
        step *= int(edge)
    return (step, 1, *strides)


def to_tokens(x: Tensor) -> Tensor:
    """The tensor (B, C, *spatial) as (B, N, C), N the row-major flattening of the axes; no copy."""
    return x.flatten(2).transpose(1, 2)


def from_tokens(tokens: Tensor, grid: Sequence[int]) -> Tensor:
    """(B, N, C) as (B, C, *grid), which lies channels-last where the tokens are contiguous; no copy."""
    return tokens.transpose(1, 2).unflatten(2, tuple(grid))
