from __future__ import annotations

import argparse
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from conversions import check_converted
from trees import brats2020, brats2021, brats_gli
from trees.volumes import Tree, save

from nnunet_ext.dataset_conversion import converter_class
from nnunet_ext.dataset_conversion.brats import BraTS
from nnunet_ext.dataset_conversion.cases import SPLIT_FILES, Case, Found
from nnunet_ext.dataset_conversion.options import Options
from nnunet_ext.dataset_conversion.run import convert
from nnunet_ext.dataset_conversion.sources import open_download
from nnunet_ext.errors import UserError

KEYS = ("brats2020", "brats2021", "brats2023gli", "brats2024gli")


def _build(key: str, root: Path) -> Tree:
    if key == "brats2020":
        return brats2020.build(root)
    return brats2021.build(root) if key == "brats2021" else brats_gli.build(root, year=int(key[5:9]))


def _converter(key: str, regions: bool = True) -> BraTS:
    made = converter_class(key)(regions=regions)  # type: ignore[call-arg]
    assert isinstance(made, BraTS)
    return made


def _found(key: str, *places: Path) -> Found:
    converter = _converter(key)
    return converter.find(open_download(places, converter.skip))


def _by_id(found: Found) -> dict[str, Case]:
    return {case.id: case for case in found.cases}


@pytest.mark.parametrize("key", KEYS)
def test_cases_sequences_and_parts(tmp_path: Path, key: str) -> None:
    tree = _build(key, tmp_path)
    found = _found(key, tree.place)
    converter = _converter(key)
    assert found.faults == ()
    assert found.notices == ()
    cases = _by_id(found)
    assert {case for case in cases if cases[case].part == "training"} == set(tree.training)
    assert {case for case in cases if cases[case].part == "test"} == set(tree.test)
    for case in found.cases:
        assert [file.stem for file in case.images] == [case.id + suffix for suffix in converter.suffixes]
        assert (case.label is None) == (case.part == "test")


@pytest.mark.parametrize("key", KEYS)
def test_a_tar_of_everything_and_one_part_alone(tmp_path: Path, key: str) -> None:
    tree = _build(key, tmp_path / "a")
    whole = shutil.make_archive(str(tmp_path / "whole"), "tar", tree.place)
    assert set(_by_id(_found(key, Path(whole)))) == set(tree.training) | set(tree.test)
    for folder in tree.place.iterdir():
        if folder.is_dir():
            parts = {case.part for case in _found(key, folder).cases}
            assert parts == {"test" if "alid" in folder.name else "training"}


@pytest.mark.parametrize("key", KEYS)
def test_folders_of_unknown_names_are_told_by_their_segmentations(tmp_path: Path, key: str) -> None:
    tree = _build(key, tmp_path / "a")
    for place, folder in enumerate(sorted(path for path in tree.place.iterdir() if path.is_dir())):
        folder.rename(tree.place / f"part{place}")
    cases = _by_id(_found(key, tree.place))
    assert {case for case in cases if cases[case].part == "test"} == set(tree.test)


@pytest.mark.parametrize("key", KEYS)
def test_a_missing_sequence_or_segmentation_is_named(tmp_path: Path, key: str) -> None:
    tree = _build(key, tmp_path)
    converter = _converter(key)
    first, second = list(tree.training)[:2]
    lost = converter.suffixes[2]
    next(tree.place.rglob(f"{first}{lost}.nii.gz")).unlink()
    next(tree.place.rglob(f"{second}{converter.segmentation}.nii.gz")).unlink()
    found = _found(key, tree.place)
    faults = {fault.case: fault.reason for fault in found.faults}
    assert set(faults) == {first, second}
    assert f"{lost} missing" in faults[first]
    assert f"{second}{converter.segmentation}.nii.gz" in faults[second]
    assert not {first, second} & set(_by_id(found))


@pytest.mark.parametrize("key", KEYS)
def test_two_files_of_one_sequence_are_a_fault(tmp_path: Path, key: str) -> None:
    tree = _build(key, tmp_path)
    first = next(iter(tree.training))
    file = next(tree.place.rglob(f"{first}{_converter(key).suffixes[0]}.nii.gz"))
    shutil.copy(file, str(file).removesuffix(".gz"))
    (fault,) = _found(key, tree.place).faults
    assert fault.case == first
    assert "duplicate id" in fault.reason


