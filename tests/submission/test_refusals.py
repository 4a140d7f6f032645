"""What is wrong with predictions: named all together, and nothing is written."""

from __future__ import annotations

import errno
import gzip
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import converted
import numpy as np
import pytest
from converted import Converted, Made, data_set
from trees.volumes import load, save

from nnunet_ext.errors import UserError
from nnunet_ext.submission import RefusedError, archive, submit, submitting
from nnunet_ext.submission.raw_data import read_raw


@pytest.fixture
def made(tmp_path: Path) -> Converted:
    return converted.complete(tmp_path, "btcv")


def _kinds(made: Converted, tmp_path: Path, **options: Any) -> set[tuple[str, str]]:
    """Kind and file of all that is refused; nothing may have been written."""
    before = sorted(tmp_path.iterdir())
    with pytest.raises(RefusedError) as caught:
        submit("btcv", made.predictions, made.raw, tmp_path / "out", **options)
    assert sorted(tmp_path.iterdir()) == before
    return {(problem.kind, Path(problem.where).name) for problem in caught.value.problems}


def _volume(made: Converted, case: str) -> tuple[Path, np.ndarray, np.ndarray]:
    path = made.predictions / f"{case}.nii.gz"
    return (path, *load(path))


def _shift(affine: np.ndarray, millimetres: float) -> np.ndarray:
    moved = affine.copy()
    moved[0, 3] += millimetres
    return moved


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def _cut_inside(path: Path) -> None:
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-7]))


FAULTS: dict[str, tuple[str, Callable[[Path, np.ndarray, np.ndarray], object]]] = {
    "wrong shape": ("shape", lambda path, labels, affine: save(path, labels[:-1], affine)),
    "axes swapped": ("shape", lambda path, labels, affine: save(path, labels.transpose(1, 0, 2), affine)),
    "4D": ("shape", lambda path, labels, affine: save(path, labels[..., None], affine)),
    "origin": ("geometry", lambda path, labels, affine: save(path, labels, _shift(affine, 0.02))),
    "flipped": ("geometry", lambda path, labels, affine: save(path, labels, affine @ np.diag([-1.0, 1, 1, 1]))),
    "spacing": ("geometry", lambda path, labels, affine: save(path, labels, affine @ np.diag([1, 1, 1.01, 1]))),
    "label 14": ("values", lambda path, labels, affine: save(path, np.where(labels == 3, 14, labels), affine)),
    "negative": ("values", lambda path, labels, affine: save(path, labels.astype(np.int16) - 1, affine)),
    "noise": ("values", lambda path, labels, affine: save(path, labels + 1e-4, affine)),
    "NaN": ("values", lambda path, labels, affine: save(path, np.where(labels == 3, np.nan, labels), affine)),
    "probabilities": ("values", lambda path, labels, affine: save(path, labels / 13.0, affine)),
    "cut off": ("unreadable", lambda path, labels, affine: _cut(path)),
    "cut off before compression": ("unreadable", lambda path, labels, affine: _cut_inside(path)),
    "empty": ("unreadable", lambda path, labels, affine: path.write_bytes(b"")),
    "no NIfTI": ("unreadable", lambda path, labels, affine: path.write_bytes(b"label map" * 100)),
}


def test_all_that_is_wrong_is_told_at_once(made: Converted, tmp_path: Path) -> None:
    expected = set()
    for number, (kind, spoil) in enumerate(FAULTS.values(), start=61):
        spoil(*_volume(made, f"img{number:04d}"))
        expected.add((kind, f"img{number:04d}.nii.gz"))
    (made.predictions / "img0080.nii.gz").unlink()
    (made.predictions / "img0001.nii.gz").write_bytes(b"")
    (made.predictions / "notes.txt").write_text("")
    wrong = {("missing", "label0080.nii.gz"), ("extra", "img0001.nii.gz"), ("extra", "notes.txt")}
    assert _kinds(made, tmp_path) == expected | wrong
    assert _kinds(made, tmp_path, allow_incomplete=True) == (expected | wrong) - {("missing", "label0080.nii.gz")}


def test_what_differs_within_the_tolerances_is_taken(made: Converted, tmp_path: Path) -> None:
    path, labels, affine = _volume(made, "img0061")
    save(path, labels.astype(np.float32), _shift(affine, 0.009))
    path, labels, affine = _volume(made, "img0062")
    save(path, labels.astype(np.int16) * 2, affine, scl_slope=0.5, scl_inter=0)
    report = submit("btcv", made.predictions, made.raw, tmp_path / "out")
    assert report["complete"]


def test_missing_cases_are_excused_on_request(made: Converted, tmp_path: Path) -> None:
    (made.predictions / "img0070.nii.gz").unlink()
    report = submit("btcv", made.predictions, made.raw, tmp_path / "out", allow_incomplete=True)
    assert not report["complete"]
    assert [problem["where"] for problem in report["missing"]] == ["label0070.nii.gz"]
    assert len(report["files"]) == 19


