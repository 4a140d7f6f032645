"""Fixtures of the trainers' tests: a workspace of tiny data for the session, results of each test apart."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import support
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from tiny_plans import planned, workspace
from torch.nn.parallel import DistributedDataParallel

__all__ = ["planned", "workspace"]


@pytest.fixture(autouse=True)
def environment(workspace: support.Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """nnU-Net's folders; results in the test's own folder; pools of threads."""
    support.spawn_as_threads(monkeypatch.setattr)
    with workspace.environment(tmp_path / "nnUNet_results"):
        yield


@pytest.fixture
def one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process group of one on the CPU; nnU-Net's DDP takes the CPU."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    monkeypatch.setattr(
        sys.modules[nnUNetTrainer.__module__], "DDP", lambda network, device_ids: DistributedDataParallel(network)
    )
    yield
    torch.distributed.destroy_process_group()
