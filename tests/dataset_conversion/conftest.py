"""nnU-Net's folders for tests that convert."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import VARIABLES, spawn_as_threads


@pytest.fixture
def nnunet_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder with nnUNet_raw, nnUNet_preprocessed and nnUNet_results in it; nnU-Net starts no processes."""
    for variable in VARIABLES:
        (tmp_path / variable).mkdir()
        monkeypatch.setenv(variable, str(tmp_path / variable))
    spawn_as_threads(monkeypatch.setattr)
    return tmp_path
