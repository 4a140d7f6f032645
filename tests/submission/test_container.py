"""The folder around a model, and its entry script: with a stand-in for nnU-Net, and with nnU-Net itself."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from container_models import real, stub
from trees.volumes import affine, load, save

from nnunet_ext.errors import UserError
from nnunet_ext.submission import write_container

STAND_IN = """
import pathlib, sys

class nnUNetPredictor:
    def __init__(self, **options): print("options", sorted(options.items()))
    def initialize_from_trained_model_folder(self, *model): print("load", model)
    def predict_from_files_sequential(self, images, outputs):
        [[image]], [output] = images, outputs
        if "bad" in pathlib.Path(image).name: raise ValueError("no image")
        print("outputs", sorted(path.name for path in (pathlib.Path(image).parent.parent / "out puts").iterdir()))
        pathlib.Path(output + ".nii.gz").write_text(pathlib.Path(image).name)
"""


def _run(folder: Path, tmp_path: Path, *options: str) -> tuple[int, list[str], str]:
    """Exit code, lines that the stand-in printed, and errors."""
    inference = tmp_path / "fakes" / "nnunetv2" / "inference"
    inference.mkdir(parents=True, exist_ok=True)
    for package in (inference, inference.parent):
        (package / "__init__.py").touch()
    (inference / "predict_from_raw_data.py").write_text(STAND_IN)
    (tmp_path / "fakes" / "torch.py").write_text("device = str\nclass cuda: is_available = lambda: False\n")
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(tmp_path / "fakes"),
    }
    places = ["-i", str(tmp_path / "in puts"), "-o", str(tmp_path / "out puts")]
    command = ["sh", str(folder / "predict.sh"), *places, *options]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout.splitlines(), done.stderr


def _images(tmp_path: Path, *names: str) -> None:
    (tmp_path / "in puts").mkdir()
    for name in names:
        (tmp_path / "in puts" / name).write_text(name)


def test_everything_is_in_the_folder(tmp_path: Path) -> None:
    model = stub(tmp_path, 13)
    write_container("flare22", model, tmp_path / "box", light=True)
    files = {path.relative_to(tmp_path / "box").as_posix() for path in (tmp_path / "box").rglob("*") if path.is_file()}
    contents = {f"model/{name}" for name in ("plans.json", "dataset.json")}
    contents |= {f"model/fold_{fold}/checkpoint_final.pth" for fold in (0, 1)}
    scripts = {"Dockerfile", "predict.sh", "predict.py", "README.md", "requirements.txt", ".dockerignore"}
    assert files == contents | scripts
    assert "COPY predict.py predict.sh /workspace/" in (tmp_path / "box" / "Dockerfile").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["box", "box.report.json", model.name]


def test_flare_drops_the_channel_of_the_names(tmp_path: Path) -> None:
    write_container("flare22", stub(tmp_path, 13), tmp_path / "box", light=True)
    _images(tmp_path, "FLARETs_0001_0000.nii.gz", "FLARETs_0002_0000.nii.gz", "._FLARETs_0002_0000.nii.gz")
    code, lines, errors = _run(tmp_path / "box", tmp_path)
    assert code == 0
    assert "no GPU is seen" in errors
    outputs = {path.name: path.read_text() for path in (tmp_path / "out puts").iterdir()}
    assert outputs == {f"FLARETs_000{n}.nii.gz": f"FLARETs_000{n}_0000.nii.gz" for n in (1, 2)}
    assert "('device', 'cpu'), ('tile_step_size', 0.7), ('use_mirroring', False)" in lines[0]


def test_bad_case_costs_itself_and_each_output_is_there_at_once(tmp_path: Path) -> None:
    write_container("amos_ct", stub(tmp_path, 15), tmp_path / "box", folds=["1"])
    _images(tmp_path, "amos_0001_bad.nii.gz", "amos_0002.nii.gz", "amos_0003.nii.gz")
    (tmp_path / "out puts").mkdir()
    for stale in ("amos_0001_bad.nii.gz", "amos_0003.nii.gz"):
        (tmp_path / "out puts" / stale).write_text("stale")
    code, lines, errors = _run(tmp_path / "box", tmp_path, "-device", "cpu")
    assert code == 1
    assert errors == "predict.py: amos_0001_bad was not predicted: ValueError: no image\n"
    outputs = {path.name: path.read_text() for path in (tmp_path / "out puts").iterdir()}
    assert outputs == {name: name for name in ("amos_0002.nii.gz", "amos_0003.nii.gz")}
    assert (
        lines[0]
        == "options [('allow_tqdm', False), ('device', 'cpu'), ('tile_step_size', 0.5), ('use_mirroring', True)]"
    )
    assert [line for line in lines if line.startswith("load")] == [
        f"load ('{tmp_path / 'box' / 'model'}', ('1',), 'checkpoint_final.pth')"
    ]
    assert lines[-2:] == ["outputs []", "outputs ['amos_0002.nii.gz']"]


def test_no_images(tmp_path: Path) -> None:
    write_container("amos_ct", stub(tmp_path, 15), tmp_path / "box")
    _images(tmp_path)
    code, _, errors = _run(tmp_path / "box", tmp_path)
    assert code == 1
    assert "no *.nii.gz in" in errors


def _with_small_shared_memory(*command: str) -> list[str]:
    """The command with 64 kB of /dev/shm, where the system lets us; a container of Docker's has 64 MB."""
    mount = "mount -t tmpfs -o size=64k tmpfs /dev/shm"
    wrapped = ["unshare", "-rm", "sh", "-c", mount]
    able = shutil.which("unshare") and subprocess.run(wrapped, capture_output=True, check=False).returncode == 0
    return ["unshare", "-rm", "sh", "-c", f'{mount} && exec "$@"', "sh", *command] if able else list(command)


