"""Self-regularisation in training: what it adds and logs, when it adds nothing, resuming, and what a checkpoint is."""

from __future__ import annotations

import pickle
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import support
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from resuming import KeyedBatches, assert_same_state, interrupted
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from nnunet_ext import lookup
from nnunet_ext.losses.points import KDPoint, KDPoints
from nnunet_ext.losses.self_regularisation import Features, Options
from nnunet_ext.trainers.base import BaseTrainer
from nnunet_ext.trainers.kd import KDLoss, KDMixin, KDUNetTrainer
from nnunet_ext.trainers.options import variant_attributes
from nnunet_ext.trainers.variants import trainer_class

Plans = Callable[[str], dict[str, Any]]
LINE = re.compile(r"KD: SCR (\S+), IFD (\S+) \(weights (\S+) and (\S+)\)")


def variant(base: type, *suffixes: str, **attributes: Any) -> Any:
    """A trainer with suffixes and class attributes."""
    return type(base.__name__, (base,), {**variant_attributes(base, suffixes), **attributes})


def train(workspace: support.Workspace, plans: dict[str, Any], trainer: Any, configuration: str = "3d_fullres") -> Any:
    made = support.build_trainer(trainer, workspace, plans, configuration, disable_checkpointing=True)
    made.run_training()
    return made


def lines(trainer: Any) -> list[tuple[float, ...]]:
    """The log's lines of KD: SCR, IFD and their weights."""
    return [tuple(map(float, found)) for found in LINE.findall(support.log_of(trainer))]


def losses(trainer: Any) -> tuple[list[float], list[float]]:
    training, validation = (trainer.logger.get_value(key, step=None) for key in ("train_losses", "val_losses"))
    return training, validation


# --------------------------------------------------------------------------------------------------- what training does


def test_an_epoch_logs_both_terms_and_their_weights(workspace: support.Workspace, planned: Plans) -> None:
    warm = variant(KDUNetTrainer, "2its", "3epochs", kd_warmup_epochs=2, kd_ifd_weight=0.004)
    trainer = train(workspace, planned("plain"), warm)
    found = lines(trainer)
    assert [line[2:] for line in found] == [(0.0075, 0.002), (0.015, 0.004)]  # nothing in the first epoch
    assert all(0 < value < 100 for line in found for value in line[:2])
    assert "not finite" not in support.log_of(trainer)
    assert np.isfinite(losses(trainer)).all()
    assert trainer.kd_store.take() is None


@pytest.mark.parametrize("method", ["SSHUNet", "UNETRPP"])
def test_our_trainers_with_the_suffix(workspace: support.Workspace, planned: Plans, method: str) -> None:
    planned("plain")
    plans = workspace.plan("plain", lookup.find("planner", f"{method}Planner_W4"), thin=False)
    trainer = train(workspace, plans, lookup.find("trainer", f"{method}Trainer_KD_2its_1epochs"))
    (found,) = lines(trainer)
    assert found[2:] == (0.015, 0.015)
    assert np.isfinite(losses(trainer)).all()


def test_the_published_form_in_two_dimensions(workspace: support.Workspace, planned: Plans) -> None:
    plans = planned("plain")
    workspace.preprocess(plans, "2d")
    trainer = train(workspace, plans, lookup.find("trainer", "KDUNetTrainer_Published_2its_1epochs"), "2d")
    assert trainer.kd_options().matching == "random"
    assert len(lines(trainer)) == 1


@pytest.mark.parametrize(
    "attributes", [{"kd_warmup_epochs": 5}, {"kd_scr_weight": 0.0, "kd_ifd_weight": 0.0}], ids=["warm-up", "weights"]
)
def test_without_weight_every_bit_is_the_plain_trainers(
    workspace: support.Workspace, planned: Plans, attributes: dict[str, Any]
) -> None:
    """In the first epoch of a warm-up, and with both weights 0."""
    plans, short = planned("plain"), ("Seed3", "3its", "1epochs")
    plain = train(workspace, plans, variant(BaseTrainer, *short))
    silent = train(workspace, plans, variant(KDUNetTrainer, *short, **attributes))
    assert losses(silent) == losses(plain)
    weights, expected = silent.network.state_dict(), plain.network.state_dict()
    assert list(weights) == list(expected)
    assert all(torch.equal(weights[key], expected[key]) for key in expected)


