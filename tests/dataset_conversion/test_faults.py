"""What goes wrong with downloads and disks: each is named, nothing is half-written, and a second run completes."""

from __future__ import annotations

import errno
import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toy_converter
from toy_converter import SHAPE
from trees import volumes

from nnunet_ext.dataset_conversion import files, work
from nnunet_ext.dataset_conversion.options import Options, Report
from nnunet_ext.dataset_conversion.run import convert
from nnunet_ext.errors import UserError

pytestmark = pytest.mark.usefixtures("toy")
FAST = Options(check="full")


def download(folder: Path) -> Path:
    toy_converter.build(folder / "download")
    return folder / "download"


def content(folder: Path) -> dict[str, bytes]:
    """Every file of the data set but the record, by name."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "conversion.json"
    }


def left_out(report: Report) -> dict[str, str]:
    return {fault.case: fault.reason for fault in report.faults}


def unfinished(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if "unfinished" in path.name or path.name.startswith(".")]


def check_one_fault_then_repair(nnunet_folders: Path, case: str, *words: str, **options: Any) -> None:
    """The case alone is left out, by these words; after a repair, a second run does only what is missing."""
    root = nnunet_folders / "download"
    report = convert("toy", [root], Options(**options))
    reasons = left_out(report)
    assert list(reasons) == [case]
    for word in words:
        assert word in reasons[case]
    assert not report.ok
    assert unfinished(report.folder) == []
    assert not list(report.folder.glob(f"*/{case}*"))
    record = json.loads((report.folder / "conversion.json").read_text())
    assert [entry["case"] for entry in record["left_out"]] == [case]
    assert case not in record["cases"]
    assert json.loads((report.folder / "dataset.json").read_text())["numTraining"] == 5
    splits = json.loads((nnunet_folders / "nnUNet_preprocessed" / report.name / "splits_final.json").read_text())
    assert not any(case in part for fold in splits for part in fold.values())
    toy_converter.build(root)
    for path in root.rglob("*extra*"):
        path.unlink()
    again = convert("toy", [root], Options(**options))
    assert again.ok
    assert again.counts == {"training": 6}


def test_truncated_image_is_named(nnunet_folders: Path) -> None:
    path = download(nnunet_folders) / "p2a" / "p2a_t2.nii.gz"
    path.write_bytes(path.read_bytes()[:-200])
    check_one_fault_then_repair(nnunet_folders, "p2a", "p2a_t2.nii.gz", "cut off or damaged", "download it again")


def test_truncated_image_is_named_without_reading_its_voxels(nnunet_folders: Path) -> None:
    path = download(nnunet_folders) / "p2a" / "p2a_t2.nii.gz"
    path.write_bytes(path.read_bytes()[:-200])
    check_one_fault_then_repair(nnunet_folders, "p2a", "p2a_t2.nii.gz", "cut off or damaged", check="fast")


def test_image_shorter_than_its_header_says_is_named(nnunet_folders: Path) -> None:
    path = download(nnunet_folders) / "p2a" / "p2a_t1.nii.gz"
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-5]))
    check_one_fault_then_repair(nnunet_folders, "p2a", "p2a_t1.nii.gz", "bytes of", check="fast")


def test_changed_byte_fails_the_checksum(nnunet_folders: Path) -> None:
    path = download(nnunet_folders) / "p2a" / "p2a_t1.nii.gz"
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 0xFF
    path.write_bytes(damaged)
    check_one_fault_then_repair(nnunet_folders, "p2a", "p2a_t1.nii.gz", "damaged")


def test_missing_modality_is_named(nnunet_folders: Path) -> None:
    (download(nnunet_folders) / "p3a" / "p3a_t2.nii.gz").unlink()
    check_one_fault_then_repair(nnunet_folders, "p3a", "T2 missing", "p3a_t1.nii.gz", "incomplete")


def test_label_that_the_data_set_has_not_is_named(nnunet_folders: Path) -> None:
    root = download(nnunet_folders)
    labels = volumes.labels(0, (1, 2, 7), SHAPE)
    volumes.save(root / "p1a" / "p1a_seg.nii.gz", labels, volumes.affine(seed=0))
    check_one_fault_then_repair(nnunet_folders, "p1a", "p1a_seg.nii.gz", "{7}", "{0, 1, 2, 4}")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_image_that_is_not_finite_is_named_or_repaired_on_request(nnunet_folders: Path, value: float) -> None:
    root = download(nnunet_folders)
    image = volumes.image(3, SHAPE).astype(np.float32)
    image[1, 2, 3] = value
    path = root / "p4a" / "p4a_t1.nii.gz"
    volumes.save(path, image, volumes.affine(seed=4))
    report = convert("toy", [root], Options(fix_nan=True))
    assert report.ok
    written, _ = volumes.load(report.folder / "imagesTr" / "p4a_0000.nii.gz")
    expected = np.where(np.isfinite(image), image, 0)
    np.testing.assert_array_equal(written, expected)
    assert any("NaN or infinite" in notice for notice in report.notices)
    assert np.isfinite(image).sum() == image.size - 1
    check_one_fault_then_repair(nnunet_folders, "p4a", "1 voxels NaN or infinite", "--fix-nan")


def test_two_files_for_one_case_are_a_duplicate_id(nnunet_folders: Path) -> None:
    root = download(nnunet_folders)
    original = root / "p5a" / "p5a_t1.nii.gz"
    (root / "extra").mkdir()
    (root / "extra" / "p5a_t1.nii").write_bytes(gzip.decompress(original.read_bytes()))
    (root / "extra" / "p5a_t1.nii").rename(root / "p5a" / "p5a_t1.nii")
    report = convert("toy", [root], FAST)
    assert list(left_out(report)) == ["p5a"]
    assert "duplicate id" in left_out(report)["p5a"]
    assert str(original) in left_out(report)["p5a"]


def test_labels_that_are_no_whole_numbers_negative_or_nan_are_named(nnunet_folders: Path) -> None:
    root = download(nnunet_folders)
    for case, value in (("p1a", 0.4), ("p2a", -1.0), ("p3a", np.nan)):
        labels = volumes.labels(1, (1, 2, 4), SHAPE).astype(np.float32)
        labels[0, 0, 0] = value
        volumes.save(root / case / f"{case}_seg.nii.gz", labels, volumes.affine(seed=0))
    reasons = left_out(convert("toy", [root], FAST))
    assert "whole numbers" in reasons["p1a"]
    assert "labels from -1" in reasons["p2a"]
    assert "NaN" in reasons["p3a"]


def test_shapes_that_differ_are_named(nnunet_folders: Path) -> None:
    root = download(nnunet_folders)
    labels = volumes.labels(0, (1, 2, 4), (10, 12, 9))
    volumes.save(root / "p1a" / "p1a_seg.nii.gz", labels, volumes.affine(seed=0))
    check_one_fault_then_repair(nnunet_folders, "p1a", "(10, 12, 9)", "(10, 12, 8)")


def test_something_that_is_no_nifti_file_is_named(nnunet_folders: Path) -> None:
    (download(nnunet_folders) / "p1a" / "p1a_t1.nii.gz").write_bytes(b"<html>Please log in</html>" * 40)
    check_one_fault_then_repair(nnunet_folders, "p1a", "p1a_t1.nii.gz", "not a NIfTI file")


def test_axes_that_are_not_perpendicular(nnunet_folders: Path) -> None:
    """Nearly perpendicular axes are repaired; a tilted gantry is no repair's business."""
    root = download(nnunet_folders)
    for case, shear in (("p1a", 5e-4), ("p2a", 0.1)):
        tilted = volumes.affine()
        tilted[0, 1] = shear
        for name in ("t1", "t2", "seg"):
            path = root / case / f"{case}_{name}.nii.gz"
            array, _ = volumes.load(path)
            volumes.save(path, array, tilted, qform_code=0)
    report = convert("toy", [root], FAST)
    assert list(left_out(report)) == ["p2a"]
    assert "not perpendicular" in left_out(report)["p2a"]
    import SimpleITK

    read = SimpleITK.ReadImage(str(report.folder / "imagesTr" / "p1a_0000.nii.gz"))
    assert np.allclose(read.GetSpacing(), (1, 1, 2), atol=1e-4)


