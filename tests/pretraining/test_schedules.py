"""Schedules: rates never rise after the warm-up, and nothing depends on anything but the step."""

from __future__ import annotations

import pytest

from nnunet_ext.pretraining import schedules


@pytest.mark.parametrize("total", [1, 2, 3, 20, 1000])
@pytest.mark.parametrize(("base", "minimum"), [(1e-3, 1e-6), (1.25e-5, 1e-4)])
def test_the_rate_rises_and_falls(total: int, base: float, minimum: float) -> None:
    """The published minimum was above the peak (specification alice 6.2.5)."""
    rates = [schedules.learning_rate(step, total, base, minimum) for step in range(total)]
    top = rates.index(max(rates))
    assert max(rates) <= base * (1 + 1e-12)
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert all(after <= before * (1 + 1e-12) for before, after in zip(rates[top:], rates[top + 1 :], strict=False))
    assert top <= 0.05 * total + 1
    assert rates[-1] >= min(minimum, base) or top == len(rates) - 1


def test_the_published_rate_may_rise() -> None:
    rates = [schedules.cosine(step, 100, 1e-5, 1e-4, 5) for step in range(100)]
    assert rates[-1] > rates[5] == pytest.approx(1e-5)


def test_polynomial() -> None:
    assert schedules.polynomial(0, 10, 0.01) == 0.01
    assert schedules.polynomial(5, 10, 0.01) == pytest.approx(0.01 * 0.5**0.9)
    assert schedules.polynomial(10, 10, 0.01) == 0


def test_weight_decay_rises() -> None:
    values = [schedules.weight_decay(step, 100) for step in range(100)]
    assert values == sorted(values)
    assert [values[0], values[-1]] == pytest.approx([0.04, 0.4], rel=1e-2)


@pytest.mark.parametrize(("total", "first"), [(20, 0.9), (1000, 0.98), (5000, 0.996), (250_000, 0.996)])
def test_the_teacher_is_faster_in_short_trainings(total: int, first: float) -> None:
    assert schedules.teacher_momentum(0, total) == pytest.approx(first)
    assert schedules.teacher_momentum(0, total, 0.5) == 0.5
    assert schedules.teacher_momentum(total // 2, total) == pytest.approx((1 + first) / 2)
    assert schedules.teacher_momentum(total, total) == pytest.approx(1)


def test_temperature() -> None:
    values = [schedules.teacher_temperature(step, 4, 0.04, 0.07) for step in range(6)]
    assert values == pytest.approx([0.04, 0.05, 0.06, 0.07, 0.07, 0.07])
    assert schedules.teacher_temperature(0, 0, 0.04, 0.07) == 0.07
    assert schedules.teacher_temperature(0, 1, 0.04, 0.07) == 0.04
