"""The student's images: hidden blocks are filled."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nnunet_ext.errors import UserError


def fill_values(fill: Sequence[float], channels: int) -> Tensor:
    """What hidden voxels are filled with, as a (1, channels, 1, 1, 1) float32 tensor.

    Args:
        fill: one value for all channels or one for each: 0 for z-scored images, otherwise the data set's mean.
        channels: of the image.

    Raises:
        UserError: another number of values.
    """
    if len(fill) not in (1, channels):
        raise UserError(f"{len(fill)} fill values for {channels} image channels: give one, or one for each channel")
    return torch.tensor(list(fill), dtype=torch.float32).expand(channels).clone().view(1, channels, 1, 1, 1)


def masked_images(images: Tensor, hidden: Tensor, fill: Tensor) -> Tensor:
    """Images whose hidden voxels have the fill value.

    Args:
        images: (B, C, *patch).
        hidden: (B, 1, *patch) bool.
        fill: (1, C, 1, 1, 1).
    """
    return torch.where(hidden, fill.to(images), images)
