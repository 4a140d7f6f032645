from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import pytest
from conversions import check_converted
from trees import msd

from nnunet_ext.dataset_conversion.cases import SPLIT_FILES, Case, Found, Layout
from nnunet_ext.dataset_conversion.msd import MSD
from nnunet_ext.dataset_conversion.msd_tasks import TASKS
from nnunet_ext.dataset_conversion.run import convert
from nnunet_ext.dataset_conversion.sources import open_download
from nnunet_ext.errors import UserError


def _found(place: Path, converter: MSD | None = None) -> Found:
    return (converter or MSD()).find(open_download([place]))


def _layout(place: Path, regions: bool = False) -> Layout:
    converter = MSD(regions)
    return converter.layout(_found(place, converter))


def _by_id(found: Found) -> dict[str, Case]:
    return {case.id: case for case in found.cases}


def _default(place: Path) -> tuple[int, str]:
    download = open_download([place])
    return MSD().default_number(download), MSD().default_name(download)


@pytest.mark.parametrize("task", range(1, 11))
@pytest.mark.parametrize("converted", [False, True])
def test_every_task_before_and_after_nnunets_conversion(tmp_path: Path, task: int, converted: bool) -> None:
    tree = msd.build(tmp_path, task=task, converted=converted)
    converter = MSD()
    found = _found(tree.place, converter)
    assert found.faults == ()
    cases = _by_id(found)
    assert {case for case in cases if cases[case].part == "training"} == set(tree.training)
    assert {case for case in cases if cases[case].part == "test"} == set(tree.test)
    facts = TASKS[task - 1]
    for case in found.cases:
        assert (case.label is None) == (case.part == "test")
        expected = [f"{case.id}_{channel:04d}" for channel in range(len(facts.channels))] if converted else [case.id]
        assert [file.stem for file in case.images] == expected
        assert case.details["task"] == facts.folder
    layout = converter.layout(found)
    assert layout.channel_names == facts.channels
    assert dict(layout.labels) == {"background": 0} | {name: place + 1 for place, name in enumerate(facts.labels)}
    rules = converter.rules(found)
    assert (rules.channels, rules.ct, rules.label_map) == (len(facts.channels), facts.channels == ("CT",), None)
    assert _default(tree.place) == (task, facts.name)


def test_the_tar_as_it_was_downloaded(tmp_path: Path) -> None:
    tree = msd.build(tmp_path / "a")
    archive = Path(shutil.make_archive(str(tmp_path / "Task04_Hippocampus"), "tar", tree.place.parent, tree.place.name))
    assert set(_by_id(_found(archive))) == set(tree.training) | set(tree.test)
    assert _default(archive) == (4, "Hippocampus")
    bare = Path(shutil.make_archive(str(tmp_path / "Task40_Bare"), "zip", tree.place))
    assert _default(bare) == (40, "Bare")


def test_the_folder_above(tmp_path: Path) -> None:
    msd.build(tmp_path)
    assert _default(tmp_path) == (4, "Hippocampus")


def test_several_tasks_are_refused(tmp_path: Path) -> None:
    msd.build(tmp_path, task=4)
    msd.build(tmp_path, task=9)
    with pytest.raises(UserError, match=r"2 folders hold images: Task04_Hippocampus/, Task09_Spleen/"):
        _found(tmp_path)


@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        ("Task01_Brain_Tumour_2", (1, "Brain_Tumour_2")),
        ("Task01_Brain Tumour", (1, "Brain_Tumour")),
        ("download", (1, "BrainTumour")),
    ],
)
def test_names_of_folders(tmp_path: Path, folder: str, expected: tuple[int, str]) -> None:
    tree = msd.build(tmp_path, task=1, folder=folder)
    assert _default(tree.place) == expected


def test_a_missing_imagests_is_no_fault(tmp_path: Path) -> None:
    found = _found(msd.build(tmp_path, test_cases=False).place)
    assert found.faults == ()
    assert any("no imagesTs" in notice for notice in found.notices)
    assert {case.part for case in found.cases} == {"training"}


