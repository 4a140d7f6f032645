"""Complete submissions: every challenge's names, values, types, geometry and bytes."""

from __future__ import annotations

import gzip
import json
import zipfile
from pathlib import Path
from typing import Any

import converted
import nibabel
import numpy as np
import pytest
from converted import Converted, Made, data_set
from trees.volumes import affine

from nnunet_ext.dataset_conversion.msd_tasks import TASKS
from nnunet_ext.submission import check, submit

NAMES = {
    "btcv": ("", "img0061", "label0061.nii.gz"),
    "acdc": ("", "patient110_frame12", "patient110_ED.nii.gz"),
    "brats2020": ("", "BraTS20_Validation_125", "BraTS20_Validation_125.nii.gz"),
    "brats2021": ("", "BraTS2021_00219", "BraTS2021_00219.nii.gz"),
    "brats2023gli": ("", "BraTS-GLI-00000-000", "BraTS-GLI-00000-000.nii.gz"),
    "brats2024gli": ("", "BraTS-GLI-00003-101", "BraTS-GLI-00003-101.nii.gz"),
    "lits": ("", "test_7", "test-segmentation-7.nii"),
    "amos_ct": ("results/", "amos_0008", "amos_0008.nii.gz"),
    "amos_ctmr": ("results/", "amos_0507", "amos_0507.nii.gz"),
    "flare22": ("", "FLARETs_0050", "FLARETs_0050.nii.gz"),
}


def _open(content: bytes) -> Any:
    return nibabel.Nifti1Image.from_bytes(gzip.decompress(content) if content[:1] == b"\x1f" else content)


