"""The cases that are pre-trained on: what nnU-Net has preprocessed, and images without labels."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import support
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

from nnunet_ext.errors import UserError
from nnunet_ext.pretraining.preparing import open_pool

Plans = Callable[[str], dict[str, Any]]
PLAIN = "Dataset901_plain"


def pool(dataset: str = PLAIN, *folders: Path, **options: Any) -> Any:
    """A pool without progress bar."""
    return open_pool(dataset, "nnUNetPlans", "3d_fullres", folders, progress=False, **options)


@pytest.fixture
def images(folders: support.Workspace, planned: Plans, tmp_path: Path) -> Path:
    """A folder with two images as FLARE22 names them, and one that is damaged."""
    planned("plain")
    folder = tmp_path / "unlabelled"
    folder.mkdir()
    for number, case in enumerate(("case_0", "case_1")):
        source = folders.raw / PLAIN / "imagesTr" / f"{case}_0000.nii.gz"
        shutil.copyfile(source, folder / f"Case_{number + 1:05d}_0000.nii.gz")
    return folder


def test_without_labels_as_nnunet_with_labels(images: Path) -> None:
    found = pool(PLAIN, images)
    names = [case.name for case in found.cases]
    assert names[:4] == list(support.CASES)
    assert [name.split(".")[1] for name in names[4:]] == ["Case_00001", "Case_00002"]
    for labelled, unlabelled in zip(found.cases[:2], found.cases[4:], strict=True):
        np.testing.assert_array_equal(np.asarray(labelled.image()), np.asarray(unlabelled.image()))
        np.testing.assert_array_equal(labelled.frame.matrix, unlabelled.frame.matrix)
        assert labelled.sha256 == unlabelled.sha256 != ()
        assert labelled.folder != unlabelled.folder
    assert found.spacing == (1.0, 1.0, 1.0)


def test_nothing_is_prepared_twice_and_changed_files_are_noticed(images: Path) -> None:
    first = pool(PLAIN, images).cases[4]
    written = (first.folder / f"{first.name}.pkl").stat().st_mtime_ns
    again = pool(PLAIN, images).cases[4]
    assert again.sha256 == first.sha256
    assert (first.folder / f"{first.name}.pkl").stat().st_mtime_ns == written
    shutil.copyfile(images / "Case_00002_0000.nii.gz", images / "Case_00001_0000.nii.gz")
    changed = pool(PLAIN, images).cases
    assert changed[4].sha256 == changed[5].sha256 != first.sha256
    np.testing.assert_array_equal(np.asarray(changed[4].image()), np.asarray(changed[5].image()))


def test_other_plans_have_other_images(images: Path, folders: support.Workspace, planned: Plans) -> None:
    before = pool(PLAIN, images).cases[4]
    plans = planned("plain")
    changed = json.loads(json.dumps(plans))
    changed["configurations"]["3d_fullres"]["normalization_schemes"] = ["NoNormalization"]
    try:
        folders.write_plans(changed)
        after = pool(PLAIN, images).cases[4]
    finally:
        folders.write_plans(plans)
    assert after.folder != before.folder
    assert np.asarray(after.image()).mean() != pytest.approx(np.asarray(before.image()).mean())


def test_a_damaged_image_is_left_out_and_named(images: Path) -> None:
    (images / "Case_00003_0000.nii.gz").write_bytes(b"no image")
    found = pool(PLAIN, images, processes=1)
    assert len(found.cases) == 6
    assert [name.split(".")[1] for name, _ in found.left_out] == ["Case_00003"]
    assert not list(found.cases[4].folder.glob(".*"))
    for name in ("Case_00001", "Case_00002"):
        (images / f"{name}_0000.nii.gz").unlink()
    with pytest.raises(UserError, match="none of 1 images could be prepared"):
        pool(PLAIN, images, own_images=False)


def test_a_data_set_without_labels_and_with_moved_plans(images: Path, folders: support.Workspace) -> None:
    from nnunetv2.experiment_planning.plans_for_pretraining.move_plans_between_datasets import (
        move_plans_between_datasets,
    )

    dataset = folders.raw / "Dataset950_Unlabelled"
    shutil.copytree(images, dataset / "imagesTr")
    content = {"channel_names": {"0": "MRI"}, "labels": {"background": 0}, "numTraining": 2, "file_ending": ".nii.gz"}
    (dataset / "dataset.json").write_text(json.dumps(content))
    (folders.preprocessed / dataset.name).mkdir()
    move_plans_between_datasets(PLAIN, dataset.name, "nnUNetPlans")
    found = pool("950")
    assert [case.name for case in found.cases] == ["Case_00001", "Case_00002"]
    assert {case.source for case in found.cases} == {dataset.name}
    reference = pool(PLAIN).cases[0]
    np.testing.assert_array_equal(np.asarray(found.cases[0].image()), np.asarray(reference.image()))


def test_plain_names_for_one_channel(images: Path) -> None:
    (images / "Case_00001_0000.nii.gz").rename(images / "scan of a patient.nii.gz")
    (images / "Case_00002_0000.nii.gz").rename(images / "scan_2019.nii.gz")
    shutil.copyfile(images / "scan_2019.nii.gz", images / "scan_2020.nii.gz")
    found = [case.name.split(".")[1] for case in pool(PLAIN, images).cases[4:]]
    assert found == ["scan of a patient", "scan_2019", "scan_2020"]


def test_what_nnunet_has_preprocessed_again(folders: support.Workspace, planned: Plans, tmp_path: Path) -> None:
    planned("plain")
    other = folders.copy(tmp_path / "copy")
    with other.environment():
        before = pool().cases[0]
        image = np.asarray(before.image())[:, :20]
        properties = before.properties()
        for file in before.folder.glob("case_0*"):
            file.unlink()
        blocks = image.shape
        nnUNetDatasetBlosc2.save_case(
            image, image > 9, properties, str(before.folder / "case_0"), blocks, blocks, blocks, blocks
        )
        assert pool().cases[0].shape == image.shape[1:] != before.shape


def test_excluded_cases(folders: support.Workspace, planned: Plans) -> None:
    planned("plain")
    assert [case.name for case in pool(exclude=["case_1"]).cases] == ["case_0", "case_2", "case_3"]
    with pytest.raises(UserError, match="cannot leave out case_9"):
        pool(exclude=["case_9"])


def test_copies_of_excluded_cases(images: Path) -> None:
    """Under another name, in a folder of images without labels."""
    found = pool(PLAIN, images, exclude=["case_1"], own_images=False)
    assert [case.name.split(".")[1] for case in found.cases] == ["Case_00001"]
    assert [reason for _, reason in found.left_out] == ["the same file as a case that is to be left out"]


def test_the_raw_images_are_gone(folders: support.Workspace, planned: Plans, tmp_path: Path) -> None:
    planned("plain")
    other = folders.copy(tmp_path / "copy")
    shutil.rmtree(other.raw / PLAIN / "imagesTr")
    with other.environment():
        found = pool()
    assert [case.name for case in found.cases] == list(support.CASES)
    assert found.cases[0].sha256 == ()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("999", "nnUNetPlans", "3d_fullres"), "-d 999: "),
        ((PLAIN, "fooPlans", "3d_fullres"), "no plans fooPlans .*there are: .*nnUNetPlans"),
        ((PLAIN, "nnUNetPlans", "3d_lowres"), "-c 3d_lowres: .* has 2d, 3d_fullres"),
        ((PLAIN, "nnUNetPlans", "2d"), "needs a 3D configuration"),
        ((PLAIN, "nnUNetPlans", "3d_fullres", [Path("nowhere")]), "there is no such folder"),
    ],
)
def test_wrong_arguments(folders: support.Workspace, planned: Plans, arguments: Any, message: str) -> None:
    planned("plain")
    with pytest.raises(UserError, match=message):
        open_pool(*arguments)


def test_incomplete_channels_and_empty_folders(folders: support.Workspace, planned: Plans, tmp_path: Path) -> None:
    planned("twochannels")
    with pytest.raises(UserError, match="no images with the endings"):
        pool("907", tmp_path)
    source = folders.raw / "Dataset907_twochannels" / "imagesTr" / "case_0_0001.nii.gz"
    shutil.copyfile(source, tmp_path / "x_0001.nii.gz")
    with pytest.raises(UserError, match=r"1 image file\(s\) \(x_0001.nii.gz\), but the data set has 2 channel"):
        pool("907", tmp_path)
