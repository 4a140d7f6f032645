"""SSH-UNet's trainer: the network that it writes into the plans, its recipes, and training."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import support
import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_ext.architectures.sshunet_plans import NETWORK_CLASS, sshunet_architecture
from nnunet_ext.trainers import sshunet
from nnunet_ext.trainers.variants import trainer_class

Plans = Callable[[str], dict[str, Any]]


@pytest.fixture
def own(planned: Plans) -> Callable[..., dict[str, Any]]:
    """Plans of a kind with an SSH-UNet in them."""

    def plans_of(kind: str, **options: Any) -> dict[str, Any]:
        plans = deepcopy(planned(kind))
        plans["plans_name"] = "SSHUNetPlans"
        configuration = plans["configurations"]["3d_fullres"]
        arguments = configuration["architecture"]["arch_kwargs"]
        configuration["architecture"] = sshunet_architecture(
            arguments["strides"], arguments["features_per_stage"], **options
        )
        return plans

    return plans_of


def network_of(trainer: Any) -> dict[str, Any]:
    arguments: dict[str, Any] = trainer.configuration_manager.network_arch_init_kwargs
    return arguments


@pytest.mark.parametrize(
    ("suffixes", "gate", "fusion"),
    [
        ("", "gsf", "sum"),
        ("_TSM", "tsm", "sum"),
        ("_GSM", "gsm", "sum"),
        ("_VFN", "gsf", "vfn"),
        ("_TSM_VFN", "tsm", "vfn"),
    ],
)
def test_suffixes_change_the_plans_network(
    workspace: support.Workspace, own: Callable[..., dict[str, Any]], suffixes: str, gate: str, fusion: str
) -> None:
    plans = own("plain", gate="gsf", tsm_fold_div=2)
    trainer = support.build_trainer(trainer_class(f"SSHUNetTrainer{suffixes}"), workspace, plans)
    arguments = network_of(trainer)
    assert (arguments["gate"], arguments["fusion"]) == (gate, fusion)
    assert arguments["tsm_fold_div"] == 2, "what the plans say otherwise is kept"
    assert trainer.my_init_kwargs["plans"]["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"] == arguments
    assert ("nnunet_ext" in trainer.plans_manager.plans) == bool(suffixes)
    trainer.initialize()
    assert type(trainer.network).__name__ == "SSHUNet"


def test_plans_of_another_network_are_translated(workspace: support.Workspace, planned: Plans) -> None:
    plans = planned("plain")
    stock = plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    trainer = support.build_trainer(trainer_class("SSHUNetTrainer_GSM_1its_1epochs"), workspace, plans)
    arguments = network_of(trainer)
    assert trainer.configuration_manager.network_arch_class_name == NETWORK_CLASS
    assert (arguments["strides"], arguments["features_per_stage"]) == (stock["strides"], stock["features_per_stage"])
    assert arguments["gate"] == "gsm"
    trainer.run_training()
    log = support.log_of(trainer)
    assert "were made for PlainConvUNet" in log
    assert "times PlainConvUNet's" in log
    assert "SSHUNetPlanner" in log
    written = json.loads((Path(trainer.output_folder_base) / "plans.json").read_text())
    assert written["configurations"]["3d_fullres"]["architecture"]["network_class_name"] == NETWORK_CLASS


@pytest.mark.parametrize(("suffix", "warned"), [("GSM", True), ("TSM", False)])
def test_options_that_need_more_than_planned_are_logged(
    workspace: support.Workspace, own: Callable[..., dict[str, Any]], suffix: str, warned: bool
) -> None:
    trainer = support.build_trainer(trainer_class(f"SSHUNetTrainer_{suffix}"), workspace, own("plain", gate="tsm"))
    trainer.initialize()
    trainer.log_memory()
    assert ("were made for" in support.log_of(trainer)) == warned
    assert ("-gpu_memory_target" in support.log_of(trainer)) == warned


def test_translated_plans_stay_as_they_are(workspace: support.Workspace, planned: Plans) -> None:
    made = trainer_class("SSHUNetTrainer_GSF")
    once = support.build_trainer(made, workspace, planned("plain")).plans_manager.plans
    twice = support.build_trainer(made, workspace, once).plans_manager.plans
    assert once == twice


def test_network_without_strides_cannot_be_translated(workspace: support.Workspace, planned: Plans) -> None:
    plans = deepcopy(planned("plain"))
    del plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["strides"]
    with pytest.raises(ValueError, match=r"PlainConvUNet.* has no strides.*-pl SSHUNetPlanner"):
        support.build_trainer(trainer_class("SSHUNetTrainer"), workspace, plans)


def test_2d_names_the_way_out(workspace: support.Workspace, planned: Plans) -> None:
    with pytest.raises(NotImplementedError, match=r"3D network.*'2d'.*3d_fullres or 3d_lowres.*nnUNetTrainer"):
        support.build_trainer(trainer_class("SSHUNetTrainer"), workspace, planned("plain"), "2d")


def test_unknown_configuration_is_left_to_nnunet(workspace: support.Workspace, planned: Plans) -> None:
    with pytest.raises(RuntimeError, match="not found in plans"):
        support.build_trainer(trainer_class("SSHUNetTrainer"), workspace, planned("plain"), "4d_fullres")


@pytest.mark.parametrize(
    ("suffix", "patch", "words"),
    [("", [24, 32, 33], "axis 2"), ("_VFN", [28, 32, 32], "divisible by 8"), ("", [4, 4, 4], r"\(4, 4, 4\)")],
)
def test_impossible_patches(
    workspace: support.Workspace, own: Callable[..., dict[str, Any]], suffix: str, patch: list[int], words: str
) -> None:
    plans = own("plain")
    plans["configurations"]["3d_fullres"]["patch_size"] = patch
    with pytest.raises(ValueError, match=words):
        support.build_trainer(trainer_class(f"SSHUNetTrainer{suffix}"), workspace, plans).initialize()


@pytest.mark.parametrize("kind", ["plain", "noncubic", "anisotropic", "regionsignore"])
def test_trains_with_deep_supervision(
    workspace: support.Workspace, own: Callable[..., dict[str, Any]], kind: str
) -> None:
    trainer = support.build_trainer(trainer_class("SSHUNetTrainer_1its_1epochs"), workspace, own(kind))
    trainer.run_training()
    assert trainer.enable_deep_supervision
    assert np.isfinite(trainer.logger.get_value("train_losses", step=None)).all()


def test_vfn_with_many_classes_warns(workspace: support.Workspace, own: Callable[..., dict[str, Any]]) -> None:
    trainer = support.build_trainer(trainer_class("SSHUNetTrainer_VFN"), workspace, own("manyclasses"))
    trainer.initialize()
    assert "VFN fusion with 24 classes" in support.log_of(trainer)
    trainer = support.build_trainer(trainer_class("SSHUNetTrainer"), workspace, own("manyclasses"))
    trainer.initialize()
    assert "VFN fusion" not in support.log_of(trainer)


# ------------------------------------------------------------------------------------------------------------ published


def test_published_optimiser_and_schedule(workspace: support.Workspace, own: Callable[..., dict[str, Any]]) -> None:
    trainer = support.build_trainer(trainer_class("SSHUNetTrainer_Published"), workspace, own("plain"))
    assert trainer.num_epochs * trainer.num_iterations_per_epoch == 60_000
    assert not trainer.enable_deep_supervision
    trainer.initialize()
    group = trainer.optimizer.param_groups[0]
    assert isinstance(trainer.optimizer, torch.optim.AdamW)
    assert (group["lr"], group["weight_decay"]) == (4e-4, 1e-5)
    trainer.lr_scheduler.step(trainer.num_epochs // 2)
    assert group["lr"] == pytest.approx(2e-4)
    shorter = support.build_trainer(trainer_class("SSHUNetTrainer_Published_12its_5000epochs"), workspace, own("plain"))
    assert (shorter.num_iterations_per_epoch, shorter.num_epochs) == (12, 5000)


def dice_and_cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The published loss without its constant 1, written down from the specification.

    Args:
        logits: (B, K, D, H, W).
        labels: (B, D, H, W), int64.
    """
    probabilities = logits.softmax(1)
    reference = torch.nn.functional.one_hot(labels, logits.shape[1]).movedim(-1, 1).float()
    axes = (2, 3, 4)
    overlap = 2 * (probabilities * reference).sum(axes) + 1e-5
    dice = overlap / (probabilities.sum(axes) + reference.sum(axes) + 1e-5)  # (B, K), background included
    return torch.nn.functional.cross_entropy(logits, labels) - dice.mean()


