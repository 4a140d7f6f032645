"""Monitors of a collapse, and when they warn."""

from __future__ import annotations

import math

import pytest
import torch

from nnunet_ext.pretraining import monitors


def test_quantities() -> None:
    uniform, certain = torch.full((3, 2, 8), 1 / 8), torch.eye(8)
    assert monitors.entropy(uniform) == pytest.approx(math.log(8))
    assert monitors.entropy(certain) == 0
    assert monitors.divergence_from_uniform(uniform) == pytest.approx(0, abs=1e-6)
    assert monitors.divergence_from_uniform(certain) == pytest.approx(0, abs=1e-6)  # each prototype has its share
    assert monitors.divergence_from_uniform(certain[:1]) == pytest.approx(math.log(8))
    assert monitors.agreement(certain, 3 * certain) == 1
    assert monitors.agreement(certain, certain.flip(0)) == 0


def test_the_spread_of_features() -> None:
    features = torch.randn(4000, 32, generator=torch.Generator().manual_seed(0))
    assert monitors.feature_spread(features) == pytest.approx(1, abs=0.05)
    assert monitors.feature_spread(features[:1].expand(50, 32)) < 1e-3
    assert monitors.feature_spread(torch.zeros(50, 32)) == 0


GOOD = {"entropy_cls": 2.0, "entropy_patch": 2.0, "spread": 0.5, "loss": 0.0}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("entropy_cls", 0.1, "below 0.1 log K"),
        ("entropy_patch", 4.1, "above 0.98 log K"),
        ("spread", 0.05, "one direction"),
        ("spread", math.nan, "one direction"),
    ],
)
def test_a_lasting_sign_is_told(name: str, value: float, message: str) -> None:
    watcher = monitors.Watcher(64, patience=50)
    for step in range(0, 100, 10):
        assert watcher.update(step, GOOD) == []
    bad = {**GOOD, name: value}
    found = [(step, text) for step in range(100, 210, 10) for text in watcher.update(step, bad)]
    assert [step for step, _ in found] == [150, 200]
    assert all(message in text for _, text in found)
    watcher.update(210, GOOD)
    assert watcher.update(260, bad) == []


def test_a_restart_does_not_reset_it() -> None:
    watcher, after = monitors.Watcher(64, 50), monitors.Watcher(64, 50)
    watcher.update(0, {"spread": 0.0})
    after.load_state_dict(watcher.state_dict())
    assert len(after.update(50, {"spread": 0.0})) == 1
