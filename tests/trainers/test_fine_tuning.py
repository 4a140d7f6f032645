"""The suffix `_FineTune`: rates, warm-up, the encoder apart, resuming, and what the log says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import support
import torch
from nnunetv2.run.run_training import maybe_load_checkpoint
from resuming import KeyedBatches, assert_same_state, interrupted

from nnunet_ext.trainers.base import BaseTrainer
from nnunet_ext.trainers.fine_tuning import FineTuneMixin
from nnunet_ext.trainers.kd import KDMixin
from nnunet_ext.trainers.options import variant_attributes
from nnunet_ext.trainers.unet import UNetTrainer
from nnunet_ext.trainers.variants import trainer_class

Plans = Callable[[str], dict[str, Any]]


class KeyedTrainer(KeyedBatches, UNetTrainer):
    """Trains on keyed batches."""


def tuned(*suffixes: str, **attributes: Any) -> Any:
    """A fine-tuning trainer on keyed batches."""
    return type(
        "Tuned_FineTune", (FineTuneMixin, KeyedTrainer), {**variant_attributes(BaseTrainer, suffixes), **attributes}
    )


def rates(trainer: Any) -> list[list[float]]:
    """Learning rates of the groups in every training step of the whole training."""
    seen: list[list[float]] = []
    optimise = trainer.optimise

    def note(batch: dict[str, Any]) -> Any:
        seen.append([group["lr"] for group in trainer.optimizer.param_groups])
        return optimise(batch)

    trainer.optimise = note
    trainer.run_training()
    return seen


def test_every_trainer_has_the_suffix() -> None:
    made: Any = trainer_class("SSHUNetTrainer_GSM_KD_AdamW_FineTune_2epochs")
    assert made.__mro__[1:3] == (FineTuneMixin, KDMixin)
    assert made.network_options == {"gate": "gsm"}
    assert made.optimizer_name == "adamw"


def test_a_tenth_after_a_warm_up(workspace: support.Workspace, planned: Plans) -> None:
    trainer = support.build_trainer(tuned("2its", "40epochs"), workspace, planned("plain"), disable_checkpointing=True)
    trainer.initialize()
    assert trainer.warmup_iterations == 4
    assert "learning rate 0.001 (0.1 of 0.01 from scratch), rising over the first 4 iter" in support.log_of(trainer)
    scheduled = [1e-3 * (1 - epoch / 40) ** 0.9 for epoch in range(40)]
    found = []
    for epoch in range(4):
        trainer.current_epoch = epoch
        trainer.on_train_epoch_start()
        for _ in range(2):
            trainer._warm_up()
            found.append(trainer.optimizer.param_groups[0]["lr"])
    expected = [scheduled[i // 2] * min(1, (i + 1) / 5) for i in range(8)]
    assert found == pytest.approx(expected)


def test_adamw_and_its_own_warm_up(workspace: support.Workspace, planned: Plans) -> None:
    trainer = support.build_trainer(tuned("AdamW", "2its", "3epochs"), workspace, planned("plain"))
    trainer.initialize()
    assert trainer.warmup_iterations == 40
    assert trainer.initial_lr == pytest.approx(3e-4)


def test_the_encoder_apart(workspace: support.Workspace, planned: Plans) -> None:
    made = tuned("Seed1", "2its", "3epochs", encoder_rate_factor=0.3, freeze_epochs=2)
    trainer = support.build_trainer(made, workspace, planned("plain"), disable_checkpointing=True)
    trainer.initialize()
    encoder, groups = trainer.network.encoder, trainer.optimizer.param_groups
    assert {id(p) for p in groups[1]["params"]} == {id(p) for p in encoder.parameters()}
    assert sum(len(group["params"]) for group in groups) == len(list(trainer.network.parameters()))
    before = {name: value.clone() for name, value in trainer.network.state_dict().items()}
    states: list[tuple[bool, bool, bool]] = []
    end = trainer.on_train_epoch_end

    def look(outputs: Any) -> None:
        still = [torch.equal(value, before[name]) for name, value in trainer.network.state_dict().items()]
        names = ["encoder." in name for name in before]
        in_encoder = all(s for s, inside in zip(still, names, strict=True) if inside)
        outside = any(s for s, inside in zip(still, names, strict=True) if not inside)
        states.append((encoder.training, in_encoder, outside))
        end(outputs)

    trainer.on_train_epoch_end = look
    found = rates(trainer)
    assert [state[:2] for state in states] == [(False, True), (False, True), (True, False)]
    for other, inside in found:
        assert inside == pytest.approx(0.3 * other)
    assert "encoder at 0.3 times that, encoder frozen for 2 epochs" in support.log_of(trainer)


@pytest.mark.usefixtures("one_process")
def test_freezing_with_ddp(workspace: support.Workspace, planned: Plans) -> None:
    """The process group waits for every gradient, frozen or not."""
    made = tuned("Seed1", "2its", "2epochs", encoder_rate_factor=0.3, freeze_epochs=1)
    trainer = support.build_trainer(made, workspace, planned("plain"), disable_checkpointing=True)
    trainer.device = torch.device("cpu")
    trainer.initialize()
    assert trainer.network is not trainer.bare_network()
    first = trainer.bare_network().encoder.stages[0][0].convs[0].conv.weight
    before, seen = first.detach().clone(), []
    end = trainer.on_train_epoch_end

    def look(outputs: Any) -> None:
        seen.append(torch.equal(first, before))
        end(outputs)

    trainer.on_train_epoch_end = look
    trainer.run_training()
    assert seen == [True, False]


def test_what_is_impossible_is_refused(workspace: support.Workspace, planned: Plans) -> None:
    plans = planned("plain")
    for attributes, text in (
        ({"encoder_rate_factor": 0.0}, "encoder_rate_factor must be above 0"),
        ({"freeze_epochs": -1}, "freeze_epochs not below 0"),
    ):
        with pytest.raises(ValueError, match=text):
            support.build_trainer(tuned(**attributes), workspace, plans).initialize()
    trainer = support.build_trainer(tuned(freeze_epochs=1), workspace, plans)
    trainer.network = torch.nn.Conv3d(1, 1, 1)
    with pytest.raises(ValueError, match="Conv3d has no part called encoder"):
        trainer._encoder()


@pytest.mark.parametrize("attributes", [{}, {"encoder_rate_factor": 0.3, "freeze_epochs": 1}])
def test_resumed_equals_uninterrupted(
    workspace: support.Workspace, planned: Plans, tmp_path: Path, attributes: dict[str, Any]
) -> None:
    made = tuned("Seed1", "10its", "3epochs", **attributes)
    with workspace.environment(tmp_path / "whole"):
        whole = support.build_trainer(made, workspace, planned("plain"))
        whole.run_training()
    with workspace.environment(tmp_path / "parts"):
        parts = interrupted(workspace, planned("plain"), made)
    for key in ("train_losses", "val_losses", "lrs"):
        assert parts.logger.get_value(key, step=None) == whole.logger.get_value(key, step=None)
    assert_same_state(whole, parts)
    logs = [log.read_text() for log in Path(parts.output_folder).glob("training_log*")]
    assert "".join(logs).count("no -pretrained_weights were given") == 1  # not again when it was resumed


def test_given_weights_are_noted(workspace: support.Workspace, planned: Plans, tmp_path: Path) -> None:
    plans = planned("plain")
    first = support.build_trainer(tuned("1its", "1epochs"), workspace, plans)
    first.initialize()
    first.save_checkpoint(str(tmp_path / "weights.pth"))
    again = support.build_trainer(tuned("1its", "1epochs"), workspace, plans, disable_checkpointing=True)
    maybe_load_checkpoint(again, False, False, str(tmp_path / "weights.pth"))
    again.run_training()
    assert "-pretrained_weights" not in support.log_of(again)


def test_without_the_suffix_training_is_nnunets(workspace: support.Workspace, planned: Plans, tmp_path: Path) -> None:
    """`UNetTrainer` takes the very steps of nnU-Net's trainer."""
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    states = []
    plans = {**planned("plain"), "continue_training": False}
    for base in (UNetTrainer, nnUNetTrainer):
        made = type(f"Keyed{base.__name__}", (KeyedBatches, base), {})
        short: dict[str, Any] = {"num_epochs": 2, "num_iterations_per_epoch": 2, "num_val_iterations_per_epoch": 1}
        with workspace.environment(tmp_path / base.__name__):
            trainer = support.build_trainer(made, workspace, plans, disable_checkpointing=True, **short)
            torch.manual_seed(0)
            trainer.initialize()
            trainer.run_training()
        states.append(trainer)
    assert_same_state(*states)