def _unpacked(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        return {entry.filename: archive.read(entry) for entry in archive.infolist()}


@pytest.mark.parametrize("key", NAMES)
def test_complete_submission_of_every_challenge(tmp_path: Path, key: str) -> None:
    made = converted.complete(tmp_path, key)
    cases = [case for case in made.truth if not case.startswith("patient001")]
    report = submit(key, made.predictions, made.raw, tmp_path / "out", processes=2)
    assert report["complete"]
    folder, case, name = NAMES[key]
    files = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert len(files) == len(cases) == len(report["files"])
    assert report["files"][folder + name]["case"] == case
    unpacked = _unpacked(tmp_path / "out.zip")
    assert set(unpacked) == files
    for path, content in unpacked.items():
        assert content == (tmp_path / "out" / path).read_bytes()
        image = _open(content)
        assert (content[:2] == b"\x1f\x8b") == path.endswith(".gz")
        truth = report["files"][path]["case"]
        assert np.array_equal(np.asanyarray(image.dataobj), made.truth[truth]), path
        assert image.get_data_dtype() == np.uint8
        assert np.array_equal(image.affine, made.headers[truth].get_best_affine())
    again = check(tmp_path / "out", raw=made.raw)
    assert (again.challenge.key, again.problems) == (key, [])
    if key not in ("brats2023gli", "brats2024gli"):
        told = check(tmp_path / "out.zip")
        assert (told.challenge.key, told.problems) == (key, [])


def test_same_input_same_bytes(tmp_path: Path) -> None:
    made = converted.complete(tmp_path, "flare22")
    reports = [
        submit("flare22", made.predictions, made.raw, tmp_path / name, processes=n) for name, n in (("a", 1), ("b", 3))
    ]
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    assert reports[0]["files"] == reports[1]["files"]
    first = (tmp_path / "a" / "FLARETs_0001.nii.gz").read_bytes()
    assert first[4:8] == bytes(4)
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_zip_alone(tmp_path: Path) -> None:
    made = converted.complete(tmp_path, "lits")
    report = submit("lits", made.predictions, made.raw, tmp_path / "up.zip")
    assert report["folder"] is None
    assert not (tmp_path / "up").exists()
    assert len(_unpacked(tmp_path / "up.zip")) == 70
    assert sorted(path.name for path in tmp_path.glob("up*")) == ["up.report.json", "up.zip"]
    assert json.loads((tmp_path / "up.report.json").read_text()) == report


def test_other_names_on_request(tmp_path: Path) -> None:
    made = converted.complete(tmp_path, "btcv")
    template = "img{num:04d}.nii.gz"
    submit("synapse", made.predictions, made.raw, tmp_path / "out", name_template=template)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {f"img{n:04d}.nii.gz" for n in range(61, 81)}
    assert check(tmp_path / "out", name_template=template).problems == []


ODD: dict[str, dict[str, Any]] = {
    "qform only": {"header": {"sform_code": 0}},
    "sform only": {"header": {"qform_code": 0, "quatern_b": 0, "quatern_d": 0}},
    "scanner and talairach codes": {"header": {"qform_code": 1, "sform_code": 3}},
    "no codes": {"header": {"qform_code": 0, "sform_code": 0}},
    "metres": {"header": {"xyzt_units": 1}},
    "no units": {"header": {"xyzt_units": 0}},
    "seconds in pixdim": {"header": {"xyzt_units": 10, "pixdim": [-1, 1, 1, 2, 0.7, 0, 0, 0]}},
    "turned to RAS": {"written": "RAS"},
    "axes swapped": {"written": "SLA"},
    "swapped, without qform": {"written": "ARS", "header": {"qform_code": 0}},
    "nearly perpendicular": {"transform": np.array([[1, 5e-4, 0, 3], [0, 1, 0, 4], [0, 0, 2, 5], [0, 0, 0, 1.0]])},
}


def _odd_cases(folder: Path) -> Converted:
    cases = [Made(f"img{61 + number:04d}", **options) for number, options in enumerate(ODD.values())] + [
        Made(f"img{number:04d}") for number in range(61 + len(ODD), 81)
    ]
    return data_set(folder, "btcv", "Dataset803_BTCV", cases, range(14))


def test_header_of_the_original_comes_back_bit_for_bit(tmp_path: Path) -> None:
    made = _odd_cases(tmp_path)
    submit("btcv", made.predictions, made.raw, tmp_path / "out")
    for number, name in enumerate(ODD):
        content = (tmp_path / "out" / f"label{61 + number:04d}.nii.gz").read_bytes()
        image = _open(content)
        assert np.frombuffer(gzip.decompress(content)[112:120], "<f4").tolist() == [1, 0]  # slope and intercept
        wanted = made.headers[f"img{61 + number:04d}"]
        for key in ("dim", "pixdim", "qform_code", "sform_code", "xyzt_units", "srow_x", "srow_y", "srow_z"):
            assert image.header[key].tobytes() == wanted[key].tobytes(), (name, key)
        for key in ("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"):
            assert image.header[key].tobytes() == wanted[key].tobytes(), (name, key)
        assert np.array_equal(np.asanyarray(image.dataobj), made.truth[f"img{61 + number:04d}"]), name


def test_conversion_that_made_axes_perpendicular(tmp_path: Path) -> None:
    made = _odd_cases(tmp_path)
    record = made.record()
    case = f"img{61 + list(ODD).index('nearly perpendicular'):04d}"
    record["cases"][case]["geometry"]["written"]["affine"][0][1] = 0.0
    made.change(record)
    submit("btcv", made.predictions, made.raw, tmp_path / "out")
    image = _open((tmp_path / "out" / case.replace("img", "label")).with_suffix(".nii.gz").read_bytes())
    assert image.affine[0, 1] == np.float32(5e-4)


def _decathlon(folder: Path, numbers: tuple[int, ...]) -> list[Converted]:
    found = []
    for number in numbers:
        task = TASKS[number - 1]
        cases = [Made(f"{task.prefix}_{k:03d}") for k in range(1, 2 * task.test, 2)]
        cases.append(Made(f"{task.prefix}_500", "training", label=True))
        name = f"Dataset{number:03d}_{task.name}"
        made = data_set(folder, "msd", name, cases, range(len(task.labels) + 1))
        (made.predictions / f"{task.prefix}_500.nii.gz").unlink()
        found.append(made)
    return found


def test_decathlon_with_tasks_that_nobody_predicted(tmp_path: Path) -> None:
    made = _decathlon(tmp_path, (2, 9, 5))
    downloads = []
    for task in TASKS:
        if task.folder not in ("Task02_Heart", "Task09_Spleen", "Task05_Prostate"):
            downloads.append(_download(tmp_path / task.folder, task.prefix, task.test))
    report = submit(
        "msd",
        [one.predictions for one in made],
        [one.raw for one in made],
        tmp_path / "out",
        fill_empty=downloads,
    )
    assert len(report["files"]) == sum(task.test for task in TASKS)
    assert sum("BACKGROUND ONLY" in notice for notice in report["notices"]) == 7
    image = _open((tmp_path / "out" / "Task01_BrainTumour" / "BRATS_001.nii.gz").read_bytes())
    assert image.shape == (4, 3, 2)
    assert np.array_equal(image.affine, affine(seed=9).astype(np.float32))
    assert not np.asanyarray(image.dataobj).any()
    heart = _open((tmp_path / "out" / "Task02_Heart" / "la_003.nii.gz").read_bytes())
    assert np.array_equal(np.asanyarray(heart.dataobj), made[0].truth["la_003"])
    done = check(tmp_path / "out.zip", raw=[one.raw for one in made])
    assert (done.challenge.key, done.problems) == ("msd", [])


def _download(folder: Path, prefix: str, count: int) -> Path:
    """A task's test images; those of the first are 4D."""
    (folder / "imagesTs").mkdir(parents=True)
    shape = (4, 3, 2, 4) if prefix == "BRATS" else (4, 3, 2)
    content = gzip.compress(nibabel.Nifti1Image(np.zeros(shape, np.float32), affine(seed=9)).to_bytes(), 1)
    for number in range(1, count + 1):
        (folder / "imagesTs" / f"{prefix}_{number:03d}.nii.gz").write_bytes(content)
    (folder / "imagesTs" / f"._{prefix}_001.nii.gz").write_bytes(b"mac")
    return folder
