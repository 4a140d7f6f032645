from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from conversions import check_converted
from nnunetv2.dataset_conversion.Dataset027_ACDC import create_ACDC_split
from trees import acdc

from nnunet_ext.dataset_conversion.acdc import ACDC
from nnunet_ext.dataset_conversion.cases import SPLIT_FILES, Case, Found
from nnunet_ext.dataset_conversion.options import Options
from nnunet_ext.dataset_conversion.run import convert
from nnunet_ext.dataset_conversion.sources import open_download
from nnunet_ext.errors import UserError


def _found(place: Path) -> Found:
    return ACDC().find(open_download([place]))


def _by_id(found: Found) -> dict[str, Case]:
    return {case.id: case for case in found.cases}


@pytest.mark.parametrize("form", ["new", "2017", "flat"])
@pytest.mark.parametrize(("ending", "folders"), [(".nii.gz", False), (".nii", False), (".nii", True)])
def test_each_layout_holds_the_same_cases(tmp_path: Path, form: acdc.Form, ending: str, folders: bool) -> None:
    tree = acdc.build(tmp_path, form=form, ending=ending, folders=folders)
    found = _found(tree.place)
    assert found.faults == ()
    cases = _by_id(found)
    assert {case for case in cases if cases[case].part == "training"} == set(tree.training)
    assert {case for case in cases if cases[case].part == "test"} == set(tree.test)
    for case in found.cases:
        assert case.images[0].stem == case.id
        assert case.label is None or case.label.stem == f"{case.id}_gt"
        assert (case.label is None) == (case.part == "test" and form == "2017")


def test_phases_are_those_of_the_info_file(tmp_path: Path) -> None:
    found = _found(acdc.build(tmp_path).place)
    phases = {case.id: case.details["phase"] for case in found.cases}
    assert phases["patient001_frame01"] == "ED"
    assert phases["patient090_frame04"] == "ES"
    assert phases["patient090_frame11"] == "ED"
    assert phases["patient102_frame02"] == "ES"
    assert any("patient090, patient102" in notice for notice in found.notices)
    assert _by_id(found)["patient001_frame12"].details["patient_group"] == "DCM"


def test_both_frames_belong_to_one_group(tmp_path: Path) -> None:
    cases = _by_id(_found(acdc.build(tmp_path).place))
    assert cases["patient090_frame04"].group == cases["patient090_frame11"].group == "patient090"


@pytest.mark.parametrize("part", ["training", "testing"])
def test_one_part_alone(tmp_path: Path, part: str) -> None:
    tree = acdc.build(tmp_path)
    found = _found(tree.place / "database" / part)
    assert {case.part for case in found.cases} == {"training" if part == "training" else "test"}


def test_zip_files_of_both_parts(tmp_path: Path) -> None:
    tree = acdc.build(tmp_path / "a", form="2017")
    archives = [
        Path(shutil.make_archive(str(tmp_path / part), kind, tree.place, part))
        for part, kind in (("training", "zip"), ("testing", "gztar"))
    ]
    found = ACDC().find(open_download(archives))
    assert found.faults == ()
    assert {case.id for case in found.cases} == set(tree.training) | set(tree.test)
    assert all(case.details["phase"] in ("ED", "ES") for case in found.cases)


def test_a_folder_called_like_the_file_inside_a_zip(tmp_path: Path) -> None:
    tree = acdc.build(tmp_path / "a", ending=".nii", folders=True)
    found = _found(Path(shutil.make_archive(str(tmp_path / "acdc"), "zip", tree.place)))
    assert {case.id for case in found.cases} == set(tree.training) | set(tree.test)


def test_a_training_frame_without_label_is_named(tmp_path: Path) -> None:
    place = acdc.build(tmp_path).place
    (place / "database/training/patient001/patient001_frame12_gt.nii.gz").unlink()
    (place / "database/training/patient002/patient002_frame05.nii.gz").unlink()
    faults = {fault.case: fault.reason for fault in _found(place).faults}
    assert "patient001_frame12_gt.nii.gz" in faults["patient001_frame12"]
    assert "has no image" in faults["patient002_frame05"]
    assert len(faults) == 2


