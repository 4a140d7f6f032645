"""Dense logits from a function of points, evaluated where classes meet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nnunet_ext.architectures.blocks.point_grid import PointGrid

Field = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Presence:
    """Probabilities (K, *cells) that a class occurs in a cell of an image with `image_size` voxels."""

    probabilities: Tensor
    image_size: tuple[int, ...]


@dataclass(frozen=True)
class Decoded:
    """Logits (K, *grid.shape) float32 and, by the same indices, which of them were evaluated (bool, *grid.shape)."""

    logits: Tensor
    evaluated: Tensor


def decode_grid(
    field: Field,
    grid: PointGrid,
    *,
    mode: str,
    regions: bool,
    first_stride: Sequence[int],
    presence: Presence | None = None,
    device: torch.device | str = "cpu",
) -> Decoded:
    """Only "dense" so far."""
    axes = [torch.arange(edge, device=device) for edge in grid.shape]
    index = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, -2)
    logits = field(grid.coordinates(index)).unflatten(1, grid.shape)
    return Decoded(logits, torch.ones(grid.shape, dtype=torch.bool, device=device))
