"""Learning rate schedules in nnU-Net's convention: stepped once an epoch, with the epoch's index."""

from __future__ import annotations

import math
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


class CosineLRScheduler(LRScheduler):
    """Cosine from ``initial_lr`` to zero without warm-up: ``lr(t) = initial_lr * (1 + cos(pi * t / max_steps)) / 2``.

    The closed form of ``torch.optim.lr_scheduler.CosineAnnealingLR(T_max=max_steps, eta_min=0)``. It depends on the
    step's index alone, so a resumed training continues where it was.

    Args:
        optimizer: its parameter groups' ``lr`` is set.
        initial_lr: learning rate of step 0.
        max_steps: number of steps (epochs); step ``max_steps`` has learning rate 0.
        current_step: the step to begin with (None: -1, as nnU-Net's ``PolyLRScheduler``).
    """

    def __init__(
        self, optimizer: Optimizer, initial_lr: float, max_steps: int, current_step: int | None = None
    ) -> None:
        self.optimizer = optimizer
        self.initial_lr = initial_lr
        self.max_steps = max_steps
        self.counter = 0
        super().__init__(optimizer, -1 if current_step is None else current_step)

    def step(self, current_step: int | None = None) -> None:
        """Set the learning rate of step ``current_step``, or of the next one when it is not given."""
        if current_step is None or current_step == -1:
            current_step = self.counter
            self.counter += 1
        lr = 0.5 * self.initial_lr * (1.0 + math.cos(math.pi * current_step / self.max_steps))
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self._last_lr: list[Any] = [lr for _ in self.optimizer.param_groups]

    def get_last_lr(self) -> list[Any]:
        """The learning rate of every parameter group, as set by the last step."""
        return self._last_lr
