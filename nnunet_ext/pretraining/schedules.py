"""Schedules of pre-training: pure functions of the step and the number of steps (specification alice 1.8, 4.4)."""

from __future__ import annotations

import math

WARM_UP = 0.05
"""Part of the steps in which the learning rate rises."""


def cosine(step: int, total: int, base: float, final: float, warm_up: int = 0) -> float:
    """A linear rise from 0 to `base` and half a cosine from there towards `final`, as the published code has it.

    Args:
        step: from 0 to total - 1.
        total: number of steps.
        base: value at the end of the rise, or of step 0 without one.
        final: what step `total` would have.
        warm_up: steps of the rise, both of its ends included.
    """
    if step < warm_up:
        return base * step / max(1, warm_up - 1)
    fraction = (step - warm_up) / max(1, total - warm_up)
    return final + 0.5 * (base - final) * (1 + math.cos(math.pi * min(1.0, fraction)))


def learning_rate(step: int, total: int, base: float, minimum: float = 1e-6, warm_up: float = WARM_UP) -> float:
    """Learning rate of AdamW: it rises for a part of the steps and falls to `minimum`, never above `base`.

    Args:
        step: from 0 to total - 1.
        total: number of steps.
        base: the highest.
        minimum: the last one; a higher one than `base` counts as `base` (the published default let the rate rise).
        warm_up: part of the steps.
    """
    return cosine(step, total, base, min(minimum, base), round(warm_up * total))


def polynomial(step: int, total: int, base: float, exponent: float = 0.9) -> float:
    """nnU-Net's own schedule, by steps: `base * (1 - step / total) ** exponent`."""
    return float(base * max(0.0, 1 - step / total) ** exponent)


def weight_decay(step: int, total: int, start: float = 0.04, end: float = 0.4) -> float:
    """Weight decay of weights of two and more axes: half a cosine from `start` to `end`."""
    return cosine(step, total, start, end)


def first_momentum(total: int) -> float:
    """The teacher's momentum at step 0: 0.996, less where there are fewer than 5000 steps, at least 0.9."""
    return min(0.996, max(0.9, 1 - 20 / total))


def teacher_momentum(step: int, total: int, start: float | None = None) -> float:
    """Momentum of the teacher's moving average: half a cosine from `start` (None: `first_momentum`) to 1."""
    return cosine(step, total, first_momentum(total) if start is None else start, 1.0)


def teacher_temperature(step: int, warm_up: int, start: float, end: float) -> float:
    """The teacher's temperature: a line from `start` to `end`, both within the first `warm_up` steps, then `end`."""
    return end if step >= warm_up else start + (end - start) * step / max(1, warm_up - 1)
