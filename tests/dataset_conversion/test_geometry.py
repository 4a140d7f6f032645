"""Where voxels lie for nnU-Net's reader: as SimpleITK and nibabel read headers that say two things."""

from __future__ import annotations

import gzip
import itertools
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK
from one_case import a_case, job, world
from trees import volumes
from trees.volumes import SHAPE

from nnunet_ext.dataset_conversion.itk_geometry import conflict, form_taken, itk_affine
from nnunet_ext.dataset_conversion.volumes import UnusableError, copy_geometry, difference, set_affine
from nnunet_ext.dataset_conversion.work import convert_case

LABELS = volumes.labels(0, (1, 2, 3))
MIRROR = np.diag([-1.0, 1.0, 1.0, 1.0])
READER = "NibabelIOWithReorient"


def header_of(
    qform: np.ndarray, sform: np.ndarray, codes: tuple[int, int], spacing: tuple[float, ...], **fields: Any
) -> Any:
    """A header of one voxel with these two forms, with `spacing` in pixdim."""
    header = nibabel.Nifti1Header()
    header.set_data_shape((1, 1, 1))
    header.set_data_dtype(np.uint8)
    header.set_qform(qform, 1)
    header.set_sform(sform, 1)
    header["qform_code"], header["sform_code"] = codes
    header["pixdim"][1:4] = spacing
    for name, value in {"magic": b"n+1", "vox_offset": 352, "xyzt_units": 2, **fields}.items():
        header[name] = value
    return header


