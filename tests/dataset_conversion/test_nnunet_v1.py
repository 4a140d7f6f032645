"""Tasks of nnU-Net v1 are found in all forms in which they are shipped."""

from __future__ import annotations

import json
import pickle
import shutil
import tarfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conversions import check_converted
from trees import nnunet_v1
from trees.volumes import affine, image, save

from nnunet_ext.dataset_conversion.cases import Found
from nnunet_ext.dataset_conversion.nnunet_v1 import NnunetV1Task
from nnunet_ext.dataset_conversion.options import Options
from nnunet_ext.dataset_conversion.run import convert
from nnunet_ext.dataset_conversion.sources import open_download
from nnunet_ext.errors import UserError


def find(place: Path, **own: Any) -> tuple[NnunetV1Task, Found]:
    converter = NnunetV1Task(**own)
    return converter, converter.find(open_download([place]))


def parts(found: Found) -> dict[str, list[str]]:
    made: dict[str, list[str]] = {}
    for case in found.cases:
        made.setdefault(case.part, []).append(case.id)
    return made


def refused(place: Path, **own: Any) -> str:
    with pytest.raises(UserError) as caught:
        find(place, **own)
    return str(caught.value)


@pytest.mark.parametrize("form", ["v1", "decathlon", "both"])
def test_each_form_holds_the_same_training_cases(tmp_path: Path, form: nnunet_v1.Form) -> None:
    tree = nnunet_v1.build(tmp_path, form=form)
    converter, found = find(tree.place)
    assert parts(found)["training"] == list(tree.training)
    assert parts(found).get("test", []) == list(tree.test)
    assert found.faults == ()
    number = found.cases[1].label
    assert number is not None
    assert number.stem.endswith("0005")  # label0005 of img0005 in decathlon style
    layout, rules = converter.layout(found), converter.rules(found)
    assert layout.channel_names == ("CT",)
    assert layout.labels == {name: value for value, name in enumerate(nnunet_v1.ORGANS)}
    assert layout.reference == "nobody's"
    assert (rules.ct, rules.channels, rules.label_map) == (True, 1, None)
    download = open_download([tree.place])
    assert (converter.default_number(download), converter.default_name(download)) == (2, "Synapse")
    if form == "both":
        assert "Task002_Synapse is taken" in found.notices[0]
        assert parts(find(tree.place, task="Task02_Synapse")[1]) == {"training": list(tree.training)}
        assert "there are: Task002_Synapse, Task02_Synapse" in refused(tree.place, task="Task5_X")
    if form == "decathlon":
        assert "taken once, as training cases: img0001" in found.notices[0]


def test_another_image_of_the_same_name_is_a_duplicate(tmp_path: Path) -> None:
    tree = nnunet_v1.build(tmp_path, form="decathlon")
    [path] = tmp_path.glob("**/imagesTs/img0001.nii.gz")
    save(path, image(77), affine())
    _, found = find(tree.place)
    [fault] = found.faults
    assert fault.case == "img0001"
    assert "duplicate id" in fault.reason


@pytest.mark.parametrize("place", ["itself", "parent", "archive"])
def test_the_task_its_parent_or_an_archive_can_be_named(tmp_path: Path, place: str) -> None:
    tree = nnunet_v1.build(tmp_path / "x")
    folder = tree.place / "unetr_pp_raw/unetr_pp_raw_data/Task002_Synapse"
    named = {"itself": folder, "parent": folder.parent, "archive": tmp_path / "Task002_Synapse.tar.gz"}[place]
    if place == "archive":
        with tarfile.open(named, "w:gz") as archive:
            for part in ("imagesTr", "labelsTr", "imagesTs", "dataset.json"):
                archive.add(folder / part, part)
    converter, found = find(named)
    assert parts(found) == {"training": list(tree.training), "test": list(tree.test)}
    assert converter.default_name(open_download([named])) == "Synapse"


def test_missing_keys_are_tolerated(tmp_path: Path) -> None:
    tree = nnunet_v1.build_tumour(tmp_path, description=False)
    converter, found = find(tree.place)
    assert parts(found)["training"] == ["BRATS_001", "BRATS_002", "BRATS_010"]
    with pytest.raises(UserError, match=r"holds the values 0, 1, 2, 4\. Name them: --label-names class1=1 class2=2"):
        converter.layout(found)
    converter, found = find(tree.place, label_names=["tumour=1+2+4"], channels=["a", "b", "c", "d"])
    assert converter.layout(found).labels == {"background": 0, "tumour": 1}
    assert converter.rules(found).label_map == {0: 0, 1: 1, 2: 1, 4: 1}
    assert "2 channel(s) are named (a, b), but files of channel 0003" in refused(tree.place, channels=["a", "b"])


