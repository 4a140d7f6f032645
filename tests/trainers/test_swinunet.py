"""Swin-Unet's trainer: optimizer, recipes, and plans of other networks."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import support
import torch
from small_swinunet import block

from nnunet_ext.architectures.swinunet_plans import NETWORK_CLASS
from nnunet_ext.trainers.variants import trainer_class

Plans = Callable[[str], dict[str, Any]]


@pytest.fixture
def own(workspace: support.Workspace, planned: Plans) -> Callable[[str], Any]:
    """A trainer on plans with a small Swin-Unet."""
    with workspace.environment():
        workspace.preprocess(planned("plain"), "2d")

    def build(name: str, kind: str = "plain") -> Any:
        plans = deepcopy(planned(kind))
        configuration = plans["configurations"]["2d"]
        configuration["patch_size"] = [32, 32]
        configuration["architecture"] = block()
        return support.build_trainer(trainer_class(name), workspace, plans, "2d")

    return build


def test_weight_decay_spares_norms_biases_and_tables(own: Callable[[str], Any]) -> None:
    trainer = own("SwinUNetTrainer")
    trainer.initialize()
    assert isinstance(trainer.optimizer, torch.optim.AdamW)
    decayed, spared = trainer.optimizer.param_groups
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.05, 0.0)
    names = {id(p): name for name, p in trainer.network.named_parameters()}
    assert len(decayed["params"]) + len(spared["params"]) == len(names)
    for p in spared["params"]:
        name = names[id(p)]
        assert name.endswith((".bias", "relative_position_bias_table")) or "norm" in name
    for p in decayed["params"]:
        assert p.dim() > 1
        assert "table" not in names[id(p)]


def test_learning_rate_warms_up_in_both_groups(own: Callable[[str], Any]) -> None:
    trainer = own("SwinUNetTrainer")
    trainer.initialize()
    trainer._warm_up()
    rates = [group["lr"] for group in trainer.optimizer.param_groups]
    assert rates == pytest.approx([3e-4 / 251] * 2)
    trainer.epoch_iteration = 250
    trainer._warm_up()
    assert [group["lr"] for group in trainer.optimizer.param_groups] == pytest.approx([3e-4] * 2)
    trainer.lr_scheduler.step(500)
    assert [group["lr"] for group in trainer.optimizer.param_groups] == pytest.approx([3e-4 * 0.5**0.9] * 2)


def test_the_published_recipe(own: Callable[[str], Any]) -> None:
    trainer = own("SwinUNetTrainer_Published")
    trainer.initialize()
    (group,) = trainer.optimizer.param_groups
    assert isinstance(trainer.optimizer, torch.optim.SGD)
    assert (group["lr"], group["momentum"], group["nesterov"], group["weight_decay"]) == (0.05, 0.9, False, 1e-4)
    assert trainer.num_epochs * trainer.num_iterations_per_epoch == 10_500
    loss = trainer.loss.loss if hasattr(trainer.loss, "loss") else trainer.loss
    loss = getattr(loss, "base", loss)
    assert (loss.weight_ce, loss.weight_dice) == (0.4, 0.6)
    assert (loss.dc.batch_dice, loss.dc.do_bg) == (True, True)


def test_the_common_optimizer_replaces_the_published_one(own: Callable[[str], Any]) -> None:
    trainer = own("SwinUNetTrainer_Published_AdamW")
    trainer.initialize()
    assert isinstance(trainer.optimizer, torch.optim.AdamW)
    assert [group["lr"] for group in trainer.optimizer.param_groups] == [1e-3] * 2


def test_plans_of_another_network_are_translated(workspace: support.Workspace, planned: Plans) -> None:
    with workspace.environment():
        workspace.preprocess(planned("plain"), "2d")
    plans = planned("plain")
    trainer = support.build_trainer(trainer_class("SwinUNetTrainer_1its_1epochs"), workspace, plans, "2d")
    assert trainer.configuration_manager.network_arch_class_name == NETWORK_CLASS
    assert list(trainer.configuration_manager.patch_size) == list(plans["configurations"]["2d"]["patch_size"])
    trainer.run_training()
    assert "were made for PlainConvUNet, and its stages were translated to Swin-Unet" in support.log_of(trainer)
    again = support.build_trainer(trainer_class("SwinUNetTrainer"), workspace, trainer.plans_manager.plans, "2d")
    assert again.plans_manager.plans == trainer.plans_manager.plans