def test_the_training_loss_has_the_terms_and_the_validation_loss_has_not(
    workspace: support.Workspace, planned: Plans
) -> None:
    plans, short = planned("plain"), ("Seed3", "1its", "1epochs")
    plain = train(workspace, plans, variant(BaseTrainer, *short))
    trained = variant(KDUNetTrainer, *short, kd_scr_weight=0.5, kd_ifd_weight=0.25)
    regularised = train(workspace, plans, trained)
    ((scr, ifd, *_),) = lines(regularised)
    assert losses(regularised)[0][0] == pytest.approx(losses(plain)[0][0] + 0.5 * scr + 0.25 * ifd, abs=1e-3)
    validated = support.build_trainer(trained, workspace, plans)
    validated.initialize()
    batch = torch.randn(2, 1, *validated.configuration_manager.patch_size)
    with torch.no_grad():
        output = validated.network(batch)  # in training mode
        target = [y.argmax(1, keepdim=True) for y in output]
        loss: Any = validated._kd_loss()
        assert torch.equal(loss(output, target), loss.base(output, target))


def test_more_epochs_than_a_tenth_are_at_full_weight() -> None:
    class Clock(KDMixin):
        def __init__(self, epochs: int, epoch: int) -> None:
            self.num_epochs, self.current_epoch = epochs, epoch

    assert [Clock(1000, epoch).kd_factor() for epoch in (0, 25, 100, 999)] == [0, 0.25, 1, 1]
    assert Clock(2, 0).kd_factor() == 1  # too short for a warm-up


@pytest.mark.parametrize("matching", ["mean", "random"])
def test_resumed_equals_uninterrupted(
    workspace: support.Workspace, planned: Plans, tmp_path: Path, matching: str
) -> None:
    """Random draws and the warm-up's weights go on, too."""
    base = type("Keyed", (KeyedBatches, KDUNetTrainer), {})
    resumed = variant(base, "Seed1", "2its", "3epochs", kd_matching=matching, kd_warmup_epochs=4)
    plans = planned("plain")
    with workspace.environment(tmp_path / "whole"):
        whole = support.build_trainer(resumed, workspace, plans)
        whole.run_training()
    with workspace.environment(tmp_path / "parts"):
        parts = interrupted(workspace, plans, resumed)
    assert losses(parts) == losses(whole)
    assert_same_state(whole, parts)
    assert lines(whole)[-1] == lines(parts)[-1]
    assert [line[2] for line in lines(whole)] == [0.00375, 0.0075]


def test_random_draws_go_by_epoch_and_iteration_and_touch_nothing_else(
    workspace: support.Workspace, planned: Plans
) -> None:
    trainer = support.build_trainer(variant(KDUNetTrainer, "5its", kd_matching="random"), workspace, planned("plain"))
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # type: ignore[index]
    drawn = []
    for epoch, iteration in ((0, 1), (0, 1), (0, 2), (1, 1)):
        trainer.current_epoch, trainer.epoch_iteration = epoch, iteration
        drawn.append(torch.randperm(50, generator=trainer.kd_generator()).tolist())
    assert drawn[0] == drawn[1]
    assert len({tuple(d) for d in drawn}) == 3
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]  # type: ignore[index]
    assert torch.equal(torch.get_rng_state(), before[2])


@pytest.mark.usefixtures("one_process")
def test_trains_with_ddp(workspace: support.Workspace, planned: Plans) -> None:
    trainer = support.build_trainer(
        variant(KDUNetTrainer, "2its", "1epochs"), workspace, planned("plain"), disable_checkpointing=True
    )
    trainer.device, trainer.grad_scaler = torch.device("cpu"), None
    trainer.run_training()
    assert isinstance(trainer.network, DistributedDataParallel)
    assert len(lines(trainer)) == 1


# --------------------------------------------------------------------------------------------------- names, checkpoints


def test_the_suffix_is_the_mixin_before_the_trainer() -> None:
    made = trainer_class("SSHUNetTrainer_GSM_KD_9epochs")
    assert issubclass(made, KDMixin)
    assert [c.__name__ for c in made.__mro__[1:3]] == ["KDMixin", "SSHUNetTrainer"]
    assert made is pickle.loads(pickle.dumps(made))


