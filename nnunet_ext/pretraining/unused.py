"""Parameters that a method gives no gradient are frozen before `DistributedDataParallel` would wait for them."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy

import torch
from torch import nn

from nnunet_ext.architectures.graph import unused_parameters


def freeze_unused(student: nn.Module, channels: int, patch_size: Sequence[int]) -> list[str]:
    """Freeze what gets no gradient: heads of lower scales, and tensors that a published network has but never uses.

    Args:
        student: of an `Objective`, before it is wrapped and before its optimiser is made.
        channels: of the image.
        patch_size: of the views, in voxels.

    Returns:
        Names of the frozen parameters.
    """
    shapes = deepcopy(student).to("meta")
    names = unused_parameters(shapes, torch.empty(2, channels, *patch_size, device="meta"))
    for name in names:
        student.get_parameter(name).requires_grad_(False)
    return names
