"""FLARE22: labelled, validation and unlabelled cases are told apart by their names, in folders and archives."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from conversions import check_converted
from trees import flare22

from nnunet_ext.dataset_conversion.cases import Found
from nnunet_ext.dataset_conversion.flare22 import FLARE22, ORGANS
from nnunet_ext.dataset_conversion.run import convert
from nnunet_ext.dataset_conversion.sources import open_download
from nnunet_ext.errors import UserError

TRAINING = [f"FLARE22_Tr_000{number}" for number in (1, 2, 3)]
TEST = ["FLARETs_0001", "FLARETs_0002"]
UNLABELLED = ["Case_00001", "Case_00002"]


def find(place: Path, unlabelled: str = "link") -> Found:
    return FLARE22(unlabelled).find(open_download([place]))


def ids(found: Found, part: str) -> list[str]:
    return [case.id for case in found.cases if case.part == part]


def test_as_downloaded(tmp_path: Path) -> None:
    tree = flare22.build(tmp_path)
    found = find(tree.place)
    assert ids(found, "training") == TRAINING == list(tree.training)
    assert ids(found, "test") == TEST == list(tree.test)
    assert ids(found, "unlabelled") == UNLABELLED
    assert {fault.case for fault in found.faults} == tree.faulty
    assert "has no image" in found.faults[0].reason
    for case in found.cases:
        assert case.images[0].base == f"{case.id}_0000.nii.gz"
        assert (case.label is None) == (case.part != "training")


def test_without_the_unlabelled(tmp_path: Path) -> None:
    found = find(flare22.build(tmp_path).place, "none")
    assert ids(found, "unlabelled") == []
    assert ids(found, "training") == TRAINING
    assert found.notices == ("2 unlabelled cases are left where they are (--unlabelled none)",)


@pytest.mark.parametrize("inside", [True, False])
def test_labelled_cases_in_archives(tmp_path: Path, inside: bool) -> None:
    """images.zip and labels.zip, whose members lie in a folder of that name or at the root."""
    place = flare22.build(tmp_path, complete=True).place
    folder = place / "Training" / "FLARE22_LabeledCase50"
    for kind in ("images", "labels"):
        root, base = (folder, kind) if inside else (folder / kind, ".")
        shutil.make_archive(str(tmp_path / kind), "zip", root, base)
        shutil.rmtree(folder / kind)
        shutil.move(tmp_path / f"{kind}.zip", folder)
    found = find(place)
    assert (ids(found, "training"), found.faults) == (TRAINING, ())
    assert len(ids(found, "test")) == 50


def test_names_without_the_suffix(tmp_path: Path) -> None:
    place = flare22.build(tmp_path, complete=True).place
    for path in list(place.rglob("*_0000.nii.gz")):
        path.rename(path.with_name(path.name.replace("_0000.nii", ".nii")))
    found = find(place)
    assert (ids(found, "training"), len(ids(found, "test")), found.faults) == (TRAINING, 50, ())


def test_labels_of_the_validation(tmp_path: Path) -> None:
    tree = flare22.build(tmp_path, complete=True)
    shutil.copytree(tree.place / "Training" / "FLARE22_LabeledCase50" / "labels", tree.place / "Validation" / "labels")
    for path in (tree.place / "Validation" / "labels").iterdir():
        path.rename(path.with_name(path.name.replace("FLARE22_Tr", "FLARETs")))
    cases = {case.id: case for case in find(tree.place).cases}
    assert cases["FLARETs_0001"].label is not None
    assert cases["FLARETs_0004"].label is None


def test_unlabelled_cases_of_any_name(tmp_path: Path) -> None:
    folder = tmp_path / "AbdomenCT" / "UnlabelCase1-500" / "part1"
    folder.mkdir(parents=True)
    (folder / "TCIA_12-b_0000.nii.gz").write_bytes(b"1")
    (folder / "other.nii.gz").write_bytes(b"1")
    assert ids(find(tmp_path), "unlabelled") == ["TCIA_12-b", "other"]


def test_duplicate_id(tmp_path: Path) -> None:
    place = flare22.build(tmp_path, complete=True).place
    again = place / "copy" / "FLARE22_Tr_0002_0000.nii.gz"
    again.parent.mkdir()
    shutil.copy(place / "Training" / "FLARE22_LabeledCase50" / "images" / again.name, again)
    (fault,) = find(place).faults
    assert fault.case == "FLARE22_Tr_0002"
    assert "duplicate id: 2 files claim to be its image" in fault.reason


def test_something_else(tmp_path: Path) -> None:
    (tmp_path / "FLARE23_0001.nii.gz").write_bytes(b"1")
    with pytest.raises(UserError, match=r"flare22: no case found.*FLARE22_Tr_0001_0000"):
        find(tmp_path)


def test_layout_and_rules() -> None:
    layout = FLARE22().layout(Found(()))
    assert layout.channel_names == ("CT",)
    assert layout.labels == {name: value for value, name in enumerate(ORGANS)}
    assert layout.labels["left kidney"] == 13
    assert FLARE22().rules(Found(())).ct
    assert FLARE22().default_split() == "cv"
    with pytest.raises(UserError, match="none or link"):
        FLARE22(unlabelled="copy")


def test_conversion(nnunet_folders: Path) -> None:
    tree = flare22.build(nnunet_folders)
    report = convert("flare22", [tree.place])
    check_converted(report, tree)
    assert report.counts == {"training": 3, "test": 2, "unlabelled": 2}
    listed = json.loads((report.folder / "unlabelled.json").read_text())
    assert [entry["case"] for entry in listed] == UNLABELLED
    assert all((report.folder / name).is_file() for entry in listed for name in entry["images"])
