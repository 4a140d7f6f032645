"""The base trainer: construction, deep supervision, suffix options, and training on every kind of labels."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import support
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from nnunet_ext.trainers.base import BaseTrainer
from nnunet_ext.trainers.options import common_attributes, variant_attributes

Plans = Callable[[str], dict[str, Any]]


def variant(*suffixes: str) -> type:
    """BaseTrainer with suffixes, without the registry."""
    return type("_".join(("BaseTrainer", *suffixes)), (BaseTrainer,), variant_attributes(BaseTrainer, suffixes))


Short = variant("2its", "1epochs")


class Widened(BaseTrainer):
    """Changes the network through the plans."""

    def adapt_plans(self, plans: dict[str, Any], configuration: str) -> dict[str, Any]:
        architecture = deepcopy(plans["configurations"][configuration]["architecture"])
        architecture["arch_kwargs"]["features_per_stage"] = [6, 6, 6, 6]
        self.set_architecture(plans, configuration, architecture)
        return plans


def test_constructor_has_nnunets_signature() -> None:
    assert (
        inspect.signature(BaseTrainer.__init__).parameters.keys()
        == inspect.signature(nnUNetTrainer.__init__).parameters.keys()
    )


def test_plans_are_adapted_in_a_copy_that_nnunet_keeps(workspace: support.Workspace, planned: Plans) -> None:
    plans = planned("plain")
    before = deepcopy(plans)
    trainer = Widened(plans, "3d_fullres", 0, workspace.dataset_json(plans["dataset_name"]), torch.device("cpu"))
    assert plans == before
    kept = trainer.my_init_kwargs["plans"]
    assert kept is trainer.plans_manager.plans
    assert kept["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["features_per_stage"] == [6, 6, 6, 6]
    assert kept["nnunet_ext"]["trainer"] == "Widened"
    assert "continue_training" not in kept
    trainer.initialize()
    assert trainer.network.encoder.stages[0][0].convs[0].conv.out_channels == 6


@pytest.mark.parametrize("name", ["nnUNet_results", "nnUNet_preprocessed"])
def test_missing_variable_is_named(
    workspace: support.Workspace, planned: Plans, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    plans = planned("plain")
    monkeypatch.delenv(name)
    with pytest.raises(RuntimeError, match=rf"{name} is not set.*export {name}="):
        support.build_trainer(BaseTrainer, workspace, plans)


def test_unknown_configuration_is_left_to_nnunet(workspace: support.Workspace, planned: Plans) -> None:
    with pytest.raises(RuntimeError, match="not found in plans"):
        support.build_trainer(BaseTrainer, workspace, planned("plain"), "4d_fullres")


def test_impossible_patch_is_refused_by_the_network(
    workspace: support.Workspace, planned: Plans, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dynamic_network_architectures.architectures.unet import PlainConvUNet

    def check(_: Any, patch_size: list[int]) -> None:
        raise ValueError(f"patch size {tuple(patch_size)} is impossible")

    monkeypatch.setattr(PlainConvUNet, "check_patch_size", check, raising=False)
    with pytest.raises(ValueError, match=r"patch size \(24, 32, 32\) is impossible"):
        support.build_trainer(BaseTrainer, workspace, planned("plain")).initialize()


@pytest.mark.parametrize("kind", ["plain", "anisotropic", "regions", "ignore", "regionsignore", "twochannels"])
def test_trains_an_epoch_on(workspace: support.Workspace, planned: Plans, kind: str) -> None:
    trainer = support.build_trainer(Short, workspace, planned(kind))
    trainer.run_training()
    assert np.isfinite(trainer.logger.get_value("train_losses", step=None)).all()
    assert np.isfinite(trainer.logger.get_value("val_losses", step=None)).all()
    assert (Path(trainer.output_folder) / "checkpoint_final.pth").exists()
    assert "kept for the backward pass" in support.log_of(trainer)
    assert json.loads((Path(trainer.output_folder) / "debug.json").read_text())["batch_size"]


def test_validates_after_training(workspace: support.Workspace, planned: Plans) -> None:
    trainer = support.build_trainer(Short, workspace, planned("plain"))
    trainer.run_training()
    trainer.perform_actual_validation()
    summary = json.loads((Path(trainer.output_folder) / "validation" / "summary.json").read_text())
    assert len(summary["metric_per_case"]) == 2


# ----------------------------------------------------------------------------------------------------- deep supervision


def test_one_scale_switches_deep_supervision_off(workspace: support.Workspace, planned: Plans) -> None:
    plans = support.with_stages(planned("plain"), 2)
    trainer = support.build_trainer(Short, workspace, plans)
    assert not trainer.enable_deep_supervision
    assert "Deep supervision is off" in support.log_of(trainer)
    trainer.run_training()
    assert np.isfinite(trainer.logger.get_value("train_losses", step=None)).all()
    assert not trainer.network.decoder.deep_supervision


def test_deep_supervision_switched_off_stays_off(workspace: support.Workspace, planned: Plans) -> None:
    trainer = support.build_trainer(Short, workspace, planned("plain"), enable_deep_supervision=False)
    trainer.run_training()
    trainer.set_deep_supervision_enabled(True)  # nnU-Net does so after its validation
    assert not trainer.network.decoder.deep_supervision


def ddp_trainer(trainer_class: type, workspace: support.Workspace, plans: dict[str, Any]) -> Any:
    """A trainer that was told to be one of several processes (nnU-Net would put it on a GPU)."""
    trainer = support.build_trainer(trainer_class, workspace, plans)
    trainer.device, trainer.grad_scaler = torch.device("cpu"), None
    return trainer


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.usefixtures("one_process")
def test_switch_goes_through_ddp_and_compile(
    workspace: support.Workspace, planned: Plans, monkeypatch: pytest.MonkeyPatch, compiled: bool
) -> None:
    monkeypatch.setattr(BaseTrainer, "_do_i_compile", lambda _: compiled)
    trainer = ddp_trainer(BaseTrainer, workspace, planned("plain"))
    trainer.initialize()
    network = trainer.bare_network()
    assert isinstance(trainer.network, DistributedDataParallel)
    assert type(trainer.network.module).__name__ == ("OptimizedModule" if compiled else "PlainConvUNet")
    assert type(network).__name__ == "PlainConvUNet"
    for enabled in (False, True):
        trainer.set_deep_supervision_enabled(enabled)
        assert network.decoder.deep_supervision is enabled


@pytest.mark.parametrize("supervised", [True, False])
@pytest.mark.usefixtures("one_process")
def test_trains_with_ddp(workspace: support.Workspace, planned: Plans, supervised: bool) -> None:
    attributes = variant_attributes(BaseTrainer, ("2its", "1epochs"))
    attributes["hyperparameters"]["enable_deep_supervision"] = supervised
    base = type("Deep", (BaseTrainer,), attributes)
    trainer = ddp_trainer(base, workspace, planned("plain"))
    trainer.run_training()
    frozen = [name for name, p in trainer.bare_network().named_parameters() if not p.requires_grad]
    lower = [f"decoder.seg_layers.{level}.{kind}" for level in (0, 1) for kind in ("weight", "bias")]
    assert frozen == ([] if supervised else lower)


def test_network_without_deep_supervision(workspace: support.Workspace, planned: Plans) -> None:
    trainer = support.build_trainer(BaseTrainer, workspace, planned("plain"))
    trainer.network = nn.Conv3d(1, 3, 1)
    with pytest.raises(RuntimeError, match="supports_deep_supervision = False"):
        trainer.set_deep_supervision_enabled(True)
    trainer.set_deep_supervision_enabled(False)
    without = type("Without", (BaseTrainer,), {"supports_deep_supervision": False})
    trainer = support.build_trainer(without, workspace, planned("plain"))
    trainer.network = nn.Conv3d(1, 3, 1)
    trainer.set_deep_supervision_enabled(True)
    assert trainer._get_deep_supervision_scales() is None


# ------------------------------------------------------------------------------------------------------------- suffixes


def test_iterations_and_epochs(workspace: support.Workspace, planned: Plans) -> None:
    trainer = support.build_trainer(variant("250its", "7epochs"), workspace, planned("plain"))
    assert (trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch, trainer.num_epochs) == (250, 50, 7)
    assert support.build_trainer(variant("3its"), workspace, planned("plain")).num_val_iterations_per_epoch == 1


def test_adamw(workspace: support.Workspace, planned: Plans) -> None:
    trainer = support.build_trainer(variant("AdamW", "10epochs"), workspace, planned("plain"))
    trainer.initialize()
    assert isinstance(trainer.optimizer, torch.optim.AdamW)
    group = trainer.optimizer.param_groups[0]
    assert (group["lr"], group["weight_decay"]) == (3e-3, 1e-2)
    trainer.lr_scheduler.step(5)
    assert group["lr"] == pytest.approx(3e-3 * 0.5**0.9)


def test_cosine_goes_to_zero_and_depends_on_the_epoch_only(workspace: support.Workspace, planned: Plans) -> None:
    cosine = type("Cosine", (variant("8epochs"),), {"schedule": "cosine"})
    trainer = support.build_trainer(cosine, workspace, planned("plain"))
    trainer.initialize()
    reference = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1e-2)
    expected = torch.optim.lr_scheduler.CosineAnnealingLR(reference, 8)
    for epoch in range(8):
        trainer.lr_scheduler.step(epoch)
        assert trainer.lr_scheduler.get_last_lr()[0] == pytest.approx(expected.get_last_lr()[0], abs=1e-12)
        reference.step()
        expected.step()
    trainer.lr_scheduler.step(8)
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(0)


@pytest.mark.parametrize(("attribute", "word"), [("optimizer_name", "adamw"), ("schedule", "cosine")])
def test_unknown_optimizer_or_schedule(workspace: support.Workspace, planned: Plans, attribute: str, word: str) -> None:
    wrong = type("Wrong", (BaseTrainer,), {attribute: "nonsense"})
    with pytest.raises(ValueError, match=f"nonsense.*allowed.*{word}"):
        support.build_trainer(wrong, workspace, planned("plain")).initialize()


def test_no_mirroring_in_training_and_for_inference(workspace: support.Workspace, planned: Plans) -> None:
    trainer = support.build_trainer(variant("NoMirroring", "2its", "1epochs"), workspace, planned("plain"))
    trainer.run_training()
    assert "MirrorTransform" not in str(trainer.dataloader_train.data_loader.transforms)
    checkpoint = torch.load(Path(trainer.output_folder) / "checkpoint_final.pth", weights_only=False)
    assert checkpoint["inference_allowed_mirroring_axes"] is None
    mirrored = support.build_trainer(Short, workspace, planned("plain"))
    mirrored.run_training()
    transforms = mirrored.dataloader_train.data_loader.transforms.transforms
    assert any(type(transform).__name__ == "MirrorTransform" for transform in transforms)
    assert mirrored.inference_allowed_mirroring_axes == (0, 1, 2)


def run_seeded(workspace: support.Workspace, plans: dict[str, Any], seed: int) -> tuple[list[float], dict[str, Any]]:
    trainer = support.build_trainer(
        variant(f"Seed{seed}", "2its", "2epochs"), workspace, plans, disable_checkpointing=True
    )
    trainer.run_training()
    return trainer.logger.get_value("train_losses", step=None), trainer.network.state_dict()


def test_seed_repeats_every_bit(workspace: support.Workspace, planned: Plans) -> None:
    losses, weights = run_seeded(workspace, planned("plain"), 5)
    again, weights_again = run_seeded(workspace, planned("plain"), 5)
    other, _ = run_seeded(workspace, planned("plain"), 6)
    assert losses == again
    assert all(torch.equal(weights[key], weights_again[key]) for key in weights)
    assert losses != other


def test_later_suffix_wins_and_mappings_merge() -> None:
    attributes = variant_attributes(BaseTrainer, ("AdamW", "5its", "9epochs"))
    assert attributes["hyperparameters"] == {
        "initial_lr": 3e-3,
        "weight_decay": 1e-2,
        "num_iterations_per_epoch": 5,
        "num_val_iterations_per_epoch": 1,
        "num_epochs": 9,
    }
    with pytest.raises(KeyError):
        common_attributes("Nonsense")


def test_the_learning_rate_warms_up_over_the_first_iterations(workspace: support.Workspace, planned: Plans) -> None:
    warm = type("Warm", (Short,), {"warmup_iterations": 3})
    trainer = support.build_trainer(warm, workspace, planned("plain"))
    trainer.initialize()
    rates = []
    for epoch in range(3):
        trainer.current_epoch = epoch
        trainer.optimizer.param_groups[0]["lr"] = 2.0  # the schedule's, which is set once an epoch
        trainer._begin_epoch()
        for _ in range(trainer.num_iterations_per_epoch):
            trainer._warm_up()
            rates.append(trainer.optimizer.param_groups[0]["lr"])
    assert trainer.num_iterations_per_epoch == 2
    assert rates == pytest.approx([0.5, 1, 1.5, 2, 2, 2])