def test_image_that_was_not_converted(made: Converted, tmp_path: Path) -> None:
    record = made.record()
    del record["cases"]["img0070"]
    made.change(record)
    assert _kinds(made, tmp_path) == {("missing", "label0070.nii.gz"), ("extra", "img0070.nii.gz")}


def test_test_cases_of_a_split_are_passed_over(made: Converted, tmp_path: Path) -> None:
    record = made.record()
    record["cases"]["img0001"] = record["cases"]["img0061"]
    made.change(record)
    path, labels, affine = _volume(made, "img0061")
    save(path.with_name("img0001.nii.gz"), labels, affine)
    report = submit("btcv", made.predictions, made.raw, tmp_path / "out")
    assert len(report["files"]) == 20
    assert "does not score, such as img0001" in report["notices"][-1]
    record["cases"]["img0001"]["part"] = "training"
    made.change(record)
    assert ("extra", "img0001.nii.gz") in _kinds(made, tmp_path, overwrite=True)


def test_background_only_is_noticed(made: Converted, tmp_path: Path) -> None:
    for path in made.predictions.glob("img*.nii.gz"):
        labels, affine = load(path)
        save(path, np.zeros_like(labels), affine)
    report = submit("btcv", made.predictions, made.raw, tmp_path / "out")
    assert any("ALL LABEL MAPS" in notice for notice in report["notices"])


def test_labels_that_became_one_are_not_told_apart(tmp_path: Path) -> None:
    cases = [Made(f"img{number:04d}") for number in range(61, 81)]
    merged = {value: min(value, 8) if value < 9 else 0 for value in range(14)}
    made = data_set(tmp_path, "btcv", "Dataset804_Eight", cases, range(14), label_map=merged)
    with pytest.raises(RefusedError, match=r"label 0 \(background\) stands for 0, 9, 10, 11, 12, 13 of the download"):
        submit("btcv", made.predictions, made.raw, tmp_path / "out")


def test_label_3_of_brats_2020_is_mapped_back_or_refused(tmp_path: Path) -> None:
    made = data_set(tmp_path, "brats2020", "Dataset820_BraTS", [Made("BraTS20_Validation_001")], range(4))
    with pytest.raises(RefusedError, match="value 3; the server has 0, 1, 2, 4"):
        submit("brats2020", made.predictions, made.raw, tmp_path / "out", allow_incomplete=True)


def test_labels_of_the_server_may_be_stated(made: Converted, tmp_path: Path) -> None:
    assert ("values", "img0061.nii.gz") in _kinds(made, tmp_path, labels=[0, 1, 2])


@pytest.mark.parametrize("template", ["label{num}.nii", "../{id}.nii.gz", "{id!r}.nii.gz", "{nothing}.nii.gz", "{"])
def test_names_that_no_server_takes(made: Converted, tmp_path: Path, template: str) -> None:
    with pytest.raises(UserError):
        submit("btcv", made.predictions, made.raw, tmp_path / "out", name_template=template)
    assert not list(tmp_path.glob("*out*"))


def test_two_cases_of_one_name(made: Converted, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="as that of img0061"):
        submit("btcv", made.predictions, made.raw, tmp_path / "out", name_template="same.nii.gz")