def test_published_loss(workspace: support.Workspace, own: Callable[..., dict[str, Any]]) -> None:
    plans = own("plain")
    plans["configurations"]["3d_fullres"]["batch_dice"] = True
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 8, 8, 8, generator=generator)
    labels = torch.randint(0, 3, (2, 8, 8, 8), generator=generator)
    expected = dice_and_cross_entropy(logits, labels)
    for suffix, equal in (("_Published", True), ("", False)):
        trainer = support.build_trainer(trainer_class(f"SSHUNetTrainer{suffix}"), workspace, plans)
        trainer.enable_deep_supervision = False
        trainer.initialize()
        with torch.no_grad():
            loss = trainer.loss(logits, labels[:, None].short())
        assert bool(torch.isclose(loss, expected, atol=1e-6)) is equal


def test_published_trains(workspace: support.Workspace, own: Callable[..., dict[str, Any]]) -> None:
    trainer = support.build_trainer(trainer_class("SSHUNetTrainer_Published_1its_1epochs"), workspace, own("plain"))
    trainer.run_training()
    assert np.isfinite(trainer.logger.get_value("val_losses", step=None)).all()
    assert not trainer.network.decoder.deep_supervision


def test_written_plans_build_the_network_for_prediction(workspace: support.Workspace, planned: Plans) -> None:
    made: Any = trainer_class("SSHUNetTrainer_GSF_VFN_1its_1epochs")
    trainer = support.build_trainer(made, workspace, planned("plain"))
    trainer.run_training()
    manager = PlansManager(str(Path(trainer.output_folder_base) / "plans.json"))
    checkpoint = torch.load(Path(trainer.output_folder) / "checkpoint_final.pth", weights_only=False)
    network = sshunet.SSHUNetTrainer.build_network_architecture(
        manager, manager.get_configuration("3d_fullres"), 1, 3, enable_deep_supervision=False
    )
    network.load_state_dict(checkpoint["network_weights"])
    assert checkpoint["trainer_name"] == made.__name__
    with torch.inference_mode():
        assert network.eval()(torch.zeros(1, 1, 24, 32, 32)).shape == (1, 3, 24, 32, 32)
