"""What goes wrong outside the network: data that cannot be read, a missing first stage, a full disk."""

from __future__ import annotations

import errno
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import support
import torch

from nnunet_ext.trainers import checks
from nnunet_ext.trainers.base import BaseTrainer
from nnunet_ext.trainers.options import variant_attributes

Plans = Callable[[str], dict[str, Any]]
Short = type("Short", (BaseTrainer,), variant_attributes(BaseTrainer, ("1its", "1epochs")))


@pytest.fixture
def damaged(workspace: support.Workspace, planned: Plans, tmp_path: Path) -> tuple[support.Workspace, Path]:
    """A copy of the workspace to damage, and its folder of preprocessed cases."""
    plans = planned("plain")
    copy = support.Workspace(tmp_path / "damaged")
    shutil.copytree(workspace.raw / plans["dataset_name"], copy.raw / plans["dataset_name"])
    shutil.copytree(workspace.preprocessed / plans["dataset_name"], copy.preprocessed / plans["dataset_name"])
    identifier = plans["configurations"]["3d_fullres"]["data_identifier"]
    return copy, copy.preprocessed / plans["dataset_name"] / identifier


def truncate(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize(
    ("damage", "case"),
    [
        (lambda folder: truncate(folder / "case_1.b2nd"), "case_1"),
        (lambda folder: (folder / "case_2_seg.b2nd").write_bytes(b"no blosc2"), "case_2"),
        (lambda folder: (folder / "case_3.pkl").unlink(), "case_3"),
        (lambda folder: truncate(folder / "case_0.pkl"), "case_0"),
        (lambda folder: (folder / "case_2.b2nd").unlink(), "case_2: there is no such case"),
        (lambda folder: (folder / "case_1.b2nd").write_bytes(b""), "case_1"),
    ],
)
def test_bad_cases_are_named(
    damaged: tuple[support.Workspace, Path], planned: Plans, damage: Callable[[Path], Any], case: str
) -> None:
    copy, folder = damaged
    damage(folder)
    with copy.environment():
        trainer = support.build_trainer(Short, copy, planned("plain"))
        with pytest.raises(RuntimeError, match=rf"1 preprocessed case\(s\).*\n  {case}") as error:
            trainer.on_train_start()
    assert "nnUNetv2_preprocess -d Dataset901_plain -plans_name nnUNetPlans -c 3d_fullres" in str(error.value)


def test_sound_cases_pass(damaged: tuple[support.Workspace, Path], planned: Plans) -> None:
    copy, _ = damaged
    with copy.environment():
        support.build_trainer(Short, copy, planned("plain")).on_train_start()


def test_missing_preprocessed_data(damaged: tuple[support.Workspace, Path], planned: Plans) -> None:
    copy, folder = damaged
    shutil.rmtree(folder)
    with copy.environment():
        trainer = support.build_trainer(Short, copy, planned("plain"))
        with pytest.raises(RuntimeError, match=r"no preprocessed cases in .*`nnUNetv2_preprocess -d Dataset901_plain"):
            trainer.initialize()


def test_cascade_needs_its_first_stage_then_trains(workspace: support.Workspace, planned: Plans) -> None:
    plans = support.with_cascade(planned("plain"))
    workspace.preprocess(plans, "3d_lowres")
    second = support.build_trainer(Short, workspace, plans, "3d_cascade_fullres")
    with pytest.raises(RuntimeError, match="4 of 4 are missing") as error:
        second.on_train_start()
    folder = Path("Short__nnUNetPlans__3d_lowres") / "predicted_next_stage" / "3d_cascade_fullres"
    assert str(folder) in str(error.value)
    assert "nnUNetv2_train Dataset901_plain 3d_lowres FOLD -tr Short -p nnUNetPlans" in str(error.value)
    for fold in (0, 1):
        first = support.build_trainer(Short, workspace, plans, "3d_lowres", fold)
        first.run_training()
        first.perform_actual_validation()
    second.run_training()
    assert second.network.encoder.stages[0][0].convs[0].conv.in_channels == 1 + 2


# ---------------------------------------------------------------------------------------------------------- checkpoints


@pytest.fixture
def saved(workspace: support.Workspace, planned: Plans) -> tuple[Any, Path, bytes]:
    """A trainer, the checkpoint that it has written, and the file's content."""
    trainer = support.build_trainer(Short, workspace, planned("plain"))
    trainer.initialize()
    path = Path(trainer.output_folder) / "checkpoint_latest.pth"
    trainer.save_checkpoint(str(path))
    return trainer, path, path.read_bytes()


def fails_after_some_bytes(error: Exception) -> Callable[..., None]:
    def save(_: Any, path: str) -> None:
        Path(path).write_bytes(b"half of it")
        raise error

    return save


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("[enforce fail at inline_container.cc] . PytorchStreamWriter failed"),
    ],
)
def test_failed_write_keeps_the_old_checkpoint(
    saved: tuple[Any, Path, bytes], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    trainer, path, content = saved
    monkeypatch.setattr(torch, "save", fails_after_some_bytes(error))
    with pytest.raises(
        RuntimeError, match=r"Could not write .*checkpoint_latest\.pth.*MiB are free.*unchanged.*--c"
    ) as raised:
        trainer.save_checkpoint(str(path))
    assert str(error) in str(raised.value)
    assert path.read_bytes() == content
    assert sorted(p.name for p in path.parent.glob("*pth*")) == [path.name]
    assert not list(path.parent.glob(".*"))


@pytest.mark.skipif(sys.platform == "win32", reason="no resource limits on Windows")
def test_file_size_limit_of_the_system(saved: tuple[Any, Path, bytes]) -> None:
    import resource

    trainer, path, content = saved
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(content) // 2, hard))
    try:
        with pytest.raises(RuntimeError, match="Could not write"):
            trainer.save_checkpoint(str(path))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == content
    assert [p.name for p in path.parent.iterdir() if "checkpoint" in p.name] == [path.name]


def test_disabled_checkpointing_writes_nothing(workspace: support.Workspace, planned: Plans) -> None:
    trainer = support.build_trainer(Short, workspace, planned("plain"), disable_checkpointing=True)
    trainer.initialize()
    path = Path(trainer.output_folder) / "checkpoint_final.pth"
    trainer.save_checkpoint(str(path))
    assert not path.exists()


@pytest.mark.parametrize(
    ("version", "newer"), [("99.0.0", True), ("0.0.9", False), ("0.1.0", False), ("0.1.0.dev1", False)]
)
def test_plans_of_a_newer_package_are_refused(version: str, newer: bool) -> None:
    plans = {"plans_name": "P", "nnunet_ext": {"version": version}}
    if newer:
        with pytest.raises(RuntimeError, match=r"plans P were made by nnunet_ext 99.0.0, but .* is installed"):
            checks.require_package(plans)
    else:
        checks.require_package(plans)
        checks.require_package({"plans_name": "of stock nnU-Net"})