@pytest.mark.parametrize("key", KEYS)
def test_labels_nest_and_every_value_of_the_download_is_mapped(tmp_path: Path, key: str) -> None:
    tree = _build(key, tmp_path)
    found = _found(key, tree.place)
    converter = _converter(key)
    rules = converter.rules(found)
    values = {int(value) for truth in tree.training.values() for value in truth.labels.flat}
    mapped = set(rules.label_map.values()) if rules.label_map else values
    layout = converter.layout(found)
    assert layout.values() == mapped == set(range(len(mapped)))
    assert layout.regions_class_order is not None
    assert len(layout.regions_class_order) == len(layout.labels) - 1
    plain = _converter(key, regions=False).layout(found)
    assert plain.regions_class_order is None
    assert sorted(plain.labels.values()) == sorted(mapped)
    assert rules.channels == len(layout.channel_names) == 4


@pytest.mark.parametrize("key", KEYS)
def test_regions_are_the_challenges(key: str) -> None:
    """Whole tumour, tumour core and enhancing tumour in the download's own values."""
    converter = _converter(key)
    back = {new: old for old, new in (converter.label_map or {value: value for value in range(5)}).items()}
    regions = {
        name: {back[value] for value in (values if isinstance(values, tuple) else (values,))}
        for name, values in converter.nested.items()
    }
    enhancing = 4 if key in ("brats2020", "brats2021") else 3
    assert regions["whole tumor"] == {1, 2, enhancing}
    assert regions["tumor core"] == {1, enhancing}
    assert regions["enhancing tumor"] == {enhancing}
    assert regions.get("resection cavity", {4}) == {4}


@pytest.mark.parametrize("key", KEYS)
def test_regions_written_in_their_order_give_the_labels_back(key: str) -> None:
    converter = _converter(key)
    regions = [values for name, values in converter.nested.items() if name != "background"]
    for value in range(1, 5 if key == "brats2024gli" else 4):
        written = 0
        for region, number in zip(regions, converter.order, strict=True):
            if value in (region if isinstance(region, tuple) else (region,)):
                written = number
        assert written == value


def test_hints_on_values_of_another_year() -> None:
    assert "2023" in _converter("brats2020").value_hints[3]
    assert _converter("brats2021").value_hints == _converter("brats2020").value_hints
    assert "brats2024gli" in _converter("brats2023gli").value_hints[4]


def test_the_misnamed_segmentation_of_case_355(tmp_path: Path) -> None:
    for number, ending in enumerate((".nii", ".nii.gz")):
        tree = brats2020.build(tmp_path / str(number), ending=ending)
        case = _by_id(_found("brats2020", tree.place))[brats2020.MISNAMED]
        assert case.label is not None
        assert case.label.base == "W39_1998.09.19_Segm.nii"
        assert "known misnamed segmentation" in case.notices[0]


def test_two_stray_segmentations_are_a_fault(tmp_path: Path) -> None:
    tree = brats2020.build(tmp_path)
    folder = tree.place / "MICCAI_BraTS2020_TrainingData" / brats2020.MISNAMED
    shutil.copy(folder / "W39_1998.09.19_Segm.nii", folder / "other_seg.nii")
    (fault,) = _found("brats2020", tree.place).faults
    assert fault.case == brats2020.MISNAMED
    assert "other_seg.nii" in fault.reason


def test_a_regular_segmentation_goes_before_a_stray_one(tmp_path: Path) -> None:
    tree = brats2020.build(tmp_path)
    folder = tree.place / "MICCAI_BraTS2020_TrainingData" / "BraTS20_Training_001"
    shutil.copy(folder / "BraTS20_Training_001_seg.nii.gz", folder / "old_seg.nii.gz")
    case = _by_id(_found("brats2020", tree.place))["BraTS20_Training_001"]
    assert case.label is not None
    assert case.label.stem == "BraTS20_Training_001_seg"
    assert case.notices == ()


def test_ids_keep_their_capitals(tmp_path: Path) -> None:
    tree = brats2020.build(tmp_path / "a")
    for path in sorted(tree.place.rglob("*"), reverse=True):
        path.rename(path.with_name(path.name.lower()))
    assert set(_by_id(_found("brats2020", tree.place))) == set(tree.training) | set(tree.test)