def test_a_frame_that_info_names_and_that_is_absent(tmp_path: Path) -> None:
    place = acdc.build(tmp_path, test_labels=False).place
    (place / "database/testing/patient102/patient102_frame02.nii.gz").unlink()
    (fault,) = _found(place).faults
    assert fault.case == "patient102_frame02"
    assert "ES" in fault.reason


def test_without_info_the_phase_is_unknown(tmp_path: Path) -> None:
    place = acdc.build(tmp_path).place
    (place / "database/training/patient090/Info.cfg").unlink()
    (place / "database/training/patient001/Info.cfg").write_text("ED: 1\nES: 13\n")
    found = _found(place)
    cases = _by_id(found)
    assert cases["patient090_frame04"].details["phase"] is None
    assert "Info.cfg" in cases["patient090_frame04"].notices[0]
    assert "no phase" in cases["patient001_frame12"].notices[0]
    assert [fault.case for fault in found.faults] == ["patient001_frame13"]


def test_two_files_of_one_frame_are_a_fault(tmp_path: Path) -> None:
    place = acdc.build(tmp_path).place
    folder = place / "database/training/patient001"
    shutil.copy(folder / "patient001_frame01.nii.gz", folder / "patient001_frame01.nii")
    (fault,) = _found(place).faults
    assert fault.case == "patient001_frame01"
    assert "duplicate id" in fault.reason


def test_another_download_is_refused(tmp_path: Path) -> None:
    (tmp_path / "img0001.nii.gz").write_bytes(b"x")
    with pytest.raises(UserError, match=r"acdc: no case found .*patient001_frame01_gt"):
        _found(tmp_path)


def test_nnunets_own_split(tmp_path: Path) -> None:
    published = json.loads((SPLIT_FILES / "unetrpp_acdc.json").read_text())
    ids = published["train"] + published["val"]
    cases = []
    for case in ids:
        (tmp_path / f"{case}.nii.gz").touch()
        cases.append(Case(case, "training", (), group=case[:10]))
    folds = ACDC().own_splits(sorted(cases, key=lambda case: case.id))["nnunet"]().folds
    assert [{"train": list(train), "val": list(val)} for train, val in folds] == create_ACDC_split(str(tmp_path))


def test_the_papers_ids_are_those_of_the_release() -> None:
    nnformer = json.loads((SPLIT_FILES / "acdc_nnformer.json").read_text())
    unetrpp = json.loads((SPLIT_FILES / "unetrpp_acdc.json").read_text())
    assert {*nnformer["train"], *nnformer["val"]} == set(unetrpp["train"])
    assert set(nnformer["test"]) == set(unetrpp["val"])


def test_layout_and_rules(tmp_path: Path) -> None:
    found = _found(acdc.build(tmp_path).place)
    layout = ACDC().layout(found)
    assert layout.labels == {"background": 0, "RV": 1, "MLV": 2, "LVC": 3}
    assert layout.channel_names == ("cineMRI",)
    assert ACDC().rules(found).label_map is None


@pytest.mark.parametrize("form", ["new", "2017"])
def test_conversion(nnunet_folders: Path, form: acdc.Form) -> None:
    tree = acdc.build(nnunet_folders / "download", form=form)
    report = convert("acdc", [tree.place], Options(splits=("nnunet",)))
    check_converted(report, tree, tested=tree.test if form == "new" else ())
    record = json.loads((report.folder / "conversion.json").read_text())
    assert record["cases"]["patient102_frame02"]["details"]["phase"] == "ES"
    folds = json.loads((nnunet_folders / "nnUNet_preprocessed" / report.name / "splits_final.json").read_text())
    assert folds == create_ACDC_split(str(report.folder / "labelsTr"))


def test_conversion_of_uncompressed_files_in_an_archive(nnunet_folders: Path) -> None:
    tree = acdc.build(nnunet_folders / "download", ending=".nii", folders=True)
    archive = shutil.make_archive(str(nnunet_folders / "acdc"), "zip", tree.place)
    check_converted(convert("acdc", [archive], Options(splits=("cv",))), tree, tested=tree.test)
