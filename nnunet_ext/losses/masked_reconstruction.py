"""Reconstruction of what was hidden: the squared error over hidden voxels only (specification alice 4.4, 6.2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def voxels_of(hidden: Tensor, shape: tuple[int, ...] | torch.Size) -> Tensor:
    """A mask of blocks as a mask of voxels.

    Args:
        hidden: (B, 1, *grid) bool.
        shape: spatial shape of the image, whole multiples of the grid.

    Returns:
        (B, 1, *shape) bool.

    Raises:
        ValueError: a shape that is no multiple of the grid.
    """
    if any(edge % cells for edge, cells in zip(shape, hidden.shape[2:], strict=True)):
        raise ValueError(f"an image of shape {tuple(shape)} cannot be divided into {tuple(hidden.shape[2:])} blocks")
    for axis, edge in enumerate(shape, start=2):
        hidden = hidden.repeat_interleave(edge // hidden.shape[axis], axis)
    return hidden


def masked_error(
    prediction: Tensor, target: Tensor, hidden: Tensor, visible_weight: float = 0.0, scale: Sequence[float] = (1.0,)
) -> Tensor:
    """Mean squared error over the hidden voxels, and a part of that over the visible ones.

    Args:
        prediction: (B, C, *shape).
        target: (B, C, *shape).
        hidden: (B, 1, *shape) bool.
        visible_weight: factor of the mean squared error over visible voxels.
        scale: standard deviation of the images, one value or one for each channel: the error's unit, so that to
            predict the mean costs 1 whatever the intensities' scale.

    Returns:
        A 0-dimensional float32 tensor: every voxel and channel counts alike; 0 where nothing is hidden.
    """
    with torch.autocast(prediction.device.type, enabled=False):
        unit = prediction.new_tensor(list(scale), dtype=torch.float32).view(1, -1, 1, 1, 1)
        squares = ((prediction.float() - target.float()) / unit).square().mean(1, keepdim=True)
        error = _mean(squares, hidden)
        return error + visible_weight * _mean(squares, ~hidden) if visible_weight else error


def whole_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Half of the mean squared error over all voxels, as the published code has it (specification alice 1.7)."""
    with torch.autocast(prediction.device.type, enabled=False):
        return (prediction.float() - target.float()).square().mean() / 2


def _mean(values: Tensor, chosen: Tensor) -> Tensor:
    return values.masked_fill(~chosen, 0.0).sum() / chosen.sum().clamp(min=1)
