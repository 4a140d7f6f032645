"""The loop: interruptions that leave no trace, several processes, what is written, what is refused."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pretraining_run
import pytest
import support
import torch
from pretraining_run import training, weights
from torch.multiprocessing.spawn import spawn

from nnunet_ext.errors import UserError
from nnunet_ext.pretraining import checkpoint_format
from nnunet_ext.pretraining.loop import Intervals
from nnunet_ext.pretraining.run_folder import FINAL, LATEST, RunFolder

Plans = Callable[[str], dict[str, Any]]
DROPPING = {"dropout": 0.5}


@pytest.fixture(autouse=True)
def data(folders: support.Workspace, planned: Plans) -> None:
    """The data set "plain", and nnU-Net's variables."""
    planned("plain")


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """To the bit."""
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def no_links(*_: Any) -> None:
    """As on a file system that has none."""
    raise OSError("Operation not supported")


@pytest.mark.parametrize(
    ("method", "wishes"),
    [("mae", {}), ("alice", {"alice": DROPPING}), ("alice", {"alice": DROPPING, "precision": "fp16"})],
)
def test_ten_and_ten_steps_are_twenty(method: str, wishes: dict[str, Any], tmp_path: Path) -> None:
    """With dropout, augmentation, schedules that move at every step, and a scaler that skips some steps."""
    whole = training(method, **wishes)
    assert whole.run(progress=False)
    first, folder = training(method, **wishes), RunFolder(tmp_path, tensorboard=False)
    assert not first.run(folder, stop_after=10, progress=False, intervals=Intervals(draw=0))
    second = training(method, **wishes)
    second.load(checkpoint_format.read(tmp_path / LATEST))
    assert second.step == 10
    torch.manual_seed(99)
    assert second.run(folder, progress=False, intervals=Intervals(log=5, draw=20))
    assert equal(weights(whole), weights(second))
    assert not equal(weights(whole), weights(first))
    if whole.optimisation.scaler is not None:
        assert whole.optimisation.scaler.get_scale() < 2**16  # there were such steps
    final = checkpoint_format.read(tmp_path / FINAL)
    assert not (tmp_path / LATEST).exists()
    assert (final["method"], final["step"], final["total_steps"]) == (method, 20, 20)
    assert set(final["networks"]) == ({"student"} if method == "mae" else {"student", "teacher"})
    assert [case["name"] for case in final["cases"]] == list(support.CASES)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 10, 15, 20]
    assert (tmp_path / "pictures" / "step_0000020.png").stat().st_size > 1000


def test_every_step_draws_its_own_dropout() -> None:
    """Seeds that did not change from step to step would drop the same features throughout, and still resume exactly."""
    trained, seeds = training(steps=4), list[int]()
    real = trained.objective.losses

    def noted(*arguments: Any) -> dict[str, torch.Tensor]:
        seeds.append(torch.initial_seed())
        return real(*arguments)

    trained.objective.losses = noted  # type: ignore[method-assign, assignment]
    trained.run(progress=False)
    assert len(set(seeds)) == 4


def test_two_processes_are_one_with_the_double_batch(tmp_path: Path) -> None:
    """Data, gradients, and for Alice the centres. Networks with batch norm are another matter: docs/alice.md."""
    common = {"batch_size": 4, "optimiser": "sgd", "learning_rate": 1e-2, "seed": 3}
    wishes: dict[str, dict[str, Any]] = {"mae": common, "alice": {**common, "alice": {"dropout": 0.0}}}
    variables = {name: os.environ[name] for name in support.VARIABLES}
    spawn(pretraining_run.two_processes, (str(tmp_path), variables, wishes), nprocs=2)
    for method, given in wishes.items():
        one = training(method, **given)
        begun = weights(one)
        one.run(stop_after=3, progress=False)
        alone, both = weights(one), torch.load(tmp_path / f"{method}.pth", weights_only=True)
        assert both.keys() == alone.keys()
        for name, value in both.items():
            torch.testing.assert_close(value, alone[name], rtol=1e-4, atol=1e-6, msg=f"{method}: {name}")
        assert any(not torch.allclose(begun[name], alone[name], atol=1e-4) for name in begun)


def test_the_reconstruction_is_learned() -> None:
    """On images whose hidden parts follow from the visible ones the error falls by half."""
    trained = training(steps=80, optimiser="adamw", learning_rate=5e-3, mask_ratio=0.5)
    cases = trained.samples.cases
    trained.samples.cases = [pretraining_run.SmoothCase(**vars(case)) for case in cases]
    losses = []
    real = trained.objective.losses

    def noted(*arguments: Any) -> dict[str, torch.Tensor]:
        values = real(*arguments)
        losses.append(float(values["reconstruction"]))
        return values

    trained.objective.losses = noted  # type: ignore[method-assign, assignment]
    trained.run(progress=False)
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])


def test_a_signal_saves_and_stops(tmp_path: Path) -> None:
    trained = training()
    real = trained.objective.after_step

    def interrupted(step: int) -> None:
        real(step)
        if step == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    trained.objective.after_step = interrupted  # type: ignore[method-assign]
    before = signal.getsignal(signal.SIGTERM)
    assert not trained.run(RunFolder(tmp_path, tensorboard=False), progress=False)
    assert signal.getsignal(signal.SIGTERM) is before
    assert checkpoint_format.read(tmp_path / LATEST)["step"] == 5


