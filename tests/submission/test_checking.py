"""Folders and zips that were made elsewhere."""

from __future__ import annotations

import gzip
import shutil
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import converted
import nibabel
import numpy as np
import pytest
from trees.volumes import load, save

from nnunet_ext.cli import main
from nnunet_ext.errors import UserError
from nnunet_ext.submission import check, submit


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A submission to LiTS, and the raw data set."""
    root = tmp_path_factory.mktemp("lits")
    made = converted.complete(root, "lits")
    submit("lits", made.predictions, made.raw, root / "out")
    return root / "out", made.raw


@pytest.fixture
def folder(right: tuple[Path, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(right[0], tmp_path / "sent"))


def _kinds(place: Path, **options: Any) -> set[tuple[str, str]]:
    return {(problem.kind, problem.where) for problem in check(place, **options).problems}


def _name(number: int) -> str:
    return f"test-segmentation-{number}.nii"


def test_everything_that_is_wrong_with_a_folder(folder: Path, right: tuple[Path, Path]) -> None:
    labels, affine = load(folder / _name(0))
    (folder / _name(0)).unlink()
    save(folder / _name(1), labels, load(folder / _name(1))[1], dtype=np.int16)
    save(folder / _name(2), np.where(labels == 1, 4, labels), load(folder / _name(2))[1])
    save(folder / _name(3), labels, load(folder / _name(3))[1], scl_slope=2.0, scl_inter=0)
    (folder / f"{_name(4)}.gz").write_bytes(gzip.compress((folder / _name(4)).read_bytes()))
    (folder / _name(4)).unlink()
    (folder / _name(5)).write_bytes(gzip.compress((folder / _name(5)).read_bytes()))
    (folder / "sub").mkdir()
    (folder / _name(6)).rename(folder / "sub" / _name(6))
    (folder / "._test-segmentation-7.nii").write_bytes(b"mac")
    (folder / "test_007.nii").write_bytes(b"")
    (folder / _name(8)).write_bytes((folder / _name(8)).read_bytes()[:-20])
    save(folder / _name(9), labels[..., None], affine)
    nibabel.save(nibabel.Nifti2Image(labels, load(folder / _name(10))[1]), folder / _name(10))
    wrong = {
        ("missing", _name(0)),
        ("header", _name(1)),
        ("values", _name(2)),
        ("header", _name(3)),
        ("values", _name(3)),
        ("missing", _name(4)),
        ("compression", f"{_name(4)}.gz"),
        ("compression", _name(5)),
        ("missing", _name(6)),
        ("layout", f"sub/{_name(6)}"),
        ("extra", "._test-segmentation-7.nii"),
        ("extra", "test_007.nii"),
        ("unreadable", _name(8)),
        ("shape", _name(9)),
        ("header", _name(10)),
    }
    assert _kinds(folder) == wrong
    content = (folder / _name(13)).read_bytes()
    (folder / _name(13)).write_bytes(content[:280] + np.float32(np.nan).tobytes() + content[284:])  # srow_x
    (folder / _name(14)).write_bytes((folder / _name(14)).read_bytes() + bytes(1000))
    wrong |= {("header", _name(14))}
    assert _kinds(folder) == wrong | {("header", _name(13))}
    wrong |= {("geometry", _name(13))}
    save(folder / _name(11), labels[:-1], load(folder / _name(11))[1])
    save(folder / _name(12), labels, np.eye(4))
    assert _kinds(folder, raw=right[1]) == wrong | {("shape", _name(11)), ("geometry", _name(12))}


def test_int8_is_read_by_lits(folder: Path) -> None:
    labels, affine = load(folder / _name(0))
    save(folder / _name(0), labels, affine, dtype=np.int8)
    assert _kinds(folder) == set()


def _zipped(folder: Path, target: Path, prefix: str = "") -> Path:
    with zipfile.ZipFile(target, "w") as archive:
        for path in sorted(folder.iterdir()):
            archive.write(path, prefix + path.name)
    return target


def test_zip_with_a_folder_around_the_files(folder: Path, tmp_path: Path) -> None:
    found = check(_zipped(folder, tmp_path / "a.zip", "my results/"), "lits").problems
    assert sum(problem.kind == "layout" for problem in found) == 71
    assert "must be at the root" in str(found[-2])


def test_zips_of_ill_repute(folder: Path, tmp_path: Path) -> None:
    path = _zipped(folder, tmp_path / "a.zip")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("../../evil.nii", b"")
        archive.writestr("__MACOSX/._x.nii", b"")
        link = zipfile.ZipInfo("link.nii")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr(_name(3), b"")
        archive.writestr("junk/", b"")
        archive.writestr(_name(70), (folder / _name(0)).read_bytes(), zipfile.ZIP_LZMA)
    wrong = {("layout", "../../evil.nii"), ("extra", "__MACOSX/._x.nii"), ("layout", "link.nii"), ("layout", _name(3))}
    assert wrong | {("layout", "junk/"), ("compression", _name(70))} <= _kinds(path)
    content = bytearray(_zipped(folder, tmp_path / "b.zip").read_bytes())
    content[200] ^= 255
    (tmp_path / "b.zip").write_bytes(content)
    assert _kinds(tmp_path / "b.zip") == {("unreadable", _name(0))}
    (tmp_path / "b.zip").write_bytes(content[:5000])
    with pytest.raises(UserError, match="neither a folder nor a readable zip"):
        check(tmp_path / "b.zip")


def test_bombs_are_not_unpacked(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither more than the header states, nor whatever it states."""
    monkeypatch.setattr(zipfile.ZipFile, "read", None)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(_name(0), (folder / _name(0)).read_bytes() + bytes(1 << 26))
        content = bytearray((folder / _name(1)).read_bytes())
        content[42:48] = np.array([32767, 32767, 32767], "<i2").tobytes()
        archive.writestr(_name(1), bytes(content))
    tracemalloc.start()
    found = {(problem.kind, problem.where) for problem in check(tmp_path / "a.zip", "lits").problems}
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert {("header", _name(0)), ("unreadable", _name(1))} <= found
    assert peak < 1 << 24


