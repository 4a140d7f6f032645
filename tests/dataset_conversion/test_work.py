"""One case: what is linked, what is rewritten, and where its voxels lie afterwards."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK
from one_case import a_case, job, world
from trees import volumes
from trees.volumes import SHAPE

from nnunet_ext.dataset_conversion.volumes import UnusableError
from nnunet_ext.dataset_conversion.work import convert_case


def test_right_files_are_linked_and_their_bytes_are_not_touched(tmp_path: Path) -> None:
    image, label = a_case(tmp_path)
    entry = convert_case(job(tmp_path, [image], label))
    made = tmp_path / "target" / "imagesTr" / "case_0000.nii.gz"
    assert made.is_symlink()
    assert os.readlink(made) == "../../image.nii.gz"  # both can be moved together
    assert (entry["images"][0]["action"], entry["label"]["action"]) == ("link", "link")
    assert entry["label"]["values"] == {"0": np.prod(SHAPE) - 24, "1": 8, "2": 8, "3": 8}
    assert json.loads(json.dumps(entry)) == entry


@pytest.mark.parametrize("mode", ["copy", "hardlink"])
def test_other_modes(tmp_path: Path, mode: str) -> None:
    image, label = a_case(tmp_path)
    convert_case(job(tmp_path, [image], label, mode=mode))
    made = tmp_path / "target" / "imagesTr" / "case_0000.nii.gz"
    assert not made.is_symlink()
    assert made.read_bytes() == image.read_bytes()
    assert made.samefile(image) == (mode == "hardlink")


def test_uncompressed_files_are_compressed_or_kept(tmp_path: Path) -> None:
    image, label = a_case(tmp_path, ending=".nii")
    convert_case(job(tmp_path, [image], label))
    made = tmp_path / "target" / "imagesTr" / "case_0000.nii.gz"
    assert gzip.decompress(made.read_bytes()) == image.read_bytes()
    convert_case(job(tmp_path / "kept", [image], label, ending=".nii"))
    assert (tmp_path / "kept" / "target" / "imagesTr" / "case_0000.nii").is_symlink()


def test_content_decides_whether_a_file_is_compressed(tmp_path: Path) -> None:
    image, label = a_case(tmp_path, ending=".nii")
    wrong = image.rename(tmp_path / "wrong.nii.gz")  # as some browsers save
    convert_case(job(tmp_path, [wrong], label))
    made = tmp_path / "target" / "imagesTr" / "case_0000.nii.gz"
    assert gzip.decompress(made.read_bytes()) == wrong.read_bytes()


def test_label_in_other_axes_is_turned_to_the_images(tmp_path: Path) -> None:
    """Both describe the same patient, so the label's voxels follow the image's axes."""
    image, label = a_case(tmp_path)
    before = world(label)
    turned = nibabel.as_closest_canonical(nibabel.load(label))
    volumes.save(label, np.asanyarray(turned.dataobj).transpose(1, 0, 2), turned.affine[:, [1, 0, 2, 3]])
    assert volumes.load(label)[0].shape != SHAPE
    entry = convert_case(job(tmp_path, [image], label))
    made = tmp_path / "target" / "labelsTr" / "case.nii.gz"
    assert world(made) == before
    np.testing.assert_array_equal(volumes.load(made)[0], volumes.labels(0, (1, 2, 3)))
    assert entry["label"]["changes"] == ["axes turned from ARS to LPS"]


def test_channel_in_other_axes_is_turned_to_the_first(tmp_path: Path) -> None:
    image, label = a_case(tmp_path)
    other = nibabel.as_closest_canonical(nibabel.load(image))
    second = volumes.save(tmp_path / "second.nii.gz", np.asanyarray(other.dataobj), other.affine)
    convert_case(job(tmp_path, [image, second], label))
    made = [volumes.load(tmp_path / "target" / "imagesTr" / f"case_000{c}.nii.gz") for c in range(2)]
    np.testing.assert_array_equal(made[0][0], made[1][0])
    np.testing.assert_allclose(made[0][1], made[1][1])


def test_wrong_header_of_a_label_gets_the_images_where_voxels_are_known_to_correspond(tmp_path: Path) -> None:
    image, label = a_case(tmp_path)
    volumes.save(label, volumes.labels(0, (1, 2, 3)), np.eye(4))
    entry = convert_case(job(tmp_path, [image], label, rules={"aligned": True}))
    labels, transform = volumes.load(tmp_path / "target" / "labelsTr" / "case.nii.gz")
    np.testing.assert_array_equal(labels, volumes.labels(0, (1, 2, 3)))
    np.testing.assert_allclose(transform, volumes.affine())
    assert "geometry of image.nii.gz copied" in entry["label"]["changes"][0]


def test_wrong_header_of_a_label_is_a_fault_or_a_notice_elsewhere(tmp_path: Path) -> None:
    image, label = a_case(tmp_path)
    volumes.save(label, volumes.labels(0, (1, 2, 3)), np.eye(4))
    with pytest.raises(UnusableError, match=r"spacing \[1.0, 1.0, 1.0\] mm, but \[1.0, 1.0, 2.0\].*--copy-geometry"):
        convert_case(job(tmp_path, [image], label))
    assert convert_case(job(tmp_path, [image], label, copy_geometry=True))["label"]["action"] == "write"
    moved = volumes.affine()
    moved[0, 3] += 5
    volumes.save(label, volumes.labels(0, (1, 2, 3)), moved)
    entry = convert_case(job(tmp_path, [image], label))
    assert entry["label"]["action"] == "link"
    assert "origin differ" in entry["notices"][0]


def test_spacing_that_differs_by_rounding_is_made_equal(tmp_path: Path) -> None:
    image, label = a_case(tmp_path)
    volumes.save(label, volumes.labels(0, (1, 2, 3)), volumes.affine((1.0003, 1.0, 2.0)))
    convert_case(job(tmp_path, [image], label))
    _, transform = volumes.load(tmp_path / "target" / "labelsTr" / "case.nii.gz")
    np.testing.assert_allclose(transform, volumes.affine())


def test_fourth_axis_becomes_channels(tmp_path: Path) -> None:
    _, label = a_case(tmp_path)
    array = np.stack([volumes.image(seed) for seed in range(3)], axis=-1)
    image = volumes.save(tmp_path / "four.nii.gz", array, volumes.affine())
    entry = convert_case(job(tmp_path, [image], label, rules={"channels": 3}))
    for channel in range(3):
        made = tmp_path / "target" / "imagesTr" / f"case_{channel:04d}.nii.gz"
        read, transform = volumes.load(made)
        np.testing.assert_array_equal(read, array[..., channel])
        np.testing.assert_allclose(transform, volumes.affine())
        assert SimpleITK.ReadImage(str(made)).GetDimension() == 3
        assert read.dtype == np.int16
    assert len(entry["images"]) == 3
    assert entry["geometry"]["original"]["shape"] == list(SHAPE)
    with pytest.raises(UnusableError, match=r"the last with the 4 channels"):
        convert_case(job(tmp_path, [image], label, rules={"channels": 4}))


def test_fourth_axis_of_length_one_is_dropped(tmp_path: Path) -> None:
    _, label = a_case(tmp_path)
    image = volumes.save(tmp_path / "four.nii.gz", volumes.image(0)[..., None], volumes.affine())
    convert_case(job(tmp_path, [image], label))
    assert volumes.load(tmp_path / "target" / "imagesTr" / "case_0000.nii.gz")[0].shape == SHAPE
    image = volumes.save(tmp_path / "cine.nii.gz", np.stack([volumes.image(0)] * 2, -1), volumes.affine())
    with pytest.raises(UnusableError, match="4 axes"):
        convert_case(job(tmp_path, [image], label))


@pytest.mark.parametrize("check", ["fast", "full"])
def test_float_and_scaled_labels_become_integers(tmp_path: Path, check: str) -> None:
    image, label = a_case(tmp_path)
    expected = volumes.labels(0, (1, 2, 3))
    for stored, header in (
        (expected.astype(np.float64) + 1e-4, {}),
        (expected * 10, {"scl_slope": 0.1, "scl_inter": 0.0}),
        (expected.astype(">i2"), {}),
    ):
        volumes.save(label, stored, volumes.affine(), **header)
        convert_case(job(tmp_path, [image], label, check=check))
        read, _ = volumes.load(tmp_path / "target" / "labelsTr" / "case.nii.gz")
        np.testing.assert_array_equal(read, expected)
        assert read.dtype.kind in "ui"


def test_label_map_is_applied_and_counted_in_the_new_values(tmp_path: Path) -> None:
    image, label = a_case(tmp_path)
    entry = convert_case(job(tmp_path, [image], label, rules={"label_map": {0: 0, 1: 3, 2: 1, 3: 2}}))
    read, _ = volumes.load(tmp_path / "target" / "labelsTr" / "case.nii.gz")
    before = volumes.labels(0, (1, 2, 3))
    for old, new in {1: 3, 2: 1, 3: 2}.items():
        np.testing.assert_array_equal(read == new, before == old)
    assert entry["label"]["values"] == {"0": before.size - 24, "1": 8, "2": 8, "3": 8}
    assert read.dtype == np.uint8


def test_everything_in_ras_on_request(tmp_path: Path) -> None:
    image, label = a_case(tmp_path)
    before = world(label)
    entry = convert_case(job(tmp_path, [image], label, reorient=True))
    made = tmp_path / "target" / "labelsTr" / "case.nii.gz"
    assert nibabel.aff2axcodes(volumes.load(made)[1]) == ("R", "A", "S")
    assert world(made) == before
    original, written = entry["geometry"]["original"], entry["geometry"]["written"]
    np.testing.assert_allclose(original["affine"], volumes.affine())
    np.testing.assert_allclose(written["affine"], volumes.load(made)[1])


def test_empty_label_means_what_the_data_set_says(tmp_path: Path) -> None:
    image, label = a_case(tmp_path)
    volumes.save(label, np.zeros(SHAPE, np.uint8), volumes.affine())
    assert convert_case(job(tmp_path, [image], label))["notices"] == ["label.nii.gz: no voxel is labelled"]
    assert convert_case(job(tmp_path, [image], label, rules={"empty": "normal"}))["notices"] == []
    with pytest.raises(UnusableError, match="no voxel is labelled"):
        convert_case(job(tmp_path, [image], label, rules={"empty": "error"}))


def test_hounsfield_units_are_looked_at(tmp_path: Path) -> None:
    image, label = a_case(tmp_path)
    (notice,) = convert_case(job(tmp_path, [image], label, rules={"ct": True}))["notices"]
    assert "do not look like Hounsfield units" in notice
    volumes.save(image, volumes.image(0, ct=True), volumes.affine())
    assert convert_case(job(tmp_path, [image], label, rules={"ct": True}))["notices"] == []


def test_unsigned_files_with_a_slope_are_hounsfield_units_all_the_same(tmp_path: Path) -> None:
    image, label = a_case(tmp_path)
    stored = (volumes.image(0, ct=True) + 1024).astype(np.uint16)
    volumes.save(image, stored, volumes.affine(), scl_slope=1.0, scl_inter=-1024.0)
    assert convert_case(job(tmp_path, [image], label, rules={"ct": True}))["notices"] == []


def test_big_endian_and_nifti2_files_keep_their_values_when_rewritten(tmp_path: Path) -> None:
    _, label = a_case(tmp_path)
    for number, made in enumerate(
        (
            nibabel.Nifti2Image(volumes.image(1), volumes.affine()),
            nibabel.Nifti1Image(volumes.image(1), volumes.affine(), nibabel.Nifti1Header(endianness=">")),
        )
    ):
        path = tmp_path / f"odd{number}.nii"
        path.write_bytes(made.to_bytes())
        convert_case(job(tmp_path, [path], label, reorient=True))
        read, transform = volumes.load(tmp_path / "target" / "imagesTr" / "case_0000.nii.gz")
        expected = nibabel.as_closest_canonical(made)
        np.testing.assert_array_equal(read, np.asanyarray(expected.dataobj))
        np.testing.assert_allclose(transform, expected.affine, rtol=1e-6)


def test_nifti2_becomes_nifti1_which_simpleitk_reads(tmp_path: Path) -> None:
    _, label = a_case(tmp_path)
    path = tmp_path / "two.nii.gz"
    path.write_bytes(gzip.compress(nibabel.Nifti2Image(volumes.image(1), volumes.affine()).to_bytes()))
    entry = convert_case(job(tmp_path, [path], label))
    made = tmp_path / "target" / "imagesTr" / "case_0000.nii.gz"
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(made))).T, volumes.image(1))
    np.testing.assert_allclose(volumes.load(made)[1], volumes.affine())
    assert entry["images"][0]["changes"] == ["NIfTI-2 made NIfTI-1, which SimpleITK reads"]


def test_colours_are_refused(tmp_path: Path) -> None:
    image, label = a_case(tmp_path)
    colours = np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")])
    image.write_bytes(gzip.compress(nibabel.Nifti1Image(colours, volumes.affine()).to_bytes()))
    with pytest.raises(UnusableError, match="expected one number each"):
        convert_case(job(tmp_path, [image], label))


def test_inspection_of_a_data_set_leaves_a_case_out(tmp_path: Path) -> None:
    image, label = a_case(tmp_path)
    rules = {"inspect": lambda image, label: f"{image.shape} {label.max()}"}
    with pytest.raises(UnusableError, match=r"\(14, 16, 12\) 3"):
        convert_case(job(tmp_path, [image], label, rules=rules))
    convert_case(job(tmp_path, [image], label, rules=rules, check="none"))
