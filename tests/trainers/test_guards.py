"""The checks inside training: what a network may return, and where a loss that is not finite comes from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import support
import torch
from torch import Tensor, nn

from nnunet_ext.trainers.base import SKIPPED_STEPS, BaseTrainer
from nnunet_ext.trainers.guards import ContractError, LossGuard, NonFiniteLossError, check_outputs

Plans = Callable[[str], dict[str, Any]]
SIZES = ((8, 8, 8), (4, 4, 4))


def tensors(channels: int, sizes: tuple[tuple[int, ...], ...] = SIZES) -> list[Tensor]:
    return [torch.zeros(2, channels, *size) for size in sizes]


@pytest.mark.parametrize(
    ("output", "target", "words"),
    [
        (tensors(3), tensors(1)[:1], r"2 output\(s\)"),
        (tensors(3)[::-1], tensors(1), "highest resolution first"),
        (tensors(3), tensors(1)[0], "a list of 2 where one tensor"),
        (tensors(3)[0], tensors(1), r"one Tensor where a list of 2 tensors \(deep supervision is on\)"),
        (tensors(4), tensors(1), r"returns \[4, 4\] channels.* 3 segmentation heads"),
        (torch.zeros(1, 3, 8, 8, 8), torch.zeros(2, 1, 8, 8, 8), r"\(1, 8, 8, 8\)"),
    ],
)
def test_outputs_that_do_not_fit(output: Any, target: Any, words: str) -> None:
    with pytest.raises(ContractError, match=words):
        check_outputs(output, target, 3, "Net")


def test_outputs_that_fit() -> None:
    check_outputs(tensors(3), tensors(1), 3, "Net")
    check_outputs(tensors(3)[0], tensors(1)[0], 3, "Net")


def test_guard_behaves_as_the_loss_and_checks_once() -> None:
    seen: list[int] = []
    loss = nn.MSELoss()
    guard = LossGuard(loss, lambda *_: seen.append(1), every_step=True)
    values = torch.ones(2, requires_grad=True)
    with torch.no_grad():
        guard(values, values)
    assert seen == []
    for _ in range(2):
        assert guard(values, values) == 0
    assert seen == [1]
    assert guard.reduction == loss.reduction
    assert "MSELoss" in repr(guard)
    with pytest.raises(AttributeError):
        _ = guard.nonsense


class WrongNumber(BaseTrainer):
    """Its deep supervision scales do not agree with its network."""

    def _get_deep_supervision_scales(self) -> Any:
        return super()._get_deep_supervision_scales()[:-1]


def test_first_batch_of_a_training_is_checked(workspace: support.Workspace, planned: Plans) -> None:
    trainer = support.build_trainer(WrongNumber, workspace, planned("plain"), num_epochs=1, num_iterations_per_epoch=1)
    with pytest.raises(ContractError, match=r"PlainConvUNet returns 3 output\(s\).* targets are 2"):
        trainer.run_training()


@pytest.fixture
def ready(workspace: support.Workspace, planned: Plans) -> tuple[Any, dict[str, Any]]:
    """A trainer after one good step, and its batch."""
    trainer = support.build_trainer(BaseTrainer, workspace, planned("plain"))
    trainer.initialize()
    batch = next(trainer.get_dataloaders()[0])
    forwards: list[int] = []
    handle = trainer.network.register_forward_hook(lambda *_: forwards.append(1))
    trainer.train_step(batch)
    handle.remove()
    assert len(forwards) == 1, "the check of the first batch needs no forward pass of its own"
    return trainer, batch


def break_module(trainer: Any, name: str) -> None:
    """From now on a module's output has a NaN."""
    module = trainer.network.get_submodule(name)
    forward = module.forward

    def broken(x: Tensor) -> Tensor:
        y: Tensor = forward(x).clone()
        y.view(-1)[0] = float("nan")
        return y

    module.forward = broken


def test_module_of_the_first_nan_is_named(ready: tuple[Any, dict[str, Any]]) -> None:
    trainer, batch = ready
    before = {key: value.clone() for key, value in trainer.network.state_dict().items()}
    break_module(trainer, "encoder.stages.1.0.convs.0.conv")
    with pytest.raises(NonFiniteLossError, match=r"loss is nan.*encoder\.stages\.1\.0\.convs\.0\.conv \(Conv3d\)"):
        trainer.train_step(batch)
    assert all(torch.equal(before[key], value) for key, value in trainer.network.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in trainer.network.modules())


def test_nan_between_modules_is_placed(ready: tuple[Any, dict[str, Any]]) -> None:
    trainer, batch = ready
    decoder = trainer.network.decoder
    forward = decoder.forward
    decoder.forward = lambda skips: forward([skip / 0 for skip in skips])
    with pytest.raises(NonFiniteLossError, match=r"in the code that calls decoder\.\w+"):
        trainer.train_step(batch)


def test_case_with_bad_data_is_named(ready: tuple[Any, dict[str, Any]]) -> None:
    trainer, batch = ready
    batch["data"][1, 0, 0, 0, 0] = float("inf")
    with pytest.raises(NonFiniteLossError, match=rf"input data itself is not finite \({batch['keys'][1]}\)"):
        trainer.train_step(batch)


def test_broken_weights_are_named(ready: tuple[Any, dict[str, Any]]) -> None:
    trainer, batch = ready
    with torch.no_grad():
        trainer.network.decoder.seg_layers[2].bias.fill_(float("nan"))
    with pytest.raises(
        NonFiniteLossError, match=r"weights are already not finite, first in decoder\.seg_layers\.2\.bias"
    ):
        trainer.train_step(batch)


def test_bad_loss_is_named(ready: tuple[Any, dict[str, Any]]) -> None:
    trainer, batch = ready
    trainer.loss.wrapped.loss.weight_ce = float("nan")
    with pytest.raises(NonFiniteLossError, match="arises in the loss"):
        trainer.train_step(batch)


def test_with_a_scaler_single_bad_steps_are_skipped(ready: tuple[Any, dict[str, Any]]) -> None:
    trainer, batch = ready
    trainer.grad_scaler = torch.amp.GradScaler("cpu")
    trainer.loss.every_step = False
    good = trainer.loss.wrapped.loss.weight_ce
    trainer.loss.wrapped.loss.weight_ce = float("nan")
    trainer.train_step(batch)
    assert "gradient scaler skips this step" in support.log_of(trainer)
    assert all(torch.isfinite(value).all() for value in trainer.network.state_dict().values())
    trainer.loss.wrapped.loss.weight_ce = good
    trainer.train_step(batch)
    assert trainer.skipped_steps == 0
    trainer.loss.wrapped.loss.weight_ce = float("nan")
    for _ in range(SKIPPED_STEPS - 1):
        trainer.train_step(batch)
    with pytest.raises(NonFiniteLossError, match="arises in the loss"):
        trainer.train_step(batch)