@pytest.mark.slow
def test_nnunet_predicts_without_shared_memory(tmp_path: Path) -> None:
    write_container("amos_ct", real(tmp_path, 15), tmp_path / "box")
    images = tmp_path / "images"
    save(images / "amos_0002.nii.gz", np.random.default_rng(0).random((24, 20, 40), np.float32), affine())
    (images / "amos_0001.nii.gz").write_bytes(b"no image")
    script = [sys.executable, str(tmp_path / "box" / "predict.py"), "-i", str(images), "-o", str(tmp_path / "out")]
    command = _with_small_shared_memory(*script, "-m", str(tmp_path / "box" / "model"), "-f", "0", "-device", "cpu")
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 1
    assert "amos_0001 was not predicted" in done.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["amos_0002.nii.gz"], done.stderr
    labels, placed = load(tmp_path / "out" / "amos_0002.nii.gz")
    assert labels.shape == (24, 20, 40)
    assert np.allclose(placed, affine(), atol=1e-5)


@pytest.mark.parametrize(("trainer", "needed"), [("nnUNetTrainer", False), ("UNETRPPTrainer", True)])
def test_package_travels_only_where_it_is_needed(tmp_path: Path, trainer: str, needed: bool) -> None:
    write_container("amos_ct", stub(tmp_path, 15, trainer), tmp_path / "box")
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
    model = stub(tmp_path, 15, "SSHUNetTrainer").rename(tmp_path / "best")
    write_container("amos_ct", model, tmp_path / "box")
    assert (tmp_path / "box" / "nnunet_ext").is_dir()
    lines = write_container("amos_ct", stub(tmp_path / "x", 15, "TheirTrainer"), tmp_path / "other")
    assert any("MISSING: the trainer TheirTrainer" in line for line in lines)


def test_what_makes_no_container(tmp_path: Path) -> None:
    model = stub(tmp_path, 15)
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
    model = stub(tmp_path, 15)
    write_container("amos_ct", model, tmp_path / "box")
    with pytest.raises(UserError, match="--overwrite"):
        write_container("amos_ct", model, tmp_path / "box")
    write_container("amos_ct", model, tmp_path / "box", folds=["0"], overwrite=True)
    assert not (tmp_path / "box" / "model" / "fold_1").exists()
    with pytest.raises(UserError, match="which is read"):
        write_container("amos_ct", model, model, overwrite=True)


@pytest.mark.parametrize("name", ["inputs/FLARETs_0001_0000.nii.gz", "teamname.tar.gz", "Dockerfile"])
def test_files_of_the_users_in_the_folder_are_not_removed(tmp_path: Path, name: str) -> None:
    """Its README tells to keep images and the saved container there."""
    model = stub(tmp_path, 15)
    write_container("amos_ct", model, tmp_path / "box")
    (tmp_path / "box" / name).parent.mkdir(exist_ok=True)
    (tmp_path / "box" / name).write_text("mine")
    with pytest.raises(UserError, match=f"{name}: it is not replaced"):
        write_container("amos_ct", model, tmp_path / "box", overwrite=True)
    assert (tmp_path / "box" / name).read_text() == "mine"
