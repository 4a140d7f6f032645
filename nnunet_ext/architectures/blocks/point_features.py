"""Features of points: maps interpolated linearly, and the place in a cell.

Sizes meet coordinates as plain numbers, axis by axis: a tensor of them on a GPU would make the host wait for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional


def sample_map(features: Tensor, coords: Tensor, image_size: Sequence[int]) -> Tensor:
    """A feature map at points of the image that it covers; beyond its outer cells' centres, those are taken.

    Args:
        features: (B, C, *cells).
        coords: (B, N, dim) float32, voxel indices of the image.
        image_size: voxels of the image.

    Returns:
        (B, N, C).
    """
    units = [(2 * axis + 1) / edge - 1 for axis, edge in _axes(coords, image_size)]  # -1 and 1 are the image's edges
    grid = torch.stack(units[::-1], -1).view(len(coords), -1, *(1,) * (len(image_size) - 1), len(image_size))
    sampled = functional.grid_sample(features.float(), grid, padding_mode="border", align_corners=False)
    return sampled.flatten(2).transpose(1, 2)


def cell_position(coords: Tensor, stride: Sequence[int]) -> Tensor:
    """Where in its cell of `stride` voxels each point lies: sine and cosine of its phase, (B, N, 2 dim).

    They have no jump from a cell to the next, so that surfaces have no seams there.
    """
    phase = torch.stack([(axis + 0.5) * (2 * torch.pi / step) for axis, step in _axes(coords, stride)], -1)
    return torch.cat([phase.sin(), phase.cos()], -1)


def inside(coords: Tensor, image_size: Sequence[int]) -> Tensor:
    """Coordinates (B, N, dim), those beyond the outer voxels' centres moved there."""
    return torch.stack([axis.clamp(0, edge - 1) for axis, edge in _axes(coords, image_size)], -1)


def _axes(coords: Tensor, numbers: Sequence[int]) -> Iterator[tuple[Tensor, int]]:
    """Each axis of coordinates with its number."""
    return zip(coords.unbind(-1), numbers, strict=True)