@pytest.mark.parametrize("converted", [False, True])
def test_keys_that_dataset_json_lacks(tmp_path: Path, converted: bool) -> None:
    lacking = dict.fromkeys(("training", "test", "modality", "channel_names", "labels", "name", "licence"))
    tree = msd.build(tmp_path, task=5, converted=converted, described=lacking)
    layout = _layout(tree.place)
    assert layout.channel_names == ("T2", "ADC")
    assert dict(layout.labels) == {"background": 0, "PZ": 1, "TZ": 2}
    assert layout.licence == "CC-BY-SA 4.0"
    (tree.place / "dataset.json").unlink()
    assert _layout(tree.place).channel_names == ("T2", "ADC")
    assert any("no dataset.json" in notice for notice in _found(tree.place).notices)


def test_lists_that_do_not_fit_the_files(tmp_path: Path) -> None:
    stale = [{"image": f"./imagesTr/hippocampus_{number:03d}.nii.gz"} for number in (1, 3, 99)]
    found = _found(msd.build(tmp_path, described={"training": stale}).place)
    assert found.faults == ()
    assert "dataset.json lists cases that have no file: hippocampus_099." in found.notices
    assert "4 training cases; 260 are in the release of Task04_Hippocampus." in found.notices


def test_labels_with_a_gap_become_consecutive(tmp_path: Path) -> None:
    labels = {"0": "Background", "1": "organ", "4": "lesion"}
    converter = MSD()
    found = _found(msd.build(tmp_path, described={"labels": labels}).place, converter)
    assert dict(converter.layout(found).labels) == {"background": 0, "organ": 1, "lesion": 2}
    assert converter.rules(found).label_map == {0: 0, 1: 1, 4: 2}


@pytest.mark.parametrize("converted", [False, True])
def test_regions_of_task_1(tmp_path: Path, converted: bool) -> None:
    layout = _layout(msd.build(tmp_path, task=1, converted=converted).place, regions=True)
    assert layout.labels["whole tumor"] == (1, 2, 3)
    assert layout.labels["tumor core"] == (2, 3)
    assert layout.labels["enhancing tumor"] == 3
    assert layout.regions_class_order == (1, 2, 3)


def test_regions_of_another_task_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--regions is for Task01_BrainTumour; Task04"):
        _found(msd.build(tmp_path).place, MSD(regions=True))


def test_regions_that_are_there_already_stay(tmp_path: Path) -> None:
    labels = {"background": 0, "whole": [1, 2], "posterior": 2}
    described = {"labels": labels, "regions_class_order": [1, 2]}
    layout = _layout(msd.build(tmp_path, converted=True, described=described).place)
    assert dict(layout.labels) == {"background": 0, "whole": (1, 2), "posterior": 2}
    assert layout.regions_class_order == (1, 2)


def test_what_nnunet_calls_the_reader_stays(tmp_path: Path) -> None:
    described = {"overwrite_image_reader_writer": "NibabelIOWithReorient"}
    assert _layout(msd.build(tmp_path, converted=True, described=described).place).reader == "NibabelIOWithReorient"


def test_missing_labels_images_and_channels_are_named(tmp_path: Path) -> None:
    place = msd.build(tmp_path, task=1, converted=True).place
    (place / "labelsTr/BRATS_001.nii.gz").unlink()
    (place / "imagesTr/BRATS_003_0002.nii.gz").unlink()
    for channel in range(4):
        (place / f"imagesTr/BRATS_004_{channel:04d}.nii.gz").unlink()
    shutil.copy(place / "imagesTr/BRATS_017_0000.nii.gz", place / "imagesTr/BRATS_017_0004.nii.gz")
    faults = {fault.case: fault.reason for fault in _found(place).faults}
    assert "labelsTr/BRATS_001.nii.gz" in faults["BRATS_001"]
    assert "t1gd (_0002) missing" in faults["BRATS_003"]
    assert "has no image" in faults["BRATS_004"]
    assert "names 4 channels only" in faults["BRATS_017"]


def test_ids_that_two_files_claim(tmp_path: Path) -> None:
    place = msd.build(tmp_path).place
    image = place / "imagesTr/hippocampus_001.nii.gz"
    shutil.copy(image, place / "imagesTr/hippocampus_001.nii")
    shutil.copy(place / "imagesTr/hippocampus_003.nii.gz", place / "imagesTs/hippocampus_003.nii.gz")
    found = _found(place)
    assert {fault.case for fault in found.faults} == {"hippocampus_001", "hippocampus_003"}
    assert all("duplicate id" in fault.reason for fault in found.faults)
    assert not {"hippocampus_001", "hippocampus_003"} & set(_by_id(found))