def test_data_sets_that_were_not_converted_here(made: Converted, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.delenv("nnUNet_raw", raising=False)
    with pytest.raises(UserError, match="nnUNet_raw, which is not set"):
        submit("btcv", made.predictions, "803", tmp_path / "out")
    monkeypatch.setenv("nnUNet_raw", str(tmp_path))
    assert submit("btcv", made.predictions, "803", tmp_path / "a")["files"]
    assert submit("btcv", made.predictions, made.raw.name, tmp_path / "b")["files"]
    (made.raw / "conversion.json").write_text("{}")
    with pytest.raises(UserError, match="convert the download again"):
        submit("btcv", made.predictions, "803", tmp_path / "out")
    (made.raw / "conversion.json").unlink()
    with pytest.raises(UserError, match=r"has no conversion\.json"):
        submit("btcv", made.predictions, "803", tmp_path / "out")


def test_only_an_earlier_submission_is_replaced(made: Converted, tmp_path: Path) -> None:
    out = tmp_path / "out"
    submit("btcv", made.predictions, made.raw, out)
    with pytest.raises(UserError, match="--overwrite"):
        submit("btcv", made.predictions, made.raw, out)
    (made.predictions / "img0061.nii.gz").unlink()
    submit("btcv", made.predictions, made.raw, out, overwrite=True, allow_incomplete=True)
    assert not (out / "label0061.nii.gz").exists()
    for place in (made.predictions / "out", made.raw, made.raw / "imagesTs" / "out.zip"):
        with pytest.raises(UserError, match="which is read"):
            submit("btcv", made.predictions, made.raw, place, overwrite=True)


@pytest.mark.parametrize("when", ["file", "zip", "rename"])
def test_full_disk_leaves_everything_as_it_was(
    made: Converted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    out = tmp_path / "out"
    submit("btcv", made.predictions, made.raw, out)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def full(*args: Any, **kwargs: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device", "x")

    if when == "file":
        writes = Path.write_bytes
        monkeypatch.setattr(
            Path, "write_bytes", lambda path, data: full() if path.name == "label0077.nii.gz" else writes(path, data)
        )
    elif when == "zip":
        monkeypatch.setattr(shutil, "copyfileobj", full)
    else:
        rename = os.rename
        monkeypatch.setattr(
            os,
            "rename",
            lambda old, new: (
                full() if Path(old).name == "folder" and Path(old).parent.name == "new" else rename(old, new)
            ),
        )
    with pytest.raises(OSError, match="No space"):
        submit("btcv", made.predictions, made.raw, out, overwrite=True)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert not list(tmp_path.glob(".*"))


def test_what_was_written_is_checked_again(made: Converted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        submitting, "write_zip", lambda path, folder, names: archive.write_zip(path, folder, list(names)[1:])
    )
    assert _kinds(made, tmp_path) == {("missing", "label0061.nii.gz")}


def test_ignore_label_is_none_that_a_model_predicts(made: Converted) -> None:
    record = made.record()
    record["dataset_json"]["labels"]["ignore"] = 14
    made.change(record)
    raw = read_raw(made.raw)
    assert raw.values == frozenset(range(14))
    assert 14 not in raw.labels


def test_test_cases_with_labels_are_not_the_servers(tmp_path: Path) -> None:
    cases = [Made("BraTS2021_00001"), Made("BraTS2021_00002", label=True), Made("BraTS2021_00003", "training")]
    made = data_set(tmp_path, "brats2021", "Dataset137_BraTS2021", cases, (0, 1, 2, 4))
    (made.predictions / "BraTS2021_00003.nii.gz").unlink()
    report = submit("brats2021", made.predictions, made.raw, tmp_path / "out", allow_incomplete=True)
    assert list(report["files"]) == ["BraTS2021_00001.nii.gz"]


@pytest.mark.parametrize("key", ["amos_ct", "amos_ctmr"])
def test_amos_validation_is_known_without_the_record(tmp_path: Path, key: str) -> None:
    cases = [Made(f"amos_{number:04d}", "training", label=True) for number in (converted.AMOS_CT[0], 1)]
    made = data_set(tmp_path, "generic", "Dataset218_AMOS", cases, range(16))
    (made.predictions / "amos_0001.nii.gz").unlink()
    report = submit(key, made.predictions, made.raw, tmp_path / "out", allow_incomplete=True)
    assert list(report["files"]) == [f"results/{cases[0].id}.nii.gz"]


def test_phase_in_small_letters_or_unknown(tmp_path: Path) -> None:
    cases = [Made("patient101_frame01", group="patient101", details={"phase": "ed"}), Made("patient102_frame01")]
    made = data_set(tmp_path, "acdc", "Dataset027_ACDC", cases[:1], range(4))
    report = submit("acdc", made.predictions, made.raw, tmp_path / "out", allow_incomplete=True)
    assert list(report["files"]) == ["patient101_ED.nii.gz"]
    other = data_set(tmp_path / "x", "acdc", "Dataset027_ACDC", [Made(cases[1].id, group="patient102")], range(4))
    with pytest.raises(RefusedError, match="has no 'phase'"):
        submit("acdc", other.predictions, other.raw, tmp_path / "b", allow_incomplete=True)
    with pytest.raises(RefusedError, match="does not state its phase"):
        submit("acdc", other.predictions, other.raw, tmp_path / "b", allow_incomplete=True, name_template="{id}.nii.gz")


def test_same_task_twice(tmp_path: Path) -> None:
    made = data_set(tmp_path, "msd", "Dataset002_Heart", [Made("la_001")], range(2))
    both = [made.predictions] * 2, [made.raw] * 2
    with pytest.raises(UserError, match="give each task once"):
        submit("msd", *both, tmp_path / "out")
    with pytest.raises(UserError, match="give each task once"):
        submit("msd", made.predictions, made.raw, tmp_path / "out", fill_empty=[made.raw])


def test_json_of_a_data_set_in_a_hostile_mood(made: Converted, tmp_path: Path) -> None:
    content = json.loads((made.raw / "conversion.json").read_text().replace("img0061", "../img0061"))
    made.change(content)
    with pytest.raises(RefusedError):
        submit("btcv", made.predictions, made.raw, tmp_path / "out", name_template="{id}.nii.gz")
