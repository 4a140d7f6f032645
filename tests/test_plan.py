"""``nnunet-ext plan``: stock planning with our names, and a sentence for each common fault."""

from __future__ import annotations

import errno
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import support
from nnunetv2.experiment_planning import plan_and_preprocess_entrypoints
from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor

from nnunet_ext import raw_files
from nnunet_ext.cli import main


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> support.Workspace:
    """Tiny raw data, nnU-Net's variables set, and threads instead of worker processes."""
    workspace = support.Workspace(tmp_path)
    for name, folder in zip(support.VARIABLES, (workspace.raw, workspace.preprocessed, workspace.results), strict=True):
        monkeypatch.setenv(name, str(folder))
    monkeypatch.setenv("nnUNet_n_proc_DA", "1")
    support.spawn_as_threads(monkeypatch.setattr)
    return workspace


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    err = capsys.readouterr().err
    lines = [line for line in err.splitlines() if line.startswith("nnunet-ext:")]
    assert len(lines) == 1, err
    assert "Traceback" not in err
    return lines[0]


ARGUMENTS = ["plan", "-d", "901", "--no_pp", "-npfp", "1", "--no_pbar"]


def test_plans_as_the_stock_command_does(workspace: support.Workspace) -> None:
    name = workspace.dataset("plain")
    assert main([*ARGUMENTS, "-pl", "SSHUNetPlanner_W8"]) == 0
    plans = json.loads((workspace.preprocessed / name / "SSHUNetPlans_W8.json").read_text())
    architecture = plans["configurations"]["3d_fullres"]["architecture"]
    assert architecture["network_class_name"] == "nnunet_ext.architectures.sshunet.SSHUNet"
    assert architecture["arch_kwargs"]["features_per_stage"][0] == 8


@pytest.mark.parametrize("place", ["imagesTr/case_2_0000.nii.gz", "labelsTr/case_1.nii.gz"])
@pytest.mark.parametrize("fault", ["cut off", "no image"])
def test_corrupt_files_are_named(
    workspace: support.Workspace,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    fault: str,
) -> None:
    """Cut off: stock planning goes on with half an image. No image: it fails in a worker, without the file's name."""
    monkeypatch.setattr(DatasetFingerprintExtractor, "__init__", few_samples(DatasetFingerprintExtractor.__init__))
    name = workspace.dataset("plain")
    (workspace.preprocessed / name / "dataset_fingerprint.json").unlink()
    bad = workspace.raw / name / place
    bad.write_bytes(bad.read_bytes()[:-30] if fault == "cut off" else b"not an image")
    assert main([*ARGUMENTS, "-pl", "SSHUNetPlanner_W8"]) == 1
    err = capsys.readouterr().err
    sentence = err[err.index("nnunet-ext:") :].splitlines()
    start = {
        "cut off": "nnunet-ext: 1 file of the data set can't be read whole",
        "no image": "nnunet-ext: planning failed",
    }
    assert sentence[0].startswith(start[fault])
    assert [line.split(": ")[0].strip() for line in sentence[1:]] == [str(bad)]


