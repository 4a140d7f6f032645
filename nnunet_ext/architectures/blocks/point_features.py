"""Features of points: maps interpolated linearly, and the place in a cell."""

from __future__ import annotations

from collections.abc import Sequence

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
    size = torch.tensor(tuple(image_size), dtype=coords.dtype, device=coords.device)
    unit = (2 * coords + 1) / size - 1  # -1 and 1 are the image's edges
    grid = unit.flip(-1).view(len(coords), -1, *(1,) * (len(image_size) - 1), len(image_size))
    sampled = functional.grid_sample(features.float(), grid, padding_mode="border", align_corners=False)
    return sampled.flatten(2).transpose(1, 2)


def cell_position(coords: Tensor, stride: Sequence[int]) -> Tensor:
    """Where in its cell of `stride` voxels each point lies: sine and cosine of its phase, (B, N, 2 dim).

    They have no jump from a cell to the next, so that surfaces have no seams there.
    """
    step = torch.tensor(tuple(stride), dtype=coords.dtype, device=coords.device)
    phase = (coords + 0.5) * (2 * torch.pi / step)
    return torch.cat([phase.sin(), phase.cos()], -1)
