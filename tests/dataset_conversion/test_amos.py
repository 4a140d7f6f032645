"""AMOS 2022: one archive, two tasks; who is training and who validation is kept, whatever dataset.json counts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from conversions import check_converted
from trees import amos

from nnunet_ext.dataset_conversion.amos import AMOSTask1, AMOSTask2
from nnunet_ext.dataset_conversion.cases import Found
from nnunet_ext.dataset_conversion.options import Options
from nnunet_ext.dataset_conversion.run import convert
from nnunet_ext.dataset_conversion.sources import open_download
from nnunet_ext.errors import UserError

CT = ["amos_0001", "amos_0004", "amos_0006", "amos_0008", "amos_0013"]
CT_AND_MR = [*CT, "amos_0507", "amos_0508", "amos_0541"]


def find(place: Path, task: int = 1) -> Found:
    return (AMOSTask1() if task == 1 else AMOSTask2()).find(open_download([place]))


def ids(found: Found, part: str) -> list[str]:
    return [case.id for case in found.cases if case.part == part]


def official(found: Found, kind: str) -> list[str]:
    return [case.id for case in found.cases if case.details["official"] == kind]


@pytest.mark.parametrize("zipped", [False, True])
def test_task_1(tmp_path: Path, zipped: bool) -> None:
    tree = amos.build(tmp_path)
    place = (
        Path(shutil.make_archive(str(tmp_path / "z" / "amos22"), "zip", tmp_path, "amos22")) if zipped else tree.place
    )
    found = find(place)
    assert ids(found, "training") == CT == sorted(tree.training)
    assert ids(found, "test") == ["amos_0002", "amos_0003"]
    assert official(found, "train") == ["amos_0001", "amos_0004", "amos_0006"]
    assert official(found, "val") == ["amos_0008", "amos_0013"]
    assert official(found, "test") == ["amos_0002", "amos_0003"]
    assert {fault.case for fault in found.faults} == tree.faulty
    assert "labelsTr/amos_0005.nii.gz was expected" in found.faults[0].reason
    assert any("4 MR cases" in notice for notice in found.notices)
    assert any("label 8 'arota': called 'aorta'" in notice for notice in found.notices)


def test_task_2(tmp_path: Path) -> None:
    tree = amos.build(tmp_path, task=2)
    found = find(tree.place, 2)
    assert ids(found, "training") == CT_AND_MR == sorted(tree.training)
    assert ids(found, "test") == ["amos_0002", "amos_0003", "amos_0600"]
    assert [case.id for case in found.cases if case.details["modality"] == "MR"] == [*CT_AND_MR[5:], "amos_0600"]


@pytest.mark.parametrize("content", [None, "{", "[]", "{}", '{"validation": 3, "labels": ["x"]}'])
def test_dataset_json_may_be_missing_or_damaged(tmp_path: Path, content: str | None) -> None:
    place = amos.build(tmp_path).place
    (place / "dataset.json").unlink()
    if content is not None:
        (place / "dataset.json").write_text(content)
    found = find(place)
    assert official(found, "val") == ["amos_0008", "amos_0013"]
    assert ids(found, "training") == CT
    assert any("no valid JSON" in notice for notice in found.notices) == (content == "{")


def test_pooled_copy_is_taken_apart_by_dataset_json(tmp_path: Path) -> None:
    place = amos.build(tmp_path).place
    for kind in ("images", "labels"):
        for path in (place / f"{kind}Va").iterdir():
            path.rename(place / f"{kind}Tr" / path.name)
    assert official(find(place), "val") == ["amos_0008", "amos_0013"]
    (place / "dataset.json").unlink()
    assert official(find(place), "val") == []


def test_other_numbering_of_organs_is_refused(tmp_path: Path) -> None:
    place = amos.build(tmp_path).place
    content = json.loads((place / "dataset.json").read_text())
    content["labels"]["1"], content["labels"]["6"] = content["labels"]["6"], content["labels"]["1"]
    (place / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="calls 'liver' label 1, which is 'spleen'"):
        find(place)


def test_labels_of_test_cases_are_taken_if_there_are_some(tmp_path: Path) -> None:
    place = amos.build(tmp_path).place
    shutil.copy(place / "labelsTr" / "amos_0001.nii.gz", place / "labelsTs" / "amos_0002.nii.gz")
    cases = {case.id: case for case in find(place).cases}
    assert cases["amos_0002"].label is not None
    assert cases["amos_0002"].part == "test"


def test_duplicate_id(tmp_path: Path) -> None:
    place = amos.build(tmp_path).place
    shutil.copy(place / "imagesTr" / "amos_0001.nii.gz", place / "imagesTr" / "amos_0001_0000.nii.gz")
    found = find(place)
    assert "duplicate id" in found.faults[0].reason
    assert "amos_0001" not in ids(found, "training")


def test_something_else(tmp_path: Path) -> None:
    (tmp_path / "imagesTr").mkdir()
    (tmp_path / "imagesTr" / "la_003.nii.gz").write_bytes(b"1")
    with pytest.raises(UserError, match=r"amos_ct: no case found.*la_003\.nii\.gz.*amos22\.zip"):
        find(tmp_path)


def test_official_split(tmp_path: Path) -> None:
    found = find(amos.build(tmp_path, task=2).place, 2)
    converter = AMOSTask2()
    split = converter.own_splits([case for case in found.cases if case.label])[converter.default_split()]()
    assert split.folds == ((("amos_0001", "amos_0004", "amos_0006", *CT_AND_MR[5:7]), (*CT[3:], "amos_0541")),)
    assert "sshunet_5fold" not in converter.own_splits(())
    assert set(AMOSTask1().own_splits(())) == {"amos_official", "amos_sshunet", "sshunet_5fold"}
    with pytest.raises(UserError, match="0 training and 0 validation cases have labels"):
        converter.own_splits(())["amos_official"]()


def test_layout_and_rules() -> None:
    layout = AMOSTask1().layout(Found(()))
    assert layout.channel_names == ("CT",)
    assert layout.labels["aorta"] == 8
    assert layout.labels["prostate/uterus"] == 15
    assert layout.values() == set(range(16))
    assert layout.reader == "NibabelIOWithReorient"
    assert AMOSTask2().layout(Found(())).channel_names == ("either_CT_or_MR",)
    assert AMOSTask1().rules(Found(())).ct
    assert not AMOSTask2().rules(Found(())).ct


@pytest.mark.parametrize("task", [1, 2])
def test_conversion(nnunet_folders: Path, task: int) -> None:
    tree = amos.build(nnunet_folders, task=task)
    report = convert(tree.key, [tree.place])
    check_converted(report, tree)
    folds = json.loads((nnunet_folders / "nnUNet_preprocessed" / report.name / "splits_final.json").read_text())
    assert folds == [{"train": [*CT[:3], *CT_AND_MR[5:7]][: 1 + 2 * task], "val": [*CT[3:], "amos_0541"][: 1 + task]}]
    record = json.loads((report.folder / "conversion.json").read_text())
    assert record["cases"]["amos_0008"]["details"] == {"official": "val", "modality": "CT"}


def test_conversion_with_sshunet_split_needs_its_cases(nnunet_folders: Path) -> None:
    place = amos.build(nnunet_folders).place
    with pytest.raises(UserError, match="the split amos_sshunet needs 294 cases that the download has not"):
        convert("amos_ct", [place], Options(splits=("amos_sshunet",)))
