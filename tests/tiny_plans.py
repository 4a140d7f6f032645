"""Fixtures that several folders of tests share: a workspace of tiny data, and nnU-Net's own plans in it.

A conftest.py imports those that its tests need.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import support


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> support.Workspace:
    """Tiny data sets, made when first asked for."""
    return support.Workspace(tmp_path_factory.mktemp("workspace"))


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
