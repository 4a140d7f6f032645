"""LiTS: cases are found by number in every layout; a flipped label is noticed, another geometry is not."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conversions import check_converted
from trees import lits
from trees.volumes import load

from nnunet_ext.dataset_conversion.cases import Found
from nnunet_ext.dataset_conversion.lits import LiTS, flipped
from nnunet_ext.dataset_conversion.options import Options
from nnunet_ext.dataset_conversion.run import convert
from nnunet_ext.dataset_conversion.sources import open_download
from nnunet_ext.errors import UserError

TRAINING = [f"liver_{number}" for number in (0, 1, 2, 28, 53)]


def find(*places: Path) -> Found:
    return LiTS().find(open_download(places))


def ids(found: Found, part: str) -> list[str]:
    return [case.id for case in found.cases if case.part == part]


def test_as_unpacked(tmp_path: Path) -> None:
    found = find(lits.build(tmp_path).place)
    assert (ids(found, "training"), ids(found, "test")) == (TRAINING, ["test_0", "test_1"])
    assert not found.faults
    assert not found.notices
    for case in found.cases:
        number = case.details["number"]
        assert case.images[0].base == f"{'test-' if case.part == 'test' else ''}volume-{number}.nii"
        assert case.label is None or case.label.base == f"segmentation-{number}.nii"


@pytest.mark.parametrize(
    ("volumes", "segmentations", "tests"),
    [
        ("", "", ""),
        ("volume_pt1", "segmentations", "Test-Data"),
        ("TrainingData/input", "TrainingData/segmentation", "TestData/input"),
    ],
)
def test_layouts(tmp_path: Path, volumes: str, segmentations: str, tests: str) -> None:
    other = tmp_path / "other"
    for path in list(lits.build(tmp_path).place.rglob("*.nii")):
        folder = {"v": volumes, "s": segmentations, "t": tests}[path.name[0]]
        (other / folder).mkdir(parents=True, exist_ok=True)
        shutil.move(path, other / folder / path.name)
    (other / "TrainingData" / "border").mkdir(parents=True, exist_ok=True)
    (other / "TrainingData" / "border" / "volume-0.pt").write_bytes(b"1")
    found = find(other)
    assert (ids(found, "training"), ids(found, "test"), found.faults) == (TRAINING, ["test_0", "test_1"], ())


def test_archives_beside_each_other(tmp_path: Path) -> None:
    place = lits.build(tmp_path).place
    for folder in list(place.iterdir()):
        shutil.make_archive(str(tmp_path / "zips" / folder.name), "zip", place, folder.name)
    found = find(tmp_path / "zips")
    assert (ids(found, "training"), len(ids(found, "test"))) == (TRAINING, 2)
    assert ids(find(tmp_path / "zips" / "Training Batch 1.zip"), "training") == TRAINING[:3]


def test_numbers_sort_by_value(tmp_path: Path) -> None:
    for number in (100, 9, 10):
        for kind in ("volume", "segmentation"):
            (tmp_path / f"{kind}-{number}.NII.GZ").write_bytes(b"1")
    assert ids(find(tmp_path), "training") == ["liver_9", "liver_10", "liver_100"]


def test_faults_are_named(tmp_path: Path) -> None:
    place = lits.build(tmp_path).place
    (place / "Training Batch 1" / "segmentation-0.nii").unlink()
    (place / "Training Batch 1" / "volume-1.nii").unlink()
    shutil.copy(place / "Training Batch 1" / "volume-2.nii", place / "volume-2.nii.gz")
    reasons = {fault.case: fault.reason for fault in find(place).faults}
    assert list(reasons) == ["liver_0", "liver_1", "liver_2"]
    assert "segmentation-0.nii was expected" in reasons["liver_0"]
    assert "has no image" in reasons["liver_1"]
    assert "duplicate id" in reasons["liver_2"]


def test_something_else(tmp_path: Path) -> None:
    (tmp_path / "liver_0.nii.gz").write_bytes(b"1")
    with pytest.raises(UserError, match=r"lits: no case found.*volume-0\.nii"):
        find(tmp_path)


def _pair(tmp_path: Path, number: int) -> tuple[np.ndarray, np.ndarray]:
    folder = lits.build(tmp_path).place / f"Training Batch {1 if number < 28 else 2}"
    return load(folder / f"volume-{number}.nii")[0], load(folder / f"segmentation-{number}.nii")[0]


def test_flip_is_found(tmp_path: Path) -> None:
    image, label = _pair(tmp_path, 0)
    assert flipped(image, label) is None
    for axis, name in enumerate("xyz"):
        reason = flipped(image, np.flip(label, axis))
        assert reason is not None
        assert f"flipped along {name}: " in reason
        assert "--flip-check off" in reason
    both = flipped(image, label[::-1, :, ::-1])
    assert both is not None
    assert "along x and z" in both


def test_flip_check_leaves_doubt_alone(tmp_path: Path) -> None:
    image, label = _pair(tmp_path, 53)
    assert flipped(image, label) is None
    assert flipped(np.full_like(image, -1000), label) is None
    assert flipped(image, np.zeros_like(label)) is None


def test_flip_check_can_be_off() -> None:
    assert LiTS().rules(Found(())).inspect is flipped
    assert LiTS(flip_check="off").rules(Found(())).inspect is None
    with pytest.raises(UserError, match="on or off"):
        LiTS(flip_check="maybe")


def test_layout_and_options() -> None:
    layout = LiTS().layout(Found(()))
    assert layout.labels == {"background": 0, "liver": (1, 2), "tumor": 2}
    assert layout.regions_class_order == (1, 2)
    assert layout.values() == {0, 1, 2}
    parser = argparse.ArgumentParser()
    LiTS.add_arguments(parser.add_argument_group())
    converter = LiTS.from_arguments(vars(parser.parse_args(["--plain-labels", "--flip-check", "off"])))
    layout = converter.layout(Found(()))
    assert layout.labels == {"background": 0, "liver": 1, "tumor": 2}
    assert layout.regions_class_order is None
    assert LiTS().rules(Found(())).aligned
    assert LiTS().default_split() == "cv"


@pytest.mark.parametrize("check", ["fast", "full"])
def test_conversion(nnunet_folders: Path, check: str) -> None:
    """Also of labels whose header is another one; the flipped one is left out."""
    tree = lits.build(nnunet_folders)
    report = convert("lits", [tree.place], Options(check=check))
    check_converted(report, tree)
    assert "flipped along x" in report.faults[0].reason
    described = json.loads((report.folder / "dataset.json").read_text())
    assert described["labels"]["liver"] == [1, 2]
    assert described["file_ending"] == ".nii.gz"
    assert described["numTraining"] == 4


def test_conversion_keeps_flipped_labels_on_request(nnunet_folders: Path) -> None:
    tree = lits.build(nnunet_folders)
    report = convert("lits", [tree.place], Options(keep_ending=True), {"flip_check": "off", "plain_labels": True})
    assert report.ok
    assert report.counts == {"training": 5, "test": 2}
    assert (report.folder / "imagesTr" / "liver_2_0000.nii").is_symlink()


def test_conversion_to_one_orientation(nnunet_folders: Path) -> None:
    """Files that are written in RAS keep image and label together, also where the label's header is wrong."""
    tree = lits.build(nnunet_folders)
    report = convert("lits", [tree.place], Options(reorient="files"), {"flip_check": "off"})
    for case in tree.training:
        label = load(report.folder / "labelsTr" / f"{case}.nii.gz")[0]
        image = load(report.folder / "imagesTr" / f"{case}_0000.nii.gz")[0]
        assert (image[label > 0] == 90).all(), case
