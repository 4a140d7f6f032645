"""MONAI's lists: which files they mean, what their cases are called, and the splits that they state."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from conversions import check_converted
from trees import monai_json
from trees.volumes import affine, image, save

from nnunet_ext.dataset_conversion.cases import Found
from nnunet_ext.dataset_conversion.monai_json import MonaiList
from nnunet_ext.dataset_conversion.options import Options
from nnunet_ext.dataset_conversion.run import convert
from nnunet_ext.dataset_conversion.sources import open_download
from nnunet_ext.errors import UserError


def find(place: Path, **own: Any) -> tuple[MonaiList, Found]:
    converter = MonaiList(**own)
    return converter, converter.find(open_download([place]))


def refused(place: Path, **own: Any) -> str:
    with pytest.raises(UserError) as caught:
        find(place, **own)
    return str(caught.value)


def changed(path: Path, **keys: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))


@pytest.mark.parametrize("place", ["list", "folder", "archive", "root"])
def test_the_list_can_lie_anywhere(tmp_path: Path, place: str) -> None:
    tree = monai_json.build(tmp_path)
    own: dict[str, Any] = {}
    named = tree.place if place == "list" else tree.place.parent
    if place == "archive":
        named = tmp_path / "btcv.zip"
        with zipfile.ZipFile(named, "w") as archive:
            for path in sorted(tree.place.parent.rglob("*.*")):
                archive.write(path, path.relative_to(tmp_path))
    if place == "root":
        (tmp_path / "lists").mkdir()
        named = tree.place.rename(tmp_path / "lists/btcv_dataset.json")
        own["root"] = str(tree.place.parent)
    converter, found = find(named, **own)
    cases = {case.id: case for case in found.cases}
    assert found.faults == ()
    assert {case.id for case in found.cases if case.part == "training"} == set(tree.training)
    assert {case.id for case in found.cases if case.part == "test"} == set(tree.test)
    label = cases["img0035"].label
    assert label is not None
    assert label.stem == "label0035"
    assert converter.layout(found).labels == {"background": 0, "spleen": 1, "rkid": 2, "lkid": 3}
    assert converter.layout(found).channel_names == ("CT",)
    assert converter.rules(found).ct
    split = converter.own_splits(found.cases)[converter.default_split()]()
    assert split.folds == ((("img0001", "img0002", "img0021"), ("img0035",)),)
    names = {"list": "btcv_dataset", "folder": "data", "archive": "btcv", "root": "btcv_dataset"}
    assert converter.default_name(open_download([named])) == names[place]


def test_lists_of_another_machine(tmp_path: Path) -> None:
    tree = monai_json.build(tmp_path, form="alice")
    converter, found = find(tree.place, **tree.own)
    assert [(case.id, case.part) for case in found.cases] == [(f"Case_0000{n}", "unlabelled") for n in (1, 2, 3)]
    assert "without their beginnings /mnt/disk1/alice" in found.notices[0]
    assert converter.layout(found).labels == {"background": 0}
    assert converter.default_split() == "cv"


def test_names_of_files_alone_say_too_little(tmp_path: Path) -> None:
    save(tmp_path / "ct.nii.gz", image(1), affine())
    (tmp_path / "a.json").write_text(json.dumps([{"image": f"/x/Case_{n}/ct.nii.gz"} for n in (1, 2)]))
    assert "none of its 2 cases is there" in refused(tmp_path / "a.json")
    assert "--root DIR" in refused(tmp_path / "a.json")


def test_several_channels_and_folds(tmp_path: Path) -> None:
    tree = monai_json.build(tmp_path, form="folds")
    converter, found = find(tree.place, **tree.own)
    assert [case.id for case in found.cases] == list(tree.training)
    assert [file.stem.rpartition("_")[2] for file in found.cases[0].images] == ["flair", "t1ce"]
    split = converter.own_splits(found.cases)["list"]()
    assert [len(train) for train, _ in split.folds] == [4, 4, 4]
    assert split.folds[1][1] == ("BraTS2021_00001", "BraTS2021_00004")
    assert converter.default_split() == "list"
    assert converter.rules(found).label_map == {0: 0, 1: 1, 2: 2, 4: 3}


@pytest.mark.parametrize(
    ("paths", "ids"),
    [
        (["a/x.nii.gz", "b/y.nii.gz"], ["x", "y"]),
        (["a/x_0000.nii.gz", "a/y_0000.nii.gz"], ["x", "y"]),
        (["a/ct.nii.gz", "b/ct.nii.gz"], ["a", "b"]),
        (["p1/v1/ct.nii.gz", "p2/v1/ct.nii.gz"], ["p1_v1", "p2_v1"]),
        (["a/x.nii.gz", "a/y.nii.gz", "b/x.nii.gz"], ["a_x", "a_y", "b_x"]),
    ],
)
def test_case_ids(tmp_path: Path, paths: list[str], ids: list[str]) -> None:
    for path in paths:
        save(tmp_path / path, image(1), affine())
    (tmp_path / "list.json").write_text(json.dumps({"training": paths}))
    assert [case.id for case in find(tmp_path / "list.json")[1].cases] == ids


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    tree = monai_json.build(tmp_path)
    folder = tree.place.parent
    (folder / "labelsTr/label0002.nii.gz").unlink()
    (folder / "imagesTr/img0035.nii.gz").unlink()
    converter, found = find(tree.place)
    reasons = {fault.case: fault.reason for fault in found.faults}
    assert f"training 1 names labelsTr/label0002.nii.gz, not found below {folder}" in reasons["img0002"]
    assert "validation 0 names imagesTr/img0035.nii.gz" in reasons["img0035"]
    assert converter.default_split() == "cv"  # nothing is left that would validate
    with pytest.raises(UserError, match="the list has no split"):
        converter.own_splits(found.cases)["list"]()


def test_an_image_listed_twice_is_a_duplicate(tmp_path: Path) -> None:
    tree = monai_json.build(tmp_path)
    pair = {"image": "imagesTr/img0001.nii.gz", "label": "labelsTr/label0001.nii.gz"}
    changed(tree.place, training=[pair], validation=[pair])
    _, found = find(tree.place)
    assert "duplicate id: validation 0 and training 0 of the list" in found.faults[0].reason
    assert [case.part for case in found.cases] == ["test"]


@pytest.mark.parametrize("path", ["../outside.nii.gz", "imagesTr/../../outside.nii.gz", "/etc/passwd"])
def test_lists_reach_no_files_outside(tmp_path: Path, path: str) -> None:
    tree = monai_json.build(tmp_path)
    save(tmp_path / "outside.nii.gz", image(1), affine())
    changed(tree.place, test=[path])
    _, found = find(tree.place)
    assert len(found.faults) == 1
    assert not [case for case in found.cases if case.part == "test"]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("{", "not a readable JSON file"),
        ("3", "no list of cases"),
        ('{"labels": {}}', "it needs one under 'training', 'validation'"),
        ('{"training": [{"label": "a"}]}', "entry 0 of 'training' is not understood"),
        ('{"training": [{"image": "a", "fold": "x"}]}', "is not understood"),
        ('{"training": []}', "no case found"),
    ],
)
def test_lists_that_are_none(tmp_path: Path, content: str, text: str) -> None:
    tree = monai_json.build(tmp_path)
    tree.place.write_text(content)
    assert text in refused(tree.place)


def test_several_lists_in_a_folder(tmp_path: Path) -> None:
    tree = monai_json.build(tmp_path)
    (tree.place.parent / "fold1.json").write_text(tree.place.read_text())
    (tree.place.parent / "settings.json").write_text("{")
    assert "several lists are there" in refused(tree.place.parent)
    assert len(find(tree.place)[1].cases) == 5
    tree.place.unlink()
    (tree.place.parent / "fold1.json").unlink()
    assert "no case found" in refused(tree.place.parent)


def test_images_must_be_as_many_as_channels(tmp_path: Path) -> None:
    tree = monai_json.build(tmp_path, form="folds")
    content = json.loads(tree.place.read_text())
    del content["training"][0]["image"][1]
    content["training"][1]["image"] *= 2
    tree.place.write_text(json.dumps(content))
    _, found = find(tree.place, **tree.own)
    [fault] = found.faults
    assert "training 1: 4 images for 2 channels (FLAIR, T1ce)" in fault.reason
    assert len(found.cases) == 5  # one image of several channels is split along its fourth axis, if it has one


@pytest.mark.parametrize("form", ["btcv", "folds"])
def test_conversion(nnunet_folders: Path, form: monai_json.Form) -> None:
    tree = monai_json.build(nnunet_folders / "download", form=form)
    report = convert(tree.key, [tree.place], Options(), tree.own)
    check_converted(report, tree, {0: 0, 1: 1, 2: 2, 4: 3} if form == "folds" else None)
    splits = json.loads((nnunet_folders / f"nnUNet_preprocessed/{report.name}/splits_final.json").read_text())
    assert [len(split["train"]) for split in splits] == ([3] if form == "btcv" else [4, 4, 4])


def test_conversion_of_images_alone(nnunet_folders: Path) -> None:
    tree = monai_json.build(nnunet_folders / "download", form="alice")
    report = convert(tree.key, [tree.place], Options(), tree.own)
    assert report.ok
    assert sorted(path.name for path in (report.folder / "imagesUn").iterdir()) == [
        f"Case_0000{number}_0000.nii.gz" for number in (1, 2, 3)
    ]
