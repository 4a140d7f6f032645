"""Trainings that are interrupted and resumed, and batches that depend on the step alone."""

from __future__ import annotations

from typing import Any

import pytest
import support
import torch
from nnunetv2.run.run_training import maybe_load_checkpoint


class KeyedLoader:
    """Batches for labels 0, 1, 2 that depend on the number of the step alone."""

    def __init__(self, trainer: Any, per_epoch: int, offset: int) -> None:
        self.trainer, self.offset = trainer, offset
        self.step = trainer.current_epoch * per_epoch

    def __next__(self) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(self.step + self.offset)
        self.step += 1
        patch = self.trainer.configuration_manager.patch_size
        data = torch.randn(2, 1, *patch, generator=generator)
        labels: Any = (data > 0).to(torch.int16) + (data > 1).to(torch.int16)
        scales = self.trainer._get_deep_supervision_scales()
        target = labels
        if scales is not None:
            steps = [(..., *(slice(None, None, round(1 / s)) for s in scale)) for scale in scales]
            target = [labels[step] for step in steps]
        return {"data": data, "target": target, "keys": ["x", "y"]}


class KeyedBatches:
    """Mixed into a trainer, it trains on keyed batches."""

    num_iterations_per_epoch: int
    num_val_iterations_per_epoch: int

    def get_dataloaders(self) -> tuple[KeyedLoader, KeyedLoader]:
        return (
            KeyedLoader(self, self.num_iterations_per_epoch, 0),
            KeyedLoader(self, self.num_val_iterations_per_epoch, 10_000),
        )


def interrupted(
    workspace: support.Workspace, plans: dict[str, Any], trainer_class: type, configuration: str = "3d_fullres"
) -> Any:
    """Train 2 of 3 epochs, write checkpoint_latest, and give the resumed, finished trainer.

    (nnU-Net writes checkpoint_latest before it updates its best EMA, so that one may differ.)
    """
    first = support.build_trainer(trainer_class, workspace, plans, configuration, save_every=1)
    stop = first.on_epoch_end

    def stop_after_two() -> None:
        stop()
        if first.current_epoch == 2:
            raise KeyboardInterrupt

    first.on_epoch_end = stop_after_two
    with pytest.raises(KeyboardInterrupt):
        first.run_training()
    plans = {**plans, "continue_training": True}
    again = support.build_trainer(trainer_class, workspace, plans, configuration, save_every=1)
    maybe_load_checkpoint(again, True, False)
    assert again.current_epoch == 2
    assert_same_state(first, again)
    again.run_training()
    return again


def assert_same_state(one: Any, other: Any) -> None:
    """Network and optimizer are equal bit for bit."""
    weights, loaded = one.network.state_dict(), other.network.state_dict()
    assert weights.keys() == loaded.keys()
    assert all(torch.equal(weights[key], loaded[key]) for key in weights)
    state, again = one.optimizer.state_dict(), other.optimizer.state_dict()
    assert state["param_groups"] == again["param_groups"]
    assert state["state"].keys() == again["state"].keys()
    for number, slots in state["state"].items():
        for name, value in slots.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(again["state"][number][name])), name
