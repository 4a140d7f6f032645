"""Fixtures of the pre-training's tests: nnU-Net's folders with tiny data in them, made once a session."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import support
from tiny_plans import planned, workspace

__all__ = ["planned", "workspace"]


@pytest.fixture
def folders(workspace: support.Workspace, tmp_path: Path) -> Iterator[support.Workspace]:
    """The workspace, with nnU-Net's variables set; results in the test's own folder."""
    with workspace.environment(tmp_path / "nnUNet_results"):
        yield workspace