def test_workers_make_the_same_samples_and_outlive_signals(tmp_path: Path) -> None:
    """Ctrl-C, torchrun and Slurm signal the whole group, workers too; a second signal comes while it is saved."""
    whole, trained = training(), training()
    whole.run(stop_after=5, progress=False)
    real, save = trained.objective.after_step, RunFolder.save

    def interrupted(step: int) -> None:
        real(step)
        for process in multiprocessing.active_children():
            for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
                os.kill(process.pid or 0, number)
        if step == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    class Disturbed(RunFolder):
        def save(self, *arguments: Any, **options: Any) -> Path:
            os.kill(os.getpid(), signal.SIGTERM)
            return save(self, *arguments, **options)

    trained.objective.after_step = interrupted  # type: ignore[method-assign]
    assert not trained.run(Disturbed(tmp_path, tensorboard=False), workers=1, progress=False)
    assert checkpoint_format.read(tmp_path / LATEST)["step"] == 5
    assert equal(weights(whole), weights(trained))


def test_the_log_forgets_what_will_be_done_again(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, tensorboard=False)
    for step in (5, 10, 15):
        folder.log(step, {"loss": 1.0})
    folder.log(7, {"gradient_norm": float("inf")})
    (tmp_path / "log.jsonl").open("a").write('{"step": 2')
    folder.forget_after(10)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [5, 10, 7]
    assert lines[2]["gradient_norm"] is None  # "Infinity" is no JSON


def test_tensorboard_gets_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it is installed or not; points that a resumed training makes again are hidden."""
    told: list[tuple[Any, ...]] = []

    class Writer:
        def __init__(self, folder: str, purge_step: int | None = None) -> None:
            told.append((folder, purge_step))

        def add_scalar(self, name: str, value: float, step: int) -> None:
            told.append((name, value, step))

        def close(self) -> None:
            told.append(("closed",))

    fake = ModuleType("torch.utils.tensorboard")
    fake.__dict__["SummaryWriter"] = Writer
    monkeypatch.setitem(sys.modules, fake.__name__, fake)
    folder, events = RunFolder(tmp_path), str(tmp_path / "tensorboard")
    folder.forget_after(10)
    folder.log(11, {"loss": 1.0})
    folder.close()
    assert told == [(events, None), ("closed",), (events, 11), ("loss", 1.0, 11), ("closed",)]
    monkeypatch.setitem(sys.modules, fake.__name__, None)
    assert RunFolder(tmp_path).tensorboard is None


def test_kept_checkpoints(tmp_path: Path) -> None:
    """Whatever `save` is, and on file systems without links."""
    for links in (True, False):
        folder = tmp_path / str(links)
        with pytest.MonkeyPatch.context() as patch:
            if not links:
                patch.setattr(os, "link", no_links)
            training(steps=5).run(RunFolder(folder, False), progress=False, intervals=Intervals(0, 3, keep=2, draw=0))
        kept = [f"checkpoint_{step:07d}.pth" for step in (2, 4)]
        assert sorted(path.name for path in folder.glob("*.pth")) == [*kept, FINAL]
        assert [checkpoint_format.read(folder / name)["step"] for name in kept] == [2, 4]


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        ({"learning_rate": 0.0}, "--learning-rate must be above 0; got 0.0"),
        ({"learning_rate": float("nan")}, "--learning-rate must be above 0"),
        ({"visible_weight": -1.0}, "--visible-weight must be 0 or more; got -1.0"),
        ({"seed": -1}, "--seed must be 0 or more; got -1"),
        ({"patch": (4, 8, 8)}, r"cannot be pre-trained on patches of \(4, 8, 8\): .*choose another --patch"),
        ({"patch": (0, 16, 16)}, r"cannot be pre-trained on patches of \(0, 16, 16\)"),
        ({"patch": (-16, 16, 16)}, r"cannot be pre-trained on patches of \(-16, 16, 16\)"),
    ],
)
def test_numbers_that_cannot_work(wishes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        training(**wishes)


def test_other_settings_are_refused(tmp_path: Path) -> None:
    training().run(RunFolder(tmp_path, tensorboard=False), stop_after=1, progress=False)
    with pytest.raises(UserError, match=r"other settings: mask_ratio 0.75, now 0.6"):
        training(mask_ratio=0.6).load(checkpoint_format.read(tmp_path / LATEST))


def test_a_loss_that_is_not_finite(tmp_path: Path) -> None:
    trained = training()
    with torch.no_grad():
        next(trained.objective.student.parameters()).fill_(float("nan"))
    with pytest.raises(UserError, match="the loss of step 0 is nan: the training has diverged"):
        trained.run(progress=False)


def test_gradients_that_never_fit_half_precision() -> None:
    trained = training(learning_rate=0.1)
    trained.optimisation.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    parameter = trained.optimisation.parameters[0]
    steps = [trained.optimisation.step(parameter.sum() * torch.inf, number)[0] for number in range(30)]
    assert not any(steps)
    with pytest.raises(UserError, match=r"step 30, and those before it, .*--amp bf16 .*\(now 0.1\)"):
        trained.optimisation.step(parameter.sum() * torch.inf, 30)


def test_batches_that_processes_cannot_share() -> None:
    from nnunet_ext.pretraining.distributed import Processes

    with pytest.raises(UserError, match="batch of 2 cannot be divided among 3 processes: choose --batch-size 3"):
        training(processes=Processes(0, 3, torch.device("cpu")))


@pytest.mark.parametrize("method", ["mae", "alice"])
def test_mixed_precision_and_checkpointing(method: str) -> None:
    plain, cheap = training(method), training(method, checkpointing=True, precision="bf16")
    for trained in (plain, cheap):
        trained.run(stop_after=2, progress=False)
    for one, other in zip(weights(plain).values(), weights(cheap).values(), strict=True):
        assert torch.isfinite(other).all()
        torch.testing.assert_close(one.float(), other.float(), rtol=0.2, atol=0.1)
