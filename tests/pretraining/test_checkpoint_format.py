from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nnunet_ext.errors import UserError
from nnunet_ext.pretraining import checkpoint_format


def content(**changes: Any) -> dict[str, Any]:
    shared = torch.arange(4.0)
    made = {
        "method": "mae",
        "step": 3,
        "total_steps": 10,
        "networks": {"student": OrderedDict(a=shared, b=shared)},
        "plans": {"plans_name": "nnUNetPlans"},
        "configuration": "3d_fullres",
        "dataset_json": {"labels": {"background": 0}},
        "trainer": "nnUNetTrainer",
        "input_channels": 1,
        "patch_size": [np.int64(8), 8, 8],
        "cases": [{"name": "a", "source": "Dataset1_A", "raw": [Path("a_0000.nii.gz")], "sha256": ["00"]}],
        "provenance": {"seed": 1},
        "resume": {"rng": (3, (1, 2**70), None), "optimizer": {0: {"step": torch.tensor(1.0)}}},
    }
    return {**made, **changes}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "new" / "checkpoint.pth"
    checkpoint_format.write(path, content())
    torch.load(path, weights_only=True)
    read = checkpoint_format.read(path)
    assert read["format"] == "nnunet_ext pre-training"
    assert read["format_version"] == 1
    assert read["patch_size"] == [8, 8, 8]
    assert read["resume"]["rng"] == (3, (1, 2**70), None)
    assert read["cases"][0]["raw"] == ["a_0000.nii.gz"]
    student = read["networks"]["student"]
    assert torch.equal(student["a"], torch.arange(4.0))
    assert student["a"].data_ptr() == student["b"].data_ptr()
    checkpoint_format.write(path, read)  # what was read can be written


def test_what_cannot_be_written(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pth"
    checkpoint_format.write(path, content())
    before = path.read_bytes()
    with pytest.raises(TypeError, match=r"content\['resume'\]\['rng'\] is of type ndarray"):
        checkpoint_format.write(path, content(resume={"rng": np.zeros(3)}))
    with pytest.raises(TypeError, match=r"step \(steps done\) is of type str, not int"):
        checkpoint_format.write(path, content(step="3"))
    with pytest.raises(TypeError, match="unknown other"):
        checkpoint_format.write(path, content(other=1))
    with pytest.raises(TypeError, match=r"cases\[0\] is not a dict of name"):
        checkpoint_format.write(path, content(cases=[{"name": "a"}]))
    with pytest.raises(TypeError, match="no student"):
        checkpoint_format.write(path, content(networks={}))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        checkpoint_format.write(tmp_path / "file" / "checkpoint.pth", content())
    assert path.read_bytes() == before
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["checkpoint.pth", "file"]


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pth"
    with pytest.raises(UserError, match="no such file"):
        checkpoint_format.read(path)
    path.write_bytes(b"nothing")
    with pytest.raises(UserError, match="not a readable PyTorch checkpoint"):
        checkpoint_format.read(path)
    torch.save({"network_weights": {}}, path)
    with pytest.raises(UserError, match="not a checkpoint of pre-training but a dict with the entries network_weights"):
        checkpoint_format.read(path)
    good = {**content(patch_size=[8]), "format": "nnunet_ext pre-training", "format_version": 2}
    good["cases"] = []
    torch.save(good, path)
    with pytest.raises(UserError, match="format version 2"):
        checkpoint_format.read(path)
    torch.save({**good, "format_version": 1, "step": None}, path)
    with pytest.raises(UserError, match="changed or is incomplete: step"):
        checkpoint_format.read(path)