def test_missing_is_excused_on_request(folder: Path) -> None:
    (folder / _name(0)).unlink()
    assert _kinds(folder, allow_incomplete=True) == set()


def _amos(folder: Path, numbers: list[int]) -> Path:
    content = save(folder.parent / "zero.nii.gz", np.zeros((2, 2, 2), np.uint8), np.eye(4)).read_bytes()
    folder.mkdir(parents=True)
    for number in numbers:
        (folder / f"amos_{number:04d}.nii.gz").write_bytes(content)
    return folder


def test_amos_without_its_folder(tmp_path: Path) -> None:
    done = check(_amos(tmp_path / "results", converted.AMOS_CT))
    assert done.challenge.key == "amos_ct"
    assert {problem.kind for problem in done.problems} == {"layout", "missing"}


def test_amos_wants_the_hundred_validation_cases(tmp_path: Path) -> None:
    first, *others = converted.AMOS_CT
    _amos(tmp_path / "a" / "results", [*others, first + 1])
    (tmp_path / "a" / "zero.nii.gz").unlink()
    wrong = {("missing", f"results/amos_{first:04d}.nii.gz"), ("extra", f"results/amos_{first + 1:04d}.nii.gz")}
    assert _kinds(tmp_path / "a") == wrong
    assert _kinds(tmp_path / "a", challenge="amos_ctmr") == wrong
    _amos(tmp_path / "b" / "results", [*converted.AMOS_CT, *range(507, 527)])
    (tmp_path / "b" / "zero.nii.gz").unlink()
    done = check(tmp_path / "b")
    assert (done.challenge.key, done.problems) == ("amos_ctmr", [])
    (tmp_path / "b" / "results" / "amos_0510.nii.gz").rename(tmp_path / "b" / "results" / "amos_0601.nii.gz")
    assert _kinds(tmp_path / "b") == {("extra", "results/amos_0601.nii.gz"), ("missing", "results")}


