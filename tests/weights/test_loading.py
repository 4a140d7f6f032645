"""Files from elsewhere are read without executing them, and refused with a sentence."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from published_sshunet import fixture_state, save_published

from nnunet_ext.errors import UserError
from nnunet_ext.weights import loading
from nnunet_ext.weights.loading import CheckpointError, read_checkpoint, shorten


class Malicious:
    """Writes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.target,)


def write(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def test_published_file(tmp_path: Path) -> None:
    state, _ = fixture_state("tsm_small")
    path = save_published(tmp_path / "0model_fold0.pt", state, 4)
    read = read_checkpoint(path)
    assert read.numbers == {"epoch": 2699, "best_acc": 0.8264}
    assert read.file_name == "0model_fold0.pt"
    assert read.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert set(state) < set(read.state)
    for key, value in state.items():
        torch.testing.assert_close(read.state[key], value, rtol=0, atol=0)


@pytest.mark.parametrize("best", [np.float64(0.5), np.float32(0.5), np.array(0.5), np.array([0.5], np.float32)])
def test_best_accuracy_as_numpy(tmp_path: Path, best: Any) -> None:
    state, _ = fixture_state("tsm_small")
    assert read_checkpoint(save_published(tmp_path / "a.pt", state, 4, best_acc=best)).numbers["best_acc"] == 0.5


def test_array_of_accuracies_is_harmless(tmp_path: Path) -> None:
    state, _ = fixture_state("tsm_small")
    read = read_checkpoint(save_published(tmp_path / "a.pt", state, 4, best_acc=np.array([0.5, 0.6])))
    assert read.numbers == {"epoch": 2699}


def test_numpy_is_not_allowed_for_everybody_afterwards(tmp_path: Path) -> None:
    path = write(tmp_path / "a.pt", {"a": torch.zeros(1), "best_acc": np.float64(0.5)})
    with pytest.raises(CheckpointError, match="no weights found"):
        read_checkpoint(path)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)


@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "module.backbone.", "_orig_mod.module."])
def test_prefixes_and_bare_state_dicts(tmp_path: Path, prefix: str) -> None:
    path = write(tmp_path / "a.pt", {f"{prefix}input_block.w": torch.ones(2, dtype=torch.float16)})
    state = read_checkpoint(path).state
    assert list(state) == ["input_block.w"]
    assert state["input_block.w"].dtype == torch.float32


def test_code_in_the_file_does_not_run(tmp_path: Path) -> None:
    trap = tmp_path / "executed"
    path = write(tmp_path / "a.pt", {"state_dict": {"w": torch.zeros(1)}, "epoch": Malicious(trap)})
    with pytest.raises(
        CheckpointError, match=r"a\.pt: the file asks for Python objects .*nothing was executed"
    ) as error:
        read_checkpoint(path)
    assert isinstance(error.value, UserError)
    assert not trap.exists()
    torch.load(path, weights_only=False)
    assert trap.exists(), "the file was dangerous indeed"


def test_pickled_network(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"asks for Python objects \(torch\.nn"):
        read_checkpoint(write(tmp_path / "a.pt", torch.nn.Conv3d(1, 1, 1)))


def test_object_arrays_cannot_smuggle_code(tmp_path: Path) -> None:
    trap = tmp_path / "executed"
    array = np.array([Malicious(trap)], dtype=object)
    with pytest.raises(CheckpointError):
        read_checkpoint(write(tmp_path / "a.pt", {"state_dict": {"w": torch.zeros(1)}, "best_acc": array}))
    assert not trap.exists()


@pytest.mark.parametrize("kind", ["truncated", "truncated to a word", "empty", "text", "folder", "missing"])
def test_damaged_files(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.pt"
    whole = write(tmp_path / "whole.pt", {"state_dict": fixture_state("tsm_small")[0]}).read_bytes()
    contents = {
        "truncated": whole[: len(whole) // 2],
        "truncated to a word": whole[:4],
        "empty": b"",
        "text": b"no weights",
    }
    if kind in contents:
        path.write_bytes(contents[kind])
    elif kind == "folder":
        path.mkdir()
    with pytest.raises(
        CheckpointError, match=r"a\.pt: (not a readable PyTorch checkpoint|there is no such file)"
    ) as error:
        read_checkpoint(path)
    assert len(str(error.value)) < 400
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"network_weights": {"w": torch.zeros(1)}, "trainer_name": "x"}, "an nnU-Net checkpoint already"),
        ({"epoch": 3}, "no weights found; .*a dict with the entries epoch"),
        ({}, "an empty dict"),
        ([torch.zeros(1)], "an object of type list"),
        ({"state_dict": {"w": 3}}, "not tensors"),
        ({"state_dict": {}}, "no weights found"),
        ({"w": torch.tensor([1.0, float("nan")])}, "NaN or infinite weights in w"),
        ({"w": torch.eye(3).to_sparse()}, "w is not a dense tensor"),
        ({"w": torch.zeros(1).expand(2**50)}, "w claims the shape .1125899906842624,., but the file holds fewer"),
        ({"w": torch.zeros(4, device="meta")}, "w claims the shape .4,."),
        ({"w": torch.zeros(1), "module.w": torch.zeros(1)}, "two entries are called w"),
    ],
)
def test_unusable_content(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(write(tmp_path / "a.pt", content))


def test_views_are_read(tmp_path: Path) -> None:
    """A transposed part of a larger storage holds all its numbers, and may be empty."""
    whole = torch.arange(12.0).reshape(3, 4)
    state = read_checkpoint(write(tmp_path / "a.pt", {"w": whole[1:].T, "empty": torch.zeros(0, 3)})).state
    assert state["w"].is_contiguous()
    assert torch.equal(state["w"], whole[1:].T)
    assert state["empty"].shape == (0, 3)


def test_lists_in_messages_are_short() -> None:
    assert shorten([f"{i:02d}" for i in range(100)], 3) == "00, 01, 02 and 97 more"
    assert shorten(["b", "a"]) == "a, b"


def test_files_of_old_torch(tmp_path: Path) -> None:
    """Before torch 1.6, checkpoints were no zip files but several pickles in a row."""
    path = tmp_path / "a.model"
    content = {"state_dict": {"w": torch.ones(2)}, "plot_stuff": ([np.float64(0.5)],)}
    torch.save(content, path, _use_new_zipfile_serialization=False)
    assert torch.equal(read_checkpoint(path).state["w"], torch.ones(2))


def test_counters_stay_integers(tmp_path: Path) -> None:
    state = read_checkpoint(write(tmp_path / "a.pt", {"n": torch.tensor(2**25 + 1), "w": torch.ones(1).double()})).state
    assert state["n"] == 2**25 + 1
    assert state["w"].dtype == torch.float32


def test_what_nnunet_v1_remembers(tmp_path: Path) -> None:
    content = {"state_dict": {"w": torch.ones(2)}, "epoch": 1000, "best_stuff": (None, None, np.float32(0.75))}
    assert read_checkpoint(write(tmp_path / "a.model", content)).numbers == {
        "epoch": 1000,
        "best_validation_criterion": 0.75,
    }


def test_old_torch_cannot_be_told_about_numpy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "_CAN_ALLOW", False)
    path = write(tmp_path / "a.model", {"state_dict": {"w": torch.ones(2)}, "best_stuff": (1, 2, np.float32(0.75))})
    with pytest.raises(CheckpointError, match=r"install torch 2\.6 or newer"):
        read_checkpoint(path)
