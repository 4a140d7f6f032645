"""Published checkpoints of Alice through `pretrain-export`; their layouts are in tests/weights."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import support
import torch
from torch import Tensor, nn

from nnunet_ext import cli, lookup
from nnunet_ext.architectures.nnformer_plans import ALICE_PATCH, nnformer_architecture, nnformer_strides
from nnunet_ext.weights.nnformer import key_map
from nnunet_ext.weights.transfer import build_network

Plans = Callable[[str], dict[str, Any]]


def backbone(seed: int) -> dict[str, Tensor]:
    """A small nnFormer's random weights under the published names, as of a file."""
    block = nnformer_architecture(ALICE_PATCH, nnformer_strides(ALICE_PATCH), base_width=8, relative_index="legacy")
    network = build_network(block, 1, 1, seed)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    state = network.state_dict()
    return {theirs: state[ours] for theirs, ours in key_map(network).items()}


@pytest.fixture(scope="module")
def narrow(workspace: support.Workspace) -> str:
    """The plans of `plain` for nnFormers of eight features; returns their name."""
    planner: Any = lookup.find("planner", "NNFormerPlanner_W8")
    plans = workspace.plan("plain", planner, thin=False)
    arguments = plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    for key in ("n_blocks_per_stage", "n_blocks_per_stage_decoder"):  # as published; the workspace shortens networks
        arguments[key] = [2] * len(arguments[key])
    workspace.write_plans(plans)
    return str(plans["plans_name"])


@pytest.mark.usefixtures("folders")
def test_a_branch_of_a_raw_checkpoint(narrow: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    student, teacher = backbone(1), backbone(2)
    path, output = tmp_path / "checkpoint.pth", tmp_path / "weights.pth"
    content = {
        "student": {f"module.backbone.{key}": value for key, value in student.items()},
        "teacher": {f"backbone.{key}": value for key, value in teacher.items()},
        "args": argparse.Namespace(lr=1e-4),
        "epoch": 7,
    }
    torch.save(content, path)
    command = ["pretrain-export", str(path), "-o", str(output), "--overwrite"]
    for options, expected in (([], teacher), (["--branch", "student"], student)):
        assert cli.main([*command, "-d", "901", "-p", narrow, *options]) == 0
        told = capsys.readouterr()
        exported = torch.load(output, weights_only=True)
        found = exported["network_weights"]["encoder.stages.0.blocks.0.attn.qkv.weight"]
        assert torch.equal(found, expected["model_down.layers.0.blocks.0.attn.qkv.weight"])
        assert "note     Position bias tables were rewritten for the corrected index" in told.out
        assert exported["nnunet_ext"]["provenance"]["epoch"] == 7
    assert "source   published, training layout, student" in told.out
    assert f"-tr NNFormerTrainer_FineTune \\\n           -p {narrow}" in told.out
    for options, text in (
        ([], "-d is missing"),
        (["-d", "901", "-p", narrow, "-tr", "SSHUNetTrainer"], "export for -tr NNFormerTrainer"),
    ):
        assert cli.main([*command, *options]) == 1
        assert text in capsys.readouterr().err
    del content["student"]
    torch.save(content, path)
    assert cli.main([*command, "-d", "901", "-p", narrow, "--branch", "student"]) == 1
    assert "there is no student" in capsys.readouterr().err
    del content["teacher"]
    torch.save({**content, "student": {f"module.backbone.{key}": value for key, value in student.items()}}, path)
    assert cli.main([*command, "-d", "901", "-p", narrow]) == 1
    assert "there is no teacher in it, only student; choose by --network (pretrain-export: --branch)" in (
        capsys.readouterr().err
    )


def test_other_files_are_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "some.pth"
    torch.save({"state_dict": {"a": torch.zeros(1)}}, path)
    assert cli.main(["pretrain-export", str(path), "-o", str(tmp_path / "weights.pth")]) == 1
    assert "not a checkpoint of pre-training but a dict with the entries state_dict" in capsys.readouterr().err