def test_strict_stops_and_leaves_a_state_to_go_on_from(nnunet_folders: Path) -> None:
    root = download(nnunet_folders)
    path = root / "p2a" / "p2a_t2.nii.gz"
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(UserError, match=r"--strict: stopped at p2a.*p2a_t2"):
        convert("toy", [root], Options(strict=True))
    folder = nnunet_folders / "nnUNet_raw" / "Dataset077_Toy"
    assert not (folder / "dataset.json").exists()
    assert not (folder / ".conversion.lock").exists()
    path.write_bytes(whole)
    report = convert("toy", [root], Options(strict=True))
    assert report.ok
    assert report.skipped == 2


def test_full_disk_stops_the_run_and_the_next_one_completes(
    nnunet_folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = download(nnunet_folders)
    real = files.write_compressed
    written: list[Path] = []

    def full(path: Path, *args: Any) -> None:
        written.append(path)
        if len(written) == 4:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        real(path, *args)

    monkeypatch.setattr(files, "write_compressed", full)
    with pytest.raises(OSError, match="No space left"):
        convert("toy", [root], FAST)
    folder = nnunet_folders / "nnUNet_raw" / "Dataset077_Toy"
    assert [path for path in folder.rglob("*") if "unfinished" in path.name] == []
    assert not (folder / "dataset.json").exists()
    assert not list(folder.glob("*/p3a*"))  # the fourth: its images went with its label
    monkeypatch.setattr(files, "write_compressed", real)
    report = convert("toy", [root], FAST)
    assert report.ok
    assert report.skipped == 3


def test_full_disk_is_one_sentence_on_the_command_line(
    nnunet_folders: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from nnunet_ext import cli

    def full(*_: Any, **__: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device", "somewhere")

    monkeypatch.setattr(files, "place", full)
    assert cli.main(["convert", "toy", str(download(nnunet_folders)), "-np", "1"]) == 1
    assert "no space left on the device" in capsys.readouterr().err


KILLED = """
import os, sys, time
sys.path.insert(0, sys.argv[2])
from nnunet_ext import dataset_conversion
dataset_conversion.CONVERTERS["toy"] = "toy_converter:Toy"
from nnunet_ext.dataset_conversion import files, run
from nnunet_ext.dataset_conversion.options import Options

real = files.write_compressed
def slow(path, *args):
    if "p3a" in path.name:
        path.write_bytes(b"half")
        print("now", flush=True)
        time.sleep(60)
    real(path, *args)
files.write_compressed = slow
run.convert("toy", [sys.argv[1]], Options(check="full"))
"""


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_killed_run_is_completed_by_the_next_and_equals_an_uninterrupted_one(
    nnunet_folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = download(nnunet_folders)
    tests = str(Path(toy_converter.__file__).parent)
    command = [sys.executable, "-c", KILLED, str(root), tests]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert running.stdout is not None
    assert running.stdout.readline().strip() == "now"
    folder = nnunet_folders / "nnUNet_raw" / "Dataset077_Toy"
    with pytest.raises(UserError, match=f"is being converted by process {running.pid}"):
        convert("toy", [root], FAST)
    running.send_signal(signal.SIGKILL)
    running.wait()
    running.stdout.close()
    assert [path.name for path in folder.rglob("*unfinished*")]  # what the killed run left
    assert not (folder / "conversion.json").exists()
    report = convert("toy", [root], FAST)
    assert report.ok
    assert report.skipped == 3
    monkeypatch.setenv("nnUNet_raw", str(nnunet_folders / "other"))
    (nnunet_folders / "other").mkdir()
    other = convert("toy", [root], FAST)
    assert content(report.folder) == content(other.folder)
    assert unfinished(report.folder) == []


def test_second_run_does_nothing_and_changes_nothing(nnunet_folders: Path) -> None:
    root = download(nnunet_folders)
    first = convert("toy", [root], FAST)
    stamps = {path: path.lstat().st_mtime_ns for path in first.folder.glob("*/*")}
    record = (first.folder / "conversion.json").read_bytes()
    again = convert("toy", [root], FAST)
    assert again.skipped == 6
    assert {path: path.lstat().st_mtime_ns for path in first.folder.glob("*/*")} == stamps
    assert (first.folder / "conversion.json").read_bytes() == record


def test_changed_source_damaged_target_and_vanished_case_are_noticed(nnunet_folders: Path) -> None:
    root = download(nnunet_folders)
    first = convert("toy", [root], FAST)
    time.sleep(0.01)
    labels = volumes.labels(9, (1, 2, 4), SHAPE)
    volumes.save(root / "p1a" / "p1a_seg.nii.gz", labels, volumes.affine(seed=0))
    (first.folder / "labelsTr" / "p2a.nii.gz").write_bytes(b"half")
    for path in (root / "p5a").iterdir():
        path.unlink()
    again = convert("toy", [root], FAST)
    assert again.skipped == 3
    assert not list(again.folder.glob("*/p5a*"))
    np.testing.assert_array_equal(
        volumes.load(again.folder / "labelsTr" / "p1a.nii.gz")[0], toy_converter.mapped(labels)
    )
    assert volumes.load(again.folder / "labelsTr" / "p2a.nii.gz")[0].shape == SHAPE


def test_unexpected_error_in_one_case_stops_no_other(nnunet_folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = download(nnunet_folders)
    real = work._check_label

    def fails(job: Any, *args: Any) -> Any:
        if job.case.id == "p2a":
            raise KeyError("something")
        return real(job, *args)

    monkeypatch.setattr(work, "_check_label", fails)
    report = convert("toy", [root], FAST)
    assert list(left_out(report)) == ["p2a"]
    assert "please report" in left_out(report)["p2a"]
    assert report.counts == {"training": 5}


def test_nothing_is_made_where_no_case_is_good(nnunet_folders: Path) -> None:
    root = download(nnunet_folders)
    for path in root.rglob("*_t1.nii.gz"):
        path.write_bytes(b"nothing")
    with pytest.raises(UserError, match="no case could be used"):
        convert("toy", [root], FAST)
    assert not (nnunet_folders / "nnUNet_raw" / "Dataset077_Toy" / "dataset.json").exists()


def test_workers_find_the_same_faults(nnunet_folders: Path) -> None:
    """The same with two processes, through the command line's way of starting them."""
    root = download(nnunet_folders)
    (root / "p2a" / "p2a_t1.nii.gz").write_bytes(b"nothing at all")
    tests = str(Path(toy_converter.__file__).parent)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from nnunet_ext import cli, dataset_conversion\n"
        "dataset_conversion.CONVERTERS['toy'] = 'toy_converter:Toy'\n"
        "if __name__ == '__main__':\n"
        "    sys.exit(cli.main(['convert', 'toy', sys.argv[2], '-np', '2', '--check', 'none']))\n"
    )
    script = nnunet_folders / "script.py"
    script.write_text(code)
    done = subprocess.run([sys.executable, script, tests, root], capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "Left out: p2a" in done.stdout
    assert "Dataset077_Toy has 5 training cases" in done.stdout
    assert "5 of 6 cases" in done.stdout or "6 of 6 cases" in done.stdout