def test_archives_of_single_cases_are_passed_over(tmp_path: Path) -> None:
    tree = brats2021.build(tmp_path / "a")
    assert "BraTS2021_00495" not in _by_id(_found("brats2021", tree.place))
    outer = tmp_path / "BraTS2021_Training_Data.tar"
    with tarfile.open(outer, "w") as archive:
        archive.add(tree.place / "BraTS2021_Training_Data", ".")
        archive.add(tree.place / "BraTS2021_00495.tar", "BraTS2021_00495.tar")
    assert {case.part for case in _found("brats2021", outer).cases} == {"training"}


@pytest.mark.parametrize("year", [2023, 2024])
def test_a_patients_time_points_belong_together(tmp_path: Path, year: int) -> None:
    found = _found(f"brats{year}gli", brats_gli.build(tmp_path, year=year).place)
    for case in found.cases:
        assert case.group == case.id[: len("BraTS-GLI-00000")]
        assert case.details["time_point"] == case.id[-3:]
    assert len({case.group for case in found.cases}) < len(found.cases)


def test_several_roots(tmp_path: Path) -> None:
    tree = brats_gli.build(tmp_path, year=2024)
    roots = [tree.place / name for name in brats_gli.TRAINING[2024]]
    found = _found("brats2024gli", *roots)
    assert set(_by_id(found)) == set(tree.training)
    assert {case.part for case in found.cases} == {"training"}


def test_the_other_years_release_is_noticed(tmp_path: Path) -> None:
    (notice,) = _found("brats2023gli", brats_gli.build(tmp_path / "a", year=2024).place).notices
    assert "brats2024gli" in notice
    (notice,) = _found("brats2024gli", brats_gli.build(tmp_path / "b", year=2023).place).notices
    assert "All cases" in notice


@pytest.mark.parametrize(("key", "other"), [("brats2020", "brats2021"), ("brats2023gli", "brats2020")])
def test_another_years_download_is_told(tmp_path: Path, key: str, other: str) -> None:
    tree = _build(other, tmp_path)
    with pytest.raises(UserError, match=rf"{key}: no case found .*named like those of {other}"):
        _found(key, tree.place)


def test_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "img0001.nii.gz").write_bytes(b"x")
    with pytest.raises(UserError, match=r"brats2021: no case found .*BraTS2021_00000_flair"):
        _found("brats2021", tmp_path)


def test_the_papers_ids_are_those_of_the_release() -> None:
    published = json.loads((SPLIT_FILES / "brats2020_ossnet.json").read_text())
    ids = {*published["train"], *published["val"]}
    assert ids == {f"BraTS20_Training_{number:03d}" for number in range(1, 370)}


def test_the_option() -> None:
    parser = argparse.ArgumentParser()
    BraTS.add_arguments(parser.add_argument_group("brats"))
    assert vars(parser.parse_args([])) == {"regions": True}
    assert vars(parser.parse_args(["--no-regions"])) == {"regions": False}


@pytest.mark.parametrize("key", KEYS)
def test_conversion(nnunet_folders: Path, key: str) -> None:
    tree = _build(key, nnunet_folders / "download")
    report = convert(key, [tree.place], Options(splits=("cv",)))
    check_converted(report, tree, _converter(key).label_map)
    folds = json.loads((nnunet_folders / "nnUNet_preprocessed" / report.name / "splits_final.json").read_text())
    for fold in folds:
        patients = [{_converter(key).group(case) for case in fold[part]} for part in ("train", "val")]
        assert not patients[0] & patients[1]


def test_conversion_of_plain_labels_and_uncompressed_files(nnunet_folders: Path) -> None:
    tree = brats2020.build(nnunet_folders / "download", ending=".nii")
    report = convert("brats2020", [tree.place], Options(splits=("cv",)), {"regions": False})
    check_converted(report, tree, _converter("brats2020").label_map)
    assert json.loads((report.folder / "dataset.json").read_text())["labels"]["enhancing tumor"] == 3


@pytest.mark.parametrize(
    ("key", "value", "hint"), [("brats2020", 3, "BraTS 2023"), ("brats2023gli", 4, "brats2024gli")]
)
def test_labels_of_another_year_are_named(nnunet_folders: Path, key: str, value: int, hint: str) -> None:
    tree = _build(key, nnunet_folders / "download")
    case = next(iter(tree.training))
    path = next(tree.place.rglob(f"{case}{_converter(key).segmentation}.nii.gz"))
    known = tree.training[case]
    save(path, np.where(known.labels == known.labels.max(), value, known.labels).astype(np.uint8), known.affine)
    report = convert(key, [tree.place], Options(splits=("cv",)))
    (fault,) = report.faults
    assert fault.case == case
    assert hint in fault.reason