def test_decathlon_without_a_task(tmp_path: Path) -> None:
    save(tmp_path / "x" / "Task02_Heart" / "la_001.nii.gz", np.zeros((2, 2, 2), np.uint8), np.eye(4))
    wrong = _kinds(tmp_path / "x")
    assert len(wrong) == 10
    assert ("missing", "Task01_BrainTumour/") in wrong
    assert ("missing", "Task02_Heart") in wrong


def test_challenge_that_cannot_be_told(tmp_path: Path) -> None:
    save(tmp_path / "BraTS-GLI-00001-000.nii.gz", np.zeros((2, 2, 2), np.uint8), np.eye(4))
    with pytest.raises(UserError, match="brats2023gli and brats2024gli"):
        check(tmp_path)
    assert check(tmp_path, "brats2024gli").problems == []
    assert check(tmp_path, "brats2024gli").notices
    (tmp_path / "BraTS-GLI-00001-000.nii.gz").rename(tmp_path / "other.nii.gz")
    with pytest.raises(UserError, match="no challenge has files such as"):
        check(tmp_path)
    assert {kind for kind, _ in _kinds(tmp_path, challenge="brats2024gli")} == {"layout", "extra"}
    with pytest.raises(UserError, match="does not exist"):
        check(tmp_path / "none")


def test_names_of_a_template_where_the_cases_are_unknown(tmp_path: Path) -> None:
    for number in range(219):
        (tmp_path / f"pred_BraTS2021_{number:05d}.nii.gz").write_bytes(b"")
    found = check(tmp_path, "brats2021", name_template="pred_{id}.nii.gz").problems
    assert {problem.kind for problem in found} == {"unreadable"}
    assert {kind for kind, _ in _kinds(tmp_path, challenge="brats2021")} == {"extra", "layout", "missing"}
    with pytest.raises(UserError, match="cannot be filled in"):
        check(tmp_path, "brats2021", name_template="{")


def test_names_that_only_the_raw_data_set_knows(tmp_path: Path) -> None:
    cases = [
        converted.Made(f"patient110_frame{frame}", group="patient110", details={"phase": phase})
        for frame, phase in (("01", "ES"), ("12", "ED"))
    ]
    made = converted.data_set(tmp_path, "acdc", "Dataset027_ACDC", cases, range(4))
    options: dict[str, Any] = {"name_template": "{id}.nii.gz", "allow_incomplete": True}
    report = submit("acdc", made.predictions, made.raw, tmp_path / "out", **options)
    assert (list(report["files"]), len(report["missing"])) == ([f"{case.id}.nii.gz" for case in cases], 98)
    assert _kinds(tmp_path / "out", raw=made.raw, **options) == set()
    with pytest.raises(UserError, match="not id: give --raw"):
        check(tmp_path / "out", "acdc", name_template="{id}.nii.gz")


def test_other_names_of_btcv_are_told_how_to_allow(tmp_path: Path) -> None:
    save(tmp_path / "img0061.nii.gz", np.zeros((2, 2, 2), np.uint8), np.eye(4))
    found = check(tmp_path).problems
    assert any("--name-template 'img{num:04d}.nii.gz'" in problem.text for problem in found)


def test_wrong_raw_data_set(tmp_path: Path) -> None:
    case = converted.Made("patient101_frame01")
    made = converted.data_set(tmp_path, "acdc", "Dataset027_ACDC", [case], range(4))
    with pytest.raises(UserError, match=r"Dataset027_ACDC has none of btcv's cases \(img0061, 61\)"):
        check(tmp_path, "btcv", made.raw)


def test_images_and_background_are_noticed(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels, affine = load(folder / _name(0))
    save(folder / _name(0), np.zeros_like(labels), affine)
    assert check(folder).notices == [f"1 of 70 label maps are background only: {_name(0)}"]
    save(folder / _name(0), np.arange(labels.size, dtype=np.int16).reshape(labels.shape), affine)
    assert main(["submit", "check", str(folder)]) == 1
    assert f"{labels.size} values from 0 to {labels.size - 1}: no label maps?" in capsys.readouterr().out
