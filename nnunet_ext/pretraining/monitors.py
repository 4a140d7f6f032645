"""Signs of a collapse: all views get the same distribution, or all features the same direction (specification 4.6)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

LOW, HIGH = 0.1, 0.98
"""A mean entropy below or above these parts of log K is suspicious."""
SPREAD = 0.1
"""A spread of features below this is suspicious; independent normal features have 1."""
PATIENCE = 500
"""Steps of suspicion before a warning, and between two of them."""


def entropy(distribution: Tensor) -> Tensor:
    """Mean entropy in nats of distributions (..., K): a 0-dimensional float32 tensor."""
    return torch.special.entr(distribution.float()).sum(-1).mean()


def divergence_from_uniform(distribution: Tensor) -> Tensor:
    """Kullback-Leibler divergence in nats of the mean of distributions (..., K) from the uniform one."""
    mean = distribution.float().flatten(0, -2).mean(0)
    return math.log(distribution.shape[-1]) - torch.special.entr(mean).sum()


def feature_spread(features: Tensor) -> Tensor:
    """Standard deviation of normalised features (N, D) over N, mean over D, times the root of D; 0 if all are alike."""
    normalised = functional.normalize(features.detach().float(), dim=1)
    return normalised.std(0, correction=0).mean() * math.sqrt(features.shape[1])


def agreement(target: Tensor, student: Tensor) -> Tensor:
    """Part of views (B, K) in which teacher and student hold the same prototype for the likeliest."""
    return (target.argmax(-1) == student.argmax(-1)).float().mean()


class Watcher:
    """Warns when a monitor has been suspicious for long; its state is plain numbers.

    Args:
        prototypes: K.
        patience: steps.
    """

    def __init__(self, prototypes: int, patience: int = PATIENCE) -> None:
        self.most = math.log(prototypes)
        self.patience = patience
        self.since: dict[str, int] = {}

    def update(self, step: int, values: Mapping[str, float]) -> list[str]:
        """Take note of a step's monitors.

        Args:
            step: counted from 0; not every step need be told.
            values: monitors; those called "entropy_..." and "spread" are watched.

        Returns:
            Warnings, each with the remedy.
        """
        warnings = []
        for name, value in values.items():
            problem = self._problem(name, value)
            if problem is None:
                self.since.pop(name, None)
            elif step - self.since.setdefault(name, step) >= self.patience:
                warnings.append(f"pre-training may have collapsed: for {self.patience} steps {problem}")
                self.since[name] = step
        return warnings

    def state_dict(self) -> dict[str, Any]:
        """Since which step each monitor is suspicious."""
        return dict(self.since)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue with a `state_dict`."""
        self.since = dict(state)

    def _problem(self, name: str, value: float) -> str | None:
        remedy = "lower the learning rate, or use larger batches"
        if name == "spread" and not value >= SPREAD:
            return (
                f"all features have nearly had one direction (spread {value:.3g}, wanted: {SPREAD} or more); {remedy}"
            )
        if not name.startswith("entropy_"):
            return None
        if not value >= LOW * self.most:
            return f"the teacher's {name} has been {value:.3g}, below {LOW} log K: raise its temperatures"
        if value > HIGH * self.most:
            return f"the teacher's {name} has been {value:.3g}, above {HIGH} log K: lower its temperatures, or {remedy}"
        return None