def read_by_itk(path: Path) -> np.ndarray:
    image = SimpleITK.ReadImage(str(path))
    made = np.eye(4)
    made[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * np.array(image.GetSpacing())
    made[:3, 3] = image.GetOrigin()
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ made


def check_against_itk(header: Any, path: Path) -> None:
    path.write_bytes(header.binaryblock + bytes(5))
    expected: np.ndarray | None
    try:
        expected = read_by_itk(path)
    except RuntimeError:
        expected = None
    found = itk_affine(header)
    if expected is None or found is None:
        assert found is expected
    else:
        scale = float(np.abs(expected).max())
        np.testing.assert_allclose(found / scale, expected / scale, atol=1e-4)


def rotated(seed: int, spacing: tuple[float, ...], flip: bool = False) -> np.ndarray:
    axes, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    axes[:, 0] *= np.linalg.det(axes) * (-1 if flip else 1)
    made = np.eye(4)
    made[:3, :3] = axes * spacing
    made[:3, 3] = (4 + seed, 5, 6)
    return made


def sheared(affine: np.ndarray, by: float) -> np.ndarray:
    made = affine.copy()
    made[:3, 1] += by * made[:3, 0]
    return made


def test_affine_is_simpleitks_for_all_codes(tmp_path: Path) -> None:
    spacing = (1.0, 2.0, 3.0)
    for (q, s), (flip_q, flip_s) in itertools.product(
        itertools.product(range(-1, 6), repeat=2), itertools.product((False, True), repeat=2)
    ):
        header = header_of(rotated(1, spacing, flip_q), rotated(2, spacing, flip_s), (q, s), spacing)
        check_against_itk(header, tmp_path / "a.nii")


@pytest.mark.parametrize("codes", [(0, 0), (1, 0), (0, 1), (1, 1), (1, 2), (2, 4)])
def test_affine_is_simpleitks_for_odd_headers(tmp_path: Path, codes: tuple[int, int]) -> None:
    spacing = (1.0, 2.0, 3.0)
    plain = rotated(3, spacing)
    odd: list[dict[str, Any]] = [{"xyzt_units": units} for units in (0, 1, 3, 4, 9, 11, 255)]
    odd += [{"pixdim": (1, *edges, 1, 1, 1, 1)} for edges in ((3, 3, 3), (0, 2, 3), (-1, 2, 3), (np.nan, 2, -3))]
    odd += [{"pixdim": (qfac, *spacing, 1, 1, 1, 1)} for qfac in (-1, 0, -0.2, 2)]
    odd += [{"quatern_b": 0.9, "quatern_c": 0.9}, {"quatern_b": np.nan}, {"qoffset_x": np.nan}]
    for fields in odd:
        check_against_itk(header_of(rotated(4, spacing), plain, codes, spacing, **fields), tmp_path / "a.nii")
    for by in (1e-6, 1e-5, 3e-5, 3e-4, 1e-3, 0.1):
        header = header_of(rotated(4, spacing), sheared(plain, by), codes, spacing)
        check_against_itk(header, tmp_path / "a.nii")


@pytest.mark.parametrize("codes", [(1, 1), (1, 2), (2, 4)])
def test_affine_is_simpleitks_where_the_forms_differ_in_axes_alone(tmp_path: Path, codes: tuple[int, int]) -> None:
    """ITK's test of "very similar" misses some mirrored axes."""
    taken = set()
    for order, signs in itertools.product(itertools.permutations(range(3)), itertools.product((1, -1), repeat=3)):
        sform = np.eye(4)
        sform[:3, :3] = np.eye(3)[:, order] * signs
        header = header_of(np.eye(4), sform, codes, (1, 1, 1))
        check_against_itk(header, tmp_path / "a.nii")
        taken.add(form_taken(header))
    assert taken == ({"sform"} if codes == (1, 1) else {"qform", "sform"})


def test_what_contradicts_itself() -> None:
    plain = rotated(3, (1, 2, 3))
    assert conflict(header_of(plain, plain, (1, 1), (1, 2, 3))) is None
    assert conflict(header_of(plain, plain @ MIRROR, (1, 0), (1, 2, 3))) is None
    assert conflict(header_of(plain @ MIRROR, plain, (0, 2), (1, 2, 3))) is None
    assert (
        conflict(header_of(plain, plain @ MIRROR, (1, 2), (1, 2, 3))) == "its qform and its sform differ in direction"
    )
    said = conflict(header_of(plain, plain, (0, 1), (1, 2, 4)))
    assert said == "spacing [1.0, 2.0, 4.0] in pixdim, but [1.0, 2.0, 3.0] in its sform"


@pytest.mark.parametrize("angle", [0.0, 0.3, 3.1405])
@pytest.mark.parametrize("start", [{}, {"qform_code": 2, "sform_code": 4}, {"xyzt_units": 1}, {"qform_code": 3}])
def test_written_affine_is_the_same_for_both_libraries(tmp_path: Path, start: dict[str, Any], angle: float) -> None:
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turn * (-0.7, 0.8, 5.0), (-240, 130.5, -700)
    header = header_of(rotated(1, (1, 1, 1)), rotated(2, (1, 1, 1)), (0, 0), (9, 9, 9), **start)
    set_affine(header, affine, (1, 1, 1))
    path = tmp_path / "a.nii"
    path.write_bytes(header.binaryblock + bytes(5))
    np.testing.assert_allclose(read_by_itk(path), affine, atol=1e-4)
    read: Any = nibabel.load(path)
    np.testing.assert_allclose(read.affine, affine, atol=1e-4)
    np.testing.assert_allclose(read.header.get_qform(), affine, atol=0.3 if angle > 3 else 1e-3)
    np.testing.assert_allclose(read.header.get_zooms(), (0.7, 0.8, 5.0), rtol=1e-6)
    assert (int(header["qform_code"]), int(header["sform_code"])) == (1, 1)
    assert header.get_xyzt_units()[0] == "mm"


@pytest.mark.parametrize("codes", [(1, 0), (0, 1), (1, 2)])
def test_copied_geometry_is_the_sources_for_both_libraries(tmp_path: Path, codes: tuple[int, int]) -> None:
    source = header_of(rotated(5, (1, 2, 3), flip=True), rotated(6, (1, 2, 3)), codes, (1, 2, 3), xyzt_units=3)
    other = header_of(np.eye(4), np.eye(4), (2, 2), (1, 1, 1))
    copy_geometry(other, source)
    read = []
    for name, header in (("a.nii", source), ("b.nii", other)):
        (tmp_path / name).write_bytes(header.binaryblock + bytes(5))
        loaded: Any = nibabel.load(tmp_path / name)
        read.append((read_by_itk(tmp_path / name), loaded.affine, loaded.header.get_zooms()))
    for one, two in zip(*read, strict=True):
        np.testing.assert_array_equal(one, two)


def two_forms(path: Path, array: np.ndarray, qform: np.ndarray, sform: np.ndarray, **header: Any) -> Path:
    """A volume whose qform is not its sform."""
    made: Any = nibabel.Nifti1Image(array, None)
    made.header.set_xyzt_units("mm")
    made.header.set_qform(qform, int(header.pop("qform_code", 1)))
    made.header.set_sform(sform, int(header.pop("sform_code", 1)))
    for name, value in header.items():
        made.header[name] = value
    path.write_bytes(gzip.compress(made.to_bytes(), 1))
    return path


def written(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    image = SimpleITK.ReadImage(str(folder / "target" / "labelsTr" / "case.nii.gz"))
    return SimpleITK.GetArrayFromImage(image).T, read_by_itk(folder / "target" / "labelsTr" / "case.nii.gz")


def test_mirrored_sform_that_the_reader_does_not_take_turns_nothing(tmp_path: Path) -> None:
    """For ITK image and label agree (the label's qform counts), so for nnU-Net, too; for nibabel they don't."""
    image, label = a_case(tmp_path)
    place = volumes.affine()
    mirrored = place @ MIRROR
    mirrored[0, 3] += 3
    two_forms(label, LABELS, place, mirrored, sform_code=2)
    entry = convert_case(job(tmp_path, [image], label))
    assert entry["label"]["action"] == "link"
    (notice,) = entry["notices"]
    assert (
        "its qform and its sform differ in origin and direction; nnU-Net's reader (SimpleITK) takes the qform" in notice
    )
    entry = convert_case(job(tmp_path / "other", [image], label, reader=READER))
    assert "nnU-Net's reader (nibabel) takes the sform" in entry["notices"][0]
    assert "origin and direction differ from those of image.nii.gz" in entry["notices"][1]


def test_forms_that_differ_make_image_and_label_differ_for_simpleitk(tmp_path: Path) -> None:
    image, label = a_case(tmp_path)
    place = volumes.affine()
    mirrored = place @ MIRROR
    mirrored[0, 3] += 3
    two_forms(image, volumes.image(0), mirrored, place, sform_code=2)
    entry = convert_case(job(tmp_path, [image], label))
    assert any("differ from those of image.nii.gz" in notice for notice in entry["notices"])
    convert_case(job(tmp_path, [image], label, copy_geometry=True))
    labels, affine = written(tmp_path)
    np.testing.assert_array_equal(labels, LABELS)
    made = tmp_path / "target" / "imagesTr" / "case_0000.nii.gz"
    np.testing.assert_array_equal(affine, read_by_itk(made))
    np.testing.assert_array_equal(volumes.load(made)[1], volumes.load(tmp_path / "target/labelsTr/case.nii.gz")[1])


def test_sheared_sform_with_a_good_qform_is_read(tmp_path: Path) -> None:
    image, label = a_case(tmp_path)
    for path, array in ((image, volumes.image(0)), (label, LABELS)):
        two_forms(path, array, volumes.affine(), sheared(volumes.affine(), 0.2), sform_code=2)
    entry = convert_case(job(tmp_path, [image], label))
    assert [entry["images"][0]["action"], entry["label"]["action"]] == ["link", "link"]
    assert "takes the qform" in entry["notices"][0]
    with pytest.raises(UnusableError, match="not perpendicular"):
        convert_case(job(tmp_path, [image], label, reader=READER))


def test_spacing_is_pixdims_in_millimetres(tmp_path: Path) -> None:
    image, label = a_case(tmp_path)
    volumes.save(label, LABELS, volumes.affine(), qform_code=0, pixdim=(1, 3, 1, 2, 0, 0, 0, 0))
    with pytest.raises(UnusableError, match=r"spacing \[3.0, 1.0, 2.0\] mm, but \[1.0, 1.0, 2.0\]"):
        convert_case(job(tmp_path, [image], label))
    entry = convert_case(job(tmp_path, [image], label, reader=READER))
    assert entry["label"]["changes"][0].startswith("pixdim [3.0, 1.0, 2.0] set to")
    np.testing.assert_allclose(written(tmp_path)[1], volumes.affine(), atol=1e-5)
    volumes.save(label, LABELS, volumes.affine(), xyzt_units=1)
    with pytest.raises(UnusableError, match=r"spacing \[1000.0, 1000.0, 2000.0\] mm"):
        convert_case(job(tmp_path, [image], label))
    convert_case(job(tmp_path, [image], label, rules={"aligned": True}))
    np.testing.assert_allclose(written(tmp_path)[1], volumes.affine(), atol=1e-5)
    kilo = np.diag([1e-3, 1e-3, 1e-3, 1]) @ volumes.affine()
    volumes.save(label, LABELS, kilo, xyzt_units=1)  # the same in metres
    assert convert_case(job(tmp_path, [image], label))["label"]["action"] == "link"


@pytest.mark.parametrize("aligned", [False, True])
def test_label_whose_header_says_the_same_place_in_other_axes_is_turned(tmp_path: Path, aligned: bool) -> None:
    """Shape, spacing, origin and direction agree after turning: that is no chance, also in aligned data sets."""
    image, label = a_case(tmp_path)
    before = world(label)
    ras = nibabel.as_closest_canonical(nibabel.load(label))
    volumes.save(label, np.asanyarray(ras.dataobj), ras.affine)
    entry = convert_case(job(tmp_path, [image], label, rules={"aligned": aligned}))
    assert entry["label"]["changes"] == ["axes turned from RAS to LPS"]
    np.testing.assert_array_equal(written(tmp_path)[0], LABELS)
    assert world(tmp_path / "target" / "labelsTr" / "case.nii.gz") == before
    np.testing.assert_allclose(written(tmp_path)[1], volumes.affine(), atol=1e-4)


def test_aligned_label_that_agrees_in_direction_alone_gets_the_images_geometry(tmp_path: Path) -> None:
    """As LiTS' headers with other signs: turned, they would agree in shape, spacing and direction, not in origin."""
    image, label = a_case(tmp_path)
    flipped = volumes.affine() * np.array([[-1], [-1], [1], [1]])
    volumes.save(label, LABELS, flipped)
    entry = convert_case(job(tmp_path, [image], label, rules={"aligned": True}))
    assert "geometry of image.nii.gz copied: origin and direction differed" in entry["label"]["changes"][0]
    np.testing.assert_array_equal(written(tmp_path)[0], LABELS)
    np.testing.assert_allclose(written(tmp_path)[1], volumes.affine(), atol=1e-5)


def test_all_in_ras_means_the_same_to_both_libraries(tmp_path: Path) -> None:
    image, label = a_case(tmp_path)
    mirrored = volumes.affine() @ MIRROR
    mirrored[0, 3] += 3
    for path, array in ((image, volumes.image(0)), (label, LABELS)):
        two_forms(path, array, mirrored, volumes.affine(), sform_code=2)
    convert_case(job(tmp_path, [image], label, reorient=True))
    expected = nibabel.as_closest_canonical(nibabel.load(label))
    labels, affine = written(tmp_path)
    np.testing.assert_array_equal(labels, np.asanyarray(expected.dataobj))
    np.testing.assert_allclose(affine, expected.affine, atol=1e-4)
    np.testing.assert_allclose(read_by_itk(tmp_path / "target/imagesTr/case_0000.nii.gz"), affine, atol=1e-5)


def test_directions_are_compared_to_a_thousandth() -> None:
    plain, tilted = np.eye(4), np.eye(4)
    for angle, differs in ((5e-4, False), (2e-3, True), (0.1, True), (0.4, True)):
        tilted[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        assert difference((SHAPE, plain), (SHAPE, tilted)).direction == differs
