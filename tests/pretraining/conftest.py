"""Fixtures of the pre-training's tests: nnU-Net's folders with tiny data in them, made once a session."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import support


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> support.Workspace:
    """Tiny data sets, made when first asked for."""
    return support.Workspace(tmp_path_factory.mktemp("pretraining"))


@pytest.fixture(scope="session")
def planned(workspace: support.Workspace) -> Callable[[str], dict[str, Any]]:
    """Plans (nnU-Net's own, thin) of a kind of data, preprocessed for 3d_fullres."""
    made: dict[str, dict[str, Any]] = {}

    def plans_of(kind: str) -> dict[str, Any]:
        if kind not in made:
            made[kind] = workspace.plan(kind)
            with workspace.environment():
                workspace.preprocess(made[kind])
        return made[kind]

    return plans_of


@pytest.fixture
def folders(workspace: support.Workspace, tmp_path: Path) -> Iterator[support.Workspace]:
    """The workspace, with nnU-Net's variables set; results in the test's own folder."""
    with workspace.environment(tmp_path / "nnUNet_results"):
        yield workspace
