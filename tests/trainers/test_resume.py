"""A training that is interrupted and resumed goes on as if nothing had happened."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import support
import torch
from nnunetv2.run.run_training import maybe_load_checkpoint

from nnunet_ext.trainers.base import BaseTrainer
from nnunet_ext.trainers.options import variant_attributes

Plans = Callable[[str], dict[str, Any]]
ITERATIONS = 3


class KeyedLoader:
    """Batches that depend on the number of the step alone."""

    def __init__(self, trainer: Any, per_epoch: int, offset: int) -> None:
        self.trainer, self.offset = trainer, offset
        self.step = trainer.current_epoch * per_epoch

    def __next__(self) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(self.step + self.offset)
        self.step += 1
        patch = self.trainer.configuration_manager.patch_size
        data = torch.randn(2, 1, *patch, generator=generator)
        labels = (data > 0).to(torch.int16) + (data > 1).to(torch.int16)
        scales = self.trainer._get_deep_supervision_scales()
        steps = [[round(1 / s) for s in scale] for scale in scales]
        return {"data": data, "target": [labels[:, :, ::a, ::b, ::c] for a, b, c in steps], "keys": ["x", "y"]}


class KeyedTrainer(BaseTrainer):
    """Trains on keyed batches."""

    def get_dataloaders(self) -> tuple[Any, Any]:
        return (
            KeyedLoader(self, self.num_iterations_per_epoch, 0),
            KeyedLoader(self, self.num_val_iterations_per_epoch, 10_000),
        )


def interrupted(workspace: support.Workspace, plans: dict[str, Any], trainer_class: type) -> Any:
    """Train 2 of 3 epochs, write checkpoint_latest, and give the resumed, finished trainer."""
    first = support.build_trainer(trainer_class, workspace, plans, save_every=1)
    stop = first.on_epoch_end

    def stop_after_two() -> None:
        stop()
        if first.current_epoch == 2:
            raise KeyboardInterrupt

    first.on_epoch_end = stop_after_two
    with pytest.raises(KeyboardInterrupt):
        first.run_training()
    again = support.build_trainer(trainer_class, workspace, {**plans, "continue_training": True}, save_every=1)
    maybe_load_checkpoint(again, True, False)
    assert again.current_epoch == 2
    assert_same_state(first, again)
    again.run_training()
    return again


def assert_same_state(one: Any, other: Any) -> None:
    """Network and optimizer are equal bit for bit."""
    weights, loaded = one.network.state_dict(), other.network.state_dict()
    assert all(torch.equal(weights[key], loaded[key]) for key in weights)
    state, again = one.optimizer.state_dict(), other.optimizer.state_dict()
    assert state["param_groups"] == again["param_groups"]
    for number, slots in state["state"].items():
        for name, value in slots.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(again["state"][number][name])), name


@pytest.mark.parametrize(
    ("base", "suffixes"), [(KeyedTrainer, ("Seed1",)), (KeyedTrainer, ("AdamW", "Seed1")), (BaseTrainer, ("Seed1",))]
)
def test_resumed_equals_uninterrupted(
    workspace: support.Workspace, planned: Plans, tmp_path: Path, base: type, suffixes: tuple[str, ...]
) -> None:
    attributes = variant_attributes(base, (*suffixes, f"{ITERATIONS}its", "3epochs"))
    trainer_class = type("Resumed", (base,), attributes)
    plans = planned("plain")
    with workspace.environment(tmp_path / "whole"):
        whole = support.build_trainer(trainer_class, workspace, plans)
        whole.run_training()
    with workspace.environment(tmp_path / "parts"):
        parts = interrupted(workspace, plans, trainer_class)
    for key in ("train_losses", "val_losses", "lrs"):
        assert parts.logger.get_value(key, step=None) == whole.logger.get_value(key, step=None)
        assert len(parts.logger.get_value(key, step=None)) == 3
    assert_same_state(whole, parts)