def test_values_with_gaps_are_moved_up(tmp_path: Path) -> None:
    converter, found = find(nnunet_v1.build_tumour(tmp_path).place)
    assert converter.layout(found).labels == {"background": 0, "edema": 1, "non-enhancing": 2, "enhancing": 3}
    assert converter.rules(found).label_map == {0: 0, 1: 1, 2: 2, 4: 3}


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    tree = nnunet_v1.build(tmp_path)
    task = tree.place / "unetr_pp_raw/unetr_pp_raw_data/Task002_Synapse"
    (task / "labelsTr/img0005.nii.gz").unlink()
    (task / "imagesTr/img0021_0000.nii.gz").unlink()
    (task / "imagesTs/img0062_0000.nii.gz").unlink()
    _, found = find(tree.place)
    reasons = {fault.case: fault.reason for fault in found.faults}
    assert "labelsTr/img0005.nii.gz was expected" in reasons["img0005"]
    assert "has no image" in reasons["img0021"]
    assert "listed in" in reasons["img0062"]
    assert parts(found) == {"training": ["img0001"], "test": ["img0061"]}
    _, found = find(tree.place, unlabelled=True)
    assert parts(found)["unlabelled"] == ["img0005"]

    tumour = nnunet_v1.build_tumour(tmp_path)
    (tumour.place / "imagesTr/BRATS_002_0002.nii.gz").unlink()
    shutil.copy(tumour.place / "labelsTr/BRATS_001.nii.gz", tumour.place / "labelsTr/BRATS_001.nii")
    reasons = {fault.case: fault.reason for fault in find(tumour.place)[1].faults}
    assert "channel 0002 (T1gd) missing" in reasons["BRATS_002"]
    assert "duplicate id" in reasons["BRATS_001"]


def test_several_tasks_have_to_be_told_apart(tmp_path: Path) -> None:
    nnunet_v1.build(tmp_path)
    nnunet_v1.build_tumour(tmp_path)
    assert "2 tasks are there" in refused(tmp_path)
    assert len(find(tmp_path, task="Task003_tumor")[1].cases) == 3
    (tmp_path / "nothing").mkdir()
    (tmp_path / "nothing/a.txt").write_text("x")
    assert "TaskNNN_NAME/{imagesTr" in refused(tmp_path / "nothing")


def test_a_broken_description_is_named(tmp_path: Path) -> None:
    tree = nnunet_v1.build_tumour(tmp_path)
    for content, text in (
        ("{", "not a readable JSON"),
        ("[]", "holds a list"),
        ('{"labels": {"a": {}}}', "not understood"),
    ):
        (tree.place / "dataset.json").write_text(content)
        assert text in refused(tree.place)


def test_published_splits_fit_where_all_their_cases_are(tmp_path: Path) -> None:
    converter, _ = find(nnunet_v1.build(tmp_path / "few").place)
    assert converter.default_split() == "cv"
    converter, _ = find(nnunet_v1.build(tmp_path / "all", complete=True).place)
    assert converter.default_split() == "unetrpp_synapse"


def test_frames_of_a_patient_stay_together(tmp_path: Path) -> None:
    for case in ("patient001_frame01", "patient001_frame12"):
        for folder, name in (("imagesTr", f"{case}_0000"), ("labelsTr", case)):
            save(tmp_path / f"Task001_ACDC/{folder}/{name}.nii.gz", image(1), affine())
    _, found = find(tmp_path)
    assert [case.group for case in found.cases] == ["patient001"] * 2


def test_the_pickled_split_of_v1_is_read_without_executing_it(tmp_path: Path) -> None:
    tree = nnunet_v1.build_tumour(tmp_path)
    ids = np.array(["BRATS_001", "BRATS_010"]), np.array(["BRATS_002"])
    path = tree.place / "splits_final.pkl"
    path.write_bytes(pickle.dumps([OrderedDict(train=ids[0], val=ids[1]), OrderedDict(train=ids[1], val=ids[0])]))
    converter, found = find(tree.place)
    assert converter.default_split() == "splits_final"
    split = converter.own_splits(found.cases)["splits_final"]()
    assert split.folds == ((tuple(ids[0]), tuple(ids[1])), (tuple(ids[1]), tuple(ids[0])))
    path.write_bytes(pickle.dumps([{"train": ["BRATS_001"], "val": ["BRATS_999"]}]))
    converter, found = find(tree.place)
    assert converter.default_split() == "cv"
    assert "names cases that are not there: BRATS_999" in found.notices[-1]
    path.write_bytes(b"cos\nsystem\n(S'touch executed'\ntR.")
    converter, found = find(tree.place)
    assert "not a split that can be used" in found.notices[-1]
    assert not Path("executed").exists()


@pytest.mark.parametrize("form", ["v1", "decathlon"])
def test_conversion(nnunet_folders: Path, form: nnunet_v1.Form) -> None:
    tree = nnunet_v1.build(nnunet_folders / "download", form=form)
    report = convert(tree.key, [tree.place])
    assert report.name == "Dataset002_Synapse"
    check_converted(report, tree)
    described = json.loads((report.folder / "dataset.json").read_text())
    assert described["channel_names"] == {"0": "CT"}
    assert "modality" not in described


@pytest.mark.parametrize("four_axes", [False, True])
def test_conversion_of_four_channels(nnunet_folders: Path, four_axes: bool) -> None:
    tree = nnunet_v1.build_tumour(nnunet_folders / "download", four_axes=four_axes)
    report = convert(tree.key, [tree.place])
    check_converted(report, tree, {0: 0, 1: 1, 2: 2, 4: 3})
    assert len(list((report.folder / "imagesTr").iterdir())) == 12


def test_conversion_from_a_compressed_tar_with_a_papers_split(nnunet_folders: Path) -> None:
    tree = nnunet_v1.build(nnunet_folders / "download", complete=True)
    path = nnunet_folders / "DATASET_Synapse.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        archive.add(tree.place, "DATASET_Synapse")
    report = convert(tree.key, [path], Options(check="fast"))
    check_converted(report, tree)
    [split] = json.loads((nnunet_folders / f"nnUNet_preprocessed/{report.name}/splits_final.json").read_text())
    assert (len(split["train"]), len(split["val"])) == (18, 12)
