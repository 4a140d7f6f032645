"""The folder around a model, and its entry script with a stand-in for nnU-Net's command."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from nnunet_ext.errors import UserError
from nnunet_ext.submission import write_container

STAND_IN = """#!/bin/sh
echo "$@" >> "$CALLS"
while [ $# -gt 0 ]; do
    case "$1" in -i) in="$2";; -o) out="$2";; esac
    shift
done
ls "$in" >> "$CALLS"
echo '{}' > "$out/plans.json"
for image in "$in"/*_0000.nii.gz; do
    name=${image##*/}
    case "$name" in *bad*) exit 3;; esac
    cp "$image" "$out/${name%_0000.nii.gz}.nii.gz"
done
"""


def _model(folder: Path, labels: int, trainer: str = "nnUNetTrainer", folds: tuple[str, ...] = ("0", "1")) -> Path:
    model = folder / f"{trainer}__nnUNetPlans__3d_fullres"
    for fold in folds:
        (model / f"fold_{fold}").mkdir(parents=True)
        torch.save({"trainer_name": trainer}, model / f"fold_{fold}" / "checkpoint_final.pth")
        (model / f"fold_{fold}" / "progress.png").write_bytes(b"")
    (model / "plans.json").write_text("{}")
    content: dict[str, Any] = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, **{f"o{k}": k for k in range(1, labels + 1)}},
        "file_ending": ".nii.gz",
    }
    (model / "dataset.json").write_text(json.dumps(content))
    return model


def _run(folder: Path, tmp_path: Path) -> tuple[int, str, str]:
    """Exit code, what the command was called with, and errors."""
    (tmp_path / "bin").mkdir(exist_ok=True)
    command = tmp_path / "bin" / "nnUNetv2_predict_from_modelfolder"
    command.write_text(STAND_IN)
    command.chmod(0o755)
    (tmp_path / "calls").write_text("")
    environment = {
        **os.environ,
        "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "CALLS": str(tmp_path / "calls"),
        "INPUTS": str(tmp_path / "in puts"),
        "OUTPUTS": str(tmp_path / "out puts"),
        "MODEL": str(folder / "model"),
        "DEVICE": "cpu",
    }
    done = subprocess.run(
        ["sh", "predict.sh"], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    return done.returncode, (tmp_path / "calls").read_text(), done.stderr


def _images(tmp_path: Path, *names: str) -> None:
    (tmp_path / "in puts").mkdir()
    for name in names:
        (tmp_path / "in puts" / name).write_text(name)


def test_flare_predicts_one_case_at_a_time(tmp_path: Path) -> None:
    write_container("flare22", _model(tmp_path, 13), tmp_path / "box", light=True)
    files = {path.relative_to(tmp_path / "box").as_posix() for path in (tmp_path / "box").rglob("*") if path.is_file()}
    model = {f"model/{name}" for name in ("plans.json", "dataset.json")}
    model |= {f"model/fold_{fold}/checkpoint_final.pth" for fold in (0, 1)}
    assert files == model | {"Dockerfile", "predict.sh", "README.md", "requirements.txt", ".dockerignore"}
    subprocess.run(["sh", "-n", tmp_path / "box" / "predict.sh"], check=True)
    _images(tmp_path, "FLARETs_0001_0000.nii.gz", "FLARETs_0002_0000.nii.gz")
    code, calls, errors = _run(tmp_path / "box", tmp_path)
    assert (code, errors) == (0, "")
    outputs = {path.name: path.read_text() for path in (tmp_path / "out puts").iterdir()}
    assert outputs == {f"FLARETs_000{n}.nii.gz": f"FLARETs_000{n}_0000.nii.gz" for n in (1, 2)}
    assert calls.count("-f 0 1 -chk checkpoint_final.pth -device cpu") == 2
    assert calls.count("-step_size 0.7 --disable_tta") == 2


def test_amos_keeps_names_and_tells_of_failures(tmp_path: Path) -> None:
    write_container("amos_ct", _model(tmp_path, 15), tmp_path / "box", folds=["1"])
    _images(tmp_path, "amos_0002.nii.gz", "amos_0003.nii.gz", "amos_bad.nii.gz")
    code, calls, errors = _run(tmp_path / "box", tmp_path)
    assert code == 1
    assert "amos_bad was not predicted" in errors
    assert calls.count("-f 1 ") == 1
    (tmp_path / "in puts" / "amos_bad.nii.gz").unlink()
    (tmp_path / "out puts" / "amos_0002.nii.gz").write_text("stale")
    assert _run(tmp_path / "box", tmp_path)[0] == 0
    outputs = {path.name: path.read_text() for path in (tmp_path / "out puts").iterdir()}
    assert outputs == {name: name for name in ("amos_0002.nii.gz", "amos_0003.nii.gz")}


def test_no_images(tmp_path: Path) -> None:
    write_container("amos_ct", _model(tmp_path, 15), tmp_path / "box")
    _images(tmp_path)
    code, _, errors = _run(tmp_path / "box", tmp_path)
    assert code == 1
    assert "no *.nii.gz in" in errors


@pytest.mark.parametrize(("trainer", "needed"), [("nnUNetTrainer", False), ("UNETRPPTrainer", True)])
def test_package_travels_only_where_it_is_needed(tmp_path: Path, trainer: str, needed: bool) -> None:
    write_container("amos_ct", _model(tmp_path, 15, trainer), tmp_path / "box")
    dockerfile = (tmp_path / "box" / "Dockerfile").read_text()
    assert ("nnUNet_extTrainer=/workspace/python/nnunet_ext/_discovery" in dockerfile) == needed
    assert (tmp_path / "box" / "nnunet_ext" / "_discovery" / "nnunet_ext_trainers.py").is_file() == needed
    assert not list(tmp_path.rglob("__pycache__"))
    assert "@" not in dockerfile
    assert f"torch=={torch.__version__.split('+')[0]}" in dockerfile
    pinned = (tmp_path / "box" / "requirements.txt").read_text().splitlines()
    assert all("==" in line for line in pinned)
    assert {"nnunetv2", "timm", "numpy"} <= {line.partition("==")[0] for line in pinned}


def test_trainer_is_the_checkpoints_whatever_the_folder_is_called(tmp_path: Path) -> None:
    model = _model(tmp_path, 15, "SSHUNetTrainer").rename(tmp_path / "best")
    write_container("amos_ct", model, tmp_path / "box")
    assert (tmp_path / "box" / "nnunet_ext").is_dir()
    lines = write_container("amos_ct", _model(tmp_path / "x", 15, "TheirTrainer"), tmp_path / "other")
    assert any("MISSING: the trainer TheirTrainer" in line for line in lines)


def test_what_makes_no_container(tmp_path: Path) -> None:
    model = _model(tmp_path, 15)
    with pytest.raises(UserError, match="takes no container"):
        write_container("acdc", model, tmp_path / "box")
    with pytest.raises(UserError, match="the labels 0 to 15; flare22 has 0 to 13"):
        write_container("flare22", model, tmp_path / "box")
    with pytest.raises(UserError, match="of fold 4; trained are 0, 1"):
        write_container("amos_ct", model, tmp_path / "box", folds=["4"])
    with pytest.raises(UserError, match="trained model's folder"):
        write_container("amos_ct", tmp_path, tmp_path / "box")
    (model / "fold_0" / "checkpoint_final.pth").write_bytes(b"cut")
    with pytest.raises(UserError, match="cut off"):
        write_container("amos_ct", model, tmp_path / "box")
    assert not list(tmp_path.glob("*box*"))


def test_only_an_earlier_container_is_replaced(tmp_path: Path) -> None:
    model = _model(tmp_path, 15)
    write_container("amos_ct", model, tmp_path / "box")
    with pytest.raises(UserError, match="--overwrite"):
        write_container("amos_ct", model, tmp_path / "box")
    write_container("amos_ct", model, tmp_path / "box", folds=["0"], overwrite=True)
    assert not (tmp_path / "box" / "model" / "fold_1").exists()
    with pytest.raises(UserError, match="no container"):
        write_container("amos_ct", model, model, overwrite=True)
