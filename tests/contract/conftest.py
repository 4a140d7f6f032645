"""Fixtures of the contract suite: the registry with other packages' entries, tiny data, models trained once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import support
from contract.models import Planned, Trained
from contract.registered import registered
from planners.conftest import make_dataset, nnunet_folders, plan

from nnunet_ext import lookup

__all__ = ["make_dataset", "nnunet_folders", "plan"]  # fixtures of the planners' tests


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    """What other packages register is known, and nnU-Net's look-ups find it."""
    lookup.install()
    with registered():
        yield


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> support.Workspace:
    """Tiny data sets, made when first asked for."""
    return support.Workspace(tmp_path_factory.mktemp("contract"))


@pytest.fixture(autouse=True)
def environment(workspace: support.Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """nnU-Net's folders, results in the test's own; pools of threads."""
    support.spawn_as_threads(monkeypatch.setattr)
    with workspace.environment(tmp_path / "nnUNet_results"):
        yield


@pytest.fixture(scope="session")
def planned(workspace: support.Workspace) -> Planned:
    """Plans of a registered planner for a kind of data, which is preprocessed."""
    return Planned(workspace)


@pytest.fixture(scope="session")
def trained(workspace: support.Workspace, planned: Planned) -> Trained:
    """Models trained and validated once, by trainer's name, kind of data and configuration."""
    return Trained(workspace, planned)