def test_options_that_make_no_sense_are_said_before_training(workspace: support.Workspace, planned: Plans) -> None:
    wrong = variant(KDUNetTrainer, kd_scr_weight=-1.0)
    with pytest.raises(ValueError, match="KD weights must not be negative"):
        support.build_trainer(wrong, workspace, planned("plain")).initialize()


def test_a_checkpoint_predicts_with_the_plain_trainer(workspace: support.Workspace, planned: Plans) -> None:
    trainer = support.build_trainer(trainer_class("KDUNetTrainer_2its_1epochs"), workspace, planned("plain"))
    trainer.run_training()
    path = Path(trainer.output_folder) / "checkpoint_final.pth"
    image = np.random.default_rng(0).normal(size=(1, 24, 32, 32)).astype(np.float32)
    found = []
    for name in ("KDUNetTrainer_2its_1epochs", "nnUNetTrainer"):
        content = torch.load(path, weights_only=False)
        torch.save({**content, "trainer_name": name}, path)
        predictor = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), perform_everything_on_device=False)
        predictor.initialize_from_trained_model_folder(str(path.parent.parent), (0,))
        assert not any(module._forward_hooks for module in predictor.network.modules())
        found.append(predictor.predict_logits_from_preprocessed_data(torch.from_numpy(image)))
    assert torch.equal(*found)


# ------------------------------------------------------------------------------------------------------- the loss alone


class Plain(nn.Module):
    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        return (output - target).square().mean()


def loss_of(scale: float, **options: Any) -> tuple[KDLoss, Tensor]:
    """A loss whose features are a map times a scale, and that map."""
    student = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()

    def take() -> Features:
        return Features([[[student * scale]]], [], [torch.ones(2, 3, 8, 8)])

    return KDLoss(Plain(), Options(), take, lambda: 1.0, lambda: None, **options), student


def test_a_term_that_is_not_finite_is_left_out_and_counted() -> None:
    output, target = torch.ones(3, requires_grad=True), torch.zeros(3)
    for scale, skipped in ((1.0, 0), (1e30, 1)):
        loss, student = loss_of(scale)
        value = loss(output, target)
        assert torch.isfinite(value)
        assert (value == 1) == bool(skipped)
        value.backward()
        assert student.grad is not None
        assert torch.isfinite(student.grad).all()
        assert (loss.steps, float(loss.skipped)) == (1, skipped)
        assert torch.isfinite(loss.sums).all()


def test_skipped_terms_are_in_the_log(workspace: support.Workspace, planned: Plans) -> None:
    class Overflowing(KDUNetTrainer):
        def _kd_take(self) -> Features | None:
            features = super()._kd_take()
            if features is None:
                return None
            huge = [[[piece * 1e30 for piece in pieces] for pieces in stage] for stage in features.encoder]
            return Features(huge, [], features.teacher)

    trainer = train(workspace, planned("plain"), variant(Overflowing, "2its", "1epochs"))
    assert "KD was not finite in 2 of 2 steps, where it was left out" in support.log_of(trainer)
    assert np.isfinite(losses(trainer)).all()


def test_a_trainer_may_state_the_points(workspace: support.Workspace, planned: Plans) -> None:
    """For a network whose class is somebody else's."""
    points = KDPoints(((KDPoint("encoder.stages.1"),),), (), KDPoint("decoder.stages.2"))
    theirs = variant(KDUNetTrainer, "1its", "2epochs", kd_points=lambda self, network: points)
    trainer = train(workspace, planned("plain"), theirs)
    assert trainer.kd_store.points is points
    assert len(lines(trainer)) == 2


@pytest.mark.parametrize(
    "name", ["KDUNetTrainer_Published", "SSHUNetTrainer_Published_KD", "SwinUNetTrainer_Published_KD"]
)
def test_published_recipes_have_the_published_form(name: str) -> None:
    made: Any = trainer_class(name)
    plain: Any = trainer_class("SSHUNetTrainer_KD")
    assert (made.kd_matching, made.kd_warmup_epochs) == ("random", 0)
    assert (plain.kd_matching, plain.kd_warmup_epochs) == ("mean", None)
