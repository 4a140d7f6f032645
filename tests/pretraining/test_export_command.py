from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import support
import torch
from exported import cases_of, pretrained
from nnunetv2.run.run_training import maybe_load_checkpoint

from nnunet_ext import cli
from nnunet_ext.errors import UserError
from nnunet_ext.pretraining import export_check
from nnunet_ext.pretraining.export_command import fine_tuning_name
from nnunet_ext.trainers.variants import trainer_class

Plans = Callable[[str], dict[str, Any]]


@pytest.fixture
def checkpoint(folders: support.Workspace, planned: Plans, tmp_path: Path) -> Path:
    """Pre-trained on the training images of the data set `plain`, two branches."""
    plans = planned("plain")
    dataset = plans["dataset_name"]
    path = tmp_path / "checkpoint.pth"
    cases = cases_of(folders, dataset, ("case_0", "case_2"))
    pretrained(path, plans, folders.dataset_json(dataset), branches=("student", "teacher"), cases=cases)
    return path


def test_export_and_train(
    checkpoint: Path, folders: support.Workspace, planned: Plans, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "new" / "weights.pth"
    assert cli.main(["pretrain-export", str(checkpoint), "-o", str(output)]) == 0
    told = capsys.readouterr()
    assert "source   alice, step 600 of 1000, teacher" in told.out
    lines = [line.split() for line in told.out.splitlines() if line.startswith(("encoder", "decoder", "heads"))]
    assert [line[-1] for line in lines] == ["100.0"] * 3
    assert "left random" in told.out
    assert "use      nnUNetv2_train Dataset901_plain 3d_fullres FOLD -tr UNetTrainer_FineTune" in told.out
    assert "WARNING: validation cases of Dataset901_plain, folds 0, 1, were pre-trained on" in told.err
    trainer = support.build_trainer(trainer_class("UNetTrainer_FineTune_1its_1epochs"), folders, planned("plain"))
    maybe_load_checkpoint(trainer, False, False, str(output))
    trainer.run_training()
    assert "-pretrained_weights were given" not in support.log_of(trainer)
    assert cli.main(["pretrain-export", str(checkpoint), "-o", str(output)]) == 1
    assert "exists; choose another name, or add --overwrite" in capsys.readouterr().err
    command = ["pretrain-export", str(checkpoint), "-o", str(output), "--overwrite", "--branch", "student"]
    assert cli.main([*command, "--what", "encoder"]) == 0
    told = capsys.readouterr()
    assert "student" in told.out
    assert torch.load(output, weights_only=True)["nnunet_ext"]["what"] == "encoder"


def test_a_file_stays_where_the_new_one_fails_its_check(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any) -> None:
        raise UserError("loads as another network")

    monkeypatch.setattr(export_check, "check", fail)
    output = tmp_path / "out" / "weights.pth"
    output.parent.mkdir()
    output.write_bytes(b"earlier")
    assert cli.main(["pretrain-export", str(checkpoint), "-o", str(output), "--overwrite"]) == 1
    assert "loads as another network" in capsys.readouterr().err
    assert output.read_bytes() == b"earlier"
    assert list(output.parent.iterdir()) == [output]


def test_for_another_data_set(
    checkpoint: Path, planned: Plans, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two channels; its plans are other ones, but the networks fit."""
    planned("twochannels")
    output = tmp_path / "weights.pth"
    command = ["pretrain-export", str(checkpoint), "-o", str(output)]
    assert cli.main([*command, "-d", "907", "-tr", "nnUNetTrainer"]) == 0
    told = capsys.readouterr()
    assert "encoder             adapted                    1" in told.out
    assert "use      nnUNetv2_train Dataset907_twochannels 3d_fullres FOLD -tr UNetTrainer_FineTune" in told.out
    assert told.err == ""
    content = torch.load(output, weights_only=True)
    assert content["network_weights"]["encoder.stages.0.0.convs.0.conv.weight"].shape[1] == 2
    assert content["trainer_name"] == "nnUNetTrainer"
    for options, text in (
        (["-d", "999"], "-d 999: "),
        (["-p", "OtherPlans"], "-p OtherPlans: "),
        (["-c", "3d_lowres"], "-c 3d_lowres: "),
    ):
        assert cli.main([*command, "--overwrite", *options]) == 1
        assert text in capsys.readouterr().err


def test_check(checkpoint: Path, planned: Plans, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    planned("noncubic")
    assert cli.main(["pretrain-export", str(checkpoint), "--check", "-d", "901"]) == 1
    assert capsys.readouterr().out.count("validation cases of Dataset901_plain, fold") == 2
    assert cli.main(["pretrain-export", str(checkpoint), "--check", "-d", "902"]) == 0
    assert "none of the validation cases of Dataset902_noncubic is among the 2 images" in capsys.readouterr().out
    for options, text in ((["--check"], "--check needs -d"), ([], "-o is missing")):
        assert cli.main(["pretrain-export", str(checkpoint), *options]) == 1
        assert text in capsys.readouterr().err
    other = tmp_path / "other.pth"
    torch.save({"network_weights": {}}, other)
    assert cli.main(["pretrain-export", str(other), "--check", "-d", "901"]) == 1
    assert "does not say what it was pre-trained on" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("trainer", "name"),
    [
        ("nnUNetTrainer", "UNetTrainer_FineTune"),
        ("UNetTrainer_AdamW_2epochs", "UNetTrainer_AdamW_FineTune_2epochs"),
        ("UNetTrainer_FineTune", "UNetTrainer_FineTune"),
        ("OSSNetTrainer_Published_C_KD", "OSSNetTrainer_Published_C_KD"),
        ("OSSNetTrainer_Published_C_Seed1", "OSSNetTrainer_Published_C_FineTune_Seed1"),
        ("nnUNetTrainer_5epochs", "nnUNetTrainer_5epochs"),
    ],
)
def test_names_for_fine_tuning(trainer: str, name: str) -> None:
    assert fine_tuning_name(trainer) == name
