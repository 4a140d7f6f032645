"""The paper's training of OSS-Net as far as nnU-Net has it (``specs/ossnet.md`` 2): what ``_Published_*`` means."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from nnunet_ext.architectures.ossnet_plans import NETWORK_CLASS, VARIANTS
from nnunet_ext.trainers.lookahead import Lookahead

LEARNING_RATE = 3e-4
EPOCHS = 50
ITERATIONS = 40  # an epoch: BraTS' 324 volumes in batches of 8
VALIDATIONS = 8
MILESTONES = (0.4, 0.6)  # of the epochs, where the learning rate falls to a tenth
COARSE_WEIGHT = 0.1


def _recipe(variant: str) -> dict[str, Any]:
    chosen = VARIANTS[variant]
    return {
        "network_class": NETWORK_CLASS,
        "network_options": {
            "patches": chosen.patches,
            "large_patches": chosen.large_patches,
            "skip": chosen.skip,
        },
        "published": True,
        "optimizer_name": "lookahead",
        "border_share": 0.0,
        "balanced_share": 0.0,
        "jitter": 0.0,
        "importance": False,
        "with_dice": False,
        "coarse_weight": COARSE_WEIGHT,
        "mirroring": False,
        "hyperparameters": {
            "initial_lr": LEARNING_RATE,
            "num_epochs": EPOCHS,
            "num_iterations_per_epoch": ITERATIONS,
            "num_val_iterations_per_epoch": VALIDATIONS,
        },
    }


PUBLISHED: Mapping[str, Mapping[str, Any]] = {f"Published_{name}": _recipe(name) for name in VARIANTS}
"""Suffix -> class attributes of `OSSNetTrainer`."""


def published_optimizer(
    parameters: Iterable[nn.Parameter], learning_rate: float, epochs: int
) -> tuple[torch.optim.Optimizer, Any]:
    """Lookahead around RAdam with one learning rate for all, which falls to a tenth after 40 and 60 % of the epochs.

    The authors asked for another learning rate of the Padé coefficients; by a slip of the library they trained all
    parameters with that of the first group (``specs/ossnet.md`` 2.5).
    """
    optimizer = Lookahead(torch.optim.RAdam([p for p in parameters if p.requires_grad], lr=learning_rate))
    milestones = sorted({max(1, round(epochs * share)) for share in MILESTONES})
    return optimizer, MultiStepSchedule(optimizer, learning_rate, milestones)


class MultiStepSchedule:
    """Learning rates that depend on the epoch alone, as nnU-Net steps its schedules: `step(epoch)`."""

    def __init__(self, optimizer: torch.optim.Optimizer, initial: float, milestones: Sequence[int]) -> None:
        self.optimizer, self.initial, self.milestones = optimizer, initial, tuple(milestones)

    def step(self, epoch: int) -> None:
        """Set the learning rate of an epoch (0 is the first)."""
        rate = self.initial * 0.1 ** sum(epoch >= milestone for milestone in self.milestones)
        for group in self.optimizer.param_groups:
            group["lr"] = rate


def require_whole_volumes(patch_size: Sequence[int], median: Sequence[float], trainer: str) -> None:
    """Raise a ValueError if the median image is larger than the patch along an axis."""
    median = [round(float(edge)) for edge in median][-len(patch_size) :]
    if any(image > patch for image, patch in zip(median, patch_size, strict=True)):
        raise ValueError(
            f"{trainer} trains on whole volumes, as the paper did, but the plans' patch {tuple(patch_size)} is smaller "
            f"than the median image {tuple(median)}: plan with OSSNetPlanner_Published and train with "
            "-p OSSNetPlans_Published, or train patches with OSSNetTrainer."
        )