def test_another_task_needs_a_description(tmp_path: Path) -> None:
    tree = msd.build(tmp_path, folder="Task11_Other", described={"modality": None})
    for path in sorted(tree.place.rglob("*.nii.gz")):
        path.rename(path.with_name(path.name.replace("hippocampus", "other")))
    with pytest.raises(UserError, match=r"Task11_Other: its dataset.json names no channels"):
        _found(tree.place)
    (tree.place / "dataset.json").write_text(json.dumps({"modality": {"0": "CT"}, "labels": {"0": "bg", "1": "x"}}))
    assert dict(_layout(tree.place).labels) == {"background": 0, "x": 1}
    assert _default(tree.place) == (11, "Other")


def test_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "volume-0.nii").write_bytes(b"x")
    with pytest.raises(UserError, match=r"msd: no case found .*TaskNN_Name/ with imagesTr"):
        _found(tmp_path)


@pytest.mark.parametrize(("task", "name"), [(1, "unetrpp_tumor"), (6, "unetrpp_lung")])
def test_the_papers_split_is_the_default_of_the_whole_task(tmp_path: Path, task: int, name: str) -> None:
    published = json.loads((SPLIT_FILES / f"{name}.json").read_text())
    ids = [case for part in ("train", "val", "test") for case in published.get(part, ())]
    assert len(ids) == TASKS[task - 1].training
    place = tmp_path / TASKS[task - 1].folder
    for folder in ("imagesTr", "labelsTr"):
        (place / folder).mkdir(parents=True)
        for case in ids:
            (place / folder / f"{case}.nii.gz").write_bytes(b"x")
    converter = MSD()
    _found(place, converter)
    assert converter.default_split() == name
    (place / "imagesTr" / f"{ids[0]}.nii.gz").unlink()
    (place / "labelsTr" / f"{ids[0]}.nii.gz").unlink()
    _found(place, converter)
    assert converter.default_split() == "cv"


def test_the_option() -> None:
    parser = argparse.ArgumentParser()
    MSD.add_arguments(parser.add_argument_group("msd"))
    assert vars(parser.parse_args(["--regions"])) == {"regions": True}


@pytest.mark.parametrize("task", [1, 4, 9])
def test_conversion(nnunet_folders: Path, task: int) -> None:
    tree = msd.build(nnunet_folders / "download", task=task)
    report = convert("msd", [tree.place])
    assert report.name == f"Dataset{task:03d}_{TASKS[task - 1].name}"
    check_converted(report, tree)


def test_conversion_to_regions(nnunet_folders: Path) -> None:
    tree = msd.build(nnunet_folders / "download", task=1)
    report = convert("msd", [tree.place], own={"regions": True})
    check_converted(report, tree)
    assert json.loads((report.folder / "dataset.json").read_text())["regions_class_order"] == [1, 2, 3]


def test_what_nnunet_converted_is_left_in_its_place(nnunet_folders: Path) -> None:
    tree = msd.build(nnunet_folders / "nnUNet_raw", task=5, converted=True)
    before = {path: path.read_bytes() for path in tree.place.rglob("*.nii.gz")}
    report = convert("msd", [tree.place])
    assert report.folder == tree.place
    assert report.ok
    assert set(report.actions) == {"keep"}
    assert {path: path.read_bytes() for path in before} == before
    assert not any(path.is_symlink() for path in tree.place.rglob("*"))
    assert (nnunet_folders / "nnUNet_preprocessed" / report.name / "splits_final.json").is_file()
    assert convert("msd", [tree.place]).skipped == len(tree.training) + len(tree.test)


def test_what_nnunet_converted_elsewhere_is_linked(nnunet_folders: Path) -> None:
    tree = msd.build(nnunet_folders / "download", task=1, converted=True)
    report = convert("msd", [tree.place])
    check_converted(report, tree)
    assert (report.folder / "imagesTr" / "BRATS_001_0003.nii.gz").is_symlink()
