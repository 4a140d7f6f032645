"""A device that is not there is refused before models and images are read, whichever verb names it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nnunet_ext.cli import main
from nnunet_ext.errors import UserError
from nnunet_ext.inference.device import chosen_device
from nnunet_ext.inference.mesh_model import load_model

NONE = "-device cuda: PyTorch finds no such device here; there is: cpu"


@pytest.fixture(autouse=True)
def only_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for backend in (torch.cuda, torch.backends.mps):
        monkeypatch.setattr(backend, "is_available", lambda: False)


def test_the_default_is_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    assert chosen_device(None) == chosen_device("cpu") == torch.device("cpu")
    with pytest.raises(UserError, match="-device mps: PyTorch finds"):
        chosen_device("mps")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert chosen_device(None) == chosen_device("cuda") == torch.device("cuda")


@pytest.mark.parametrize("verb", ["predict-volume", "redundancy"])
def test_verbs_ask_first(verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [str(tmp_path / "model"), "-i", str(tmp_path), "-o", str(tmp_path / "out")]
    assert main([verb, *paths, "-device", "cuda"]) == 1
    assert capsys.readouterr().err.startswith(f"nnunet-ext: {NONE}")


def test_mesh_asks_first_and_has_no_mps(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=NONE):
        load_model(tmp_path, [], None, "checkpoint_final.pth", "cuda")
    with pytest.raises(SystemExit):
        main(["mesh", str(tmp_path), "-o", str(tmp_path / "out"), "-device", "mps"])
