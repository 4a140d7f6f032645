"""nnU-Net's folders for tests that convert."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import VARIABLES, spawn_as_threads

from nnunet_ext import dataset_conversion


@pytest.fixture
def nnunet_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder with nnUNet_raw, nnUNet_preprocessed and nnUNet_results in it; nnU-Net starts no processes."""
    for variable in VARIABLES:
        (tmp_path / variable).mkdir()
        monkeypatch.setenv(variable, str(tmp_path / variable))
    spawn_as_threads(monkeypatch.setattr)
    return tmp_path


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The toy data set can be converted; nnU-Net's own verification, which takes seconds, is left out."""
    monkeypatch.setitem(dataset_conversion.CONVERTERS, "toy", "toy_converter:Toy")
    monkeypatch.setattr("nnunet_ext.dataset_conversion.run.verify", lambda *_: None)