def few_samples(original: Callable[..., None]) -> Callable[..., None]:
    """nnU-Net draws 10^8 intensities of the foreground, which takes longer than all the rest."""

    def initialize(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        self.num_foreground_voxels_for_intensitystats = 10_000

    return initialize


def test_unreadable_files_of_any_reader(workspace: support.Workspace) -> None:
    name = workspace.dataset("plain")
    content = workspace.dataset_json(name)
    del content["overwrite_image_reader_writer"]
    (workspace.raw / name / "dataset.json").write_text(json.dumps(content))
    assert raw_files.unreadable_files(workspace.raw / name) == []
    first = workspace.raw / name / "imagesTr" / "case_0_0000.nii.gz"
    first.write_bytes(b"not an image")
    assert [path for path, _ in raw_files.unreadable_files(workspace.raw / name)] == [str(first)]


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("cut", [1, 9, 500, 5000])
def test_incomplete_files(workspace: support.Workspace, ending: str, cut: int) -> None:
    folder = workspace.raw / workspace.dataset("plain")
    if ending == ".nii":
        for path in [*folder.glob("*/*.nii.gz")]:
            path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
            path.unlink()
        content = workspace.dataset_json(folder.name) | {"file_ending": ".nii"}
        (folder / "dataset.json").write_text(json.dumps(content))
    assert raw_files.incomplete_files(folder) == []
    bad = folder / "imagesTr" / f"case_3_0000{ending}"
    whole = bad.read_bytes()
    bad.write_bytes(whole[:-cut])
    found = raw_files.incomplete_files(folder)
    # without its checksum alone, a compressed file still holds every voxel
    assert [path for path, _ in found] == ([] if ending == ".nii.gz" and cut < 9 else [str(bad)])


def test_files_that_lie_elsewhere(workspace: support.Workspace) -> None:
    folder = workspace.raw / workspace.dataset("plain")
    (folder / "imagesTr").rename(workspace.root / "elsewhere")
    image = workspace.root / "elsewhere" / "case_0_0000.nii.gz"
    case = {"images": [str(image)], "label": "labelsTr/case_0.nii.gz"}
    content = workspace.dataset_json(folder.name) | {"dataset": {"case_0": case}}
    (folder / "dataset.json").write_text(json.dumps(content))
    assert raw_files.training_files(folder) == ([str(image)], [str(folder / "labelsTr" / "case_0.nii.gz")])


def test_files_compressed_in_several_pieces_are_complete(workspace: support.Workspace) -> None:
    folder = workspace.raw / workspace.dataset("plain")
    path = folder / "imagesTr" / "case_3_0000.nii.gz"
    content = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(content[:1000]) + gzip.compress(content[1000:]))
    assert raw_files.incomplete_files(folder) == []


def test_full_disk_is_not_taken_for_a_bad_image(
    workspace: support.Workspace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "case_0.b2nd")

    name = workspace.dataset("plain")
    (workspace.raw / name / "imagesTr" / "case_0_0000.nii.gz").write_bytes(b"not an image")
    monkeypatch.setattr(plan_and_preprocess_entrypoints, "plan_and_preprocess_entry", full)
    assert main(ARGUMENTS) == 1
    assert "no space left on the device while writing case_0.b2nd" in one_line(capsys)


def test_other_failures_are_not_hidden(workspace: support.Workspace) -> None:
    with pytest.raises(RuntimeError, match="Could not find a dataset with the ID 901"):
        main([*ARGUMENTS, "-pl", "SSHUNetPlanner_W8"])


@pytest.mark.parametrize("variable", ["nnUNet_raw", "nnUNet_preprocessed"])
def test_missing_variable(
    workspace: support.Workspace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.delenv(variable)
    assert main(ARGUMENTS) == 1
    line = one_line(capsys)
    assert f"the environment variable {variable} is not set" in line
    assert f"export {variable}=" in line
    monkeypatch.setenv(variable, "/does/not/exist")
    assert main(ARGUMENTS) == 1
    assert f"{variable} names /does/not/exist, which is no folder" in one_line(capsys)


@pytest.mark.parametrize(
    ("planner", "sentence"),
    [("SSHUNetPlanner_8", "has no suffix '8'"), ("SSHUnetPlanner_W8", "did you mean SSHUNetPlanner_W8?")],
)
def test_unknown_planner(
    workspace: support.Workspace, capsys: pytest.CaptureFixture[str], planner: str, sentence: str
) -> None:
    workspace.dataset("plain")
    assert main([*ARGUMENTS, "-pl", planner]) == 1
    assert sentence in one_line(capsys)


def test_help_is_nnunets_own(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["plan", "--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith("usage: nnunet-ext plan")
    assert "-gpu_memory_target" in out
