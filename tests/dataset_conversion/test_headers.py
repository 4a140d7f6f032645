"""Headers that make no sense are named, and what is stored oddly keeps its values."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK
from one_case import a_case, job, source
from trees import volumes
from trees.volumes import SHAPE

from nnunet_ext.dataset_conversion.volumes import UnusableError, read_header, read_volume
from nnunet_ext.dataset_conversion.work import convert_case

LABELS = volumes.labels(0, (1, 2, 3))


def dim(*edges: int) -> tuple[int, ...]:
    return (len(edges), *edges, *(1,) * (7 - len(edges)))


def patched(path: Path, **fields: Any) -> None:
    """Change a header behind nibabel's back."""
    content = gzip.decompress(path.read_bytes())
    header = nibabel.Nifti1Header(content[:348], check=False)
    for name, value in fields.items():
        header[name] = value
    path.write_bytes(gzip.compress(header.binaryblock + content[348:], 1))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"datatype": 0}, "datatype is 0, which is none"),
        ({"datatype": 1}, "datatype is 1,"),
        ({"datatype": 9999}, "datatype is 9999"),
        ({"datatype": 1536}, "float128; expected one number each, of up to 64 bits"),
        ({"vox_offset": -4}, "vox_offset is -4; voxels begin at byte 352"),
        ({"vox_offset": 0}, "vox_offset is 0"),
        ({"vox_offset": np.nan}, "vox_offset is nan"),
        ({"vox_offset": np.inf}, "vox_offset is inf"),
        ({"vox_offset": 1e9}, "cut off or damaged"),
        ({"dim": dim(14, 16, 0)}, r"dim is \[14, 16, 0\]"),
        ({"dim": dim(14, -16, 12)}, r"dim is \[14, -16, 12\]; every edge must be 1 or more"),
        ({"dim": dim(-14, -16, 12)}, "dim is"),
        ({"dim": (0, 14, 16, 12, 1, 1, 1, 1)}, r"dim\[0\] is 0"),
        ({"dim": (-3, 14, 16, 12, 1, 1, 1, 1)}, r"dim\[0\] is -"),
        ({"dim": (9, 14, 16, 12, 1, 1, 1, 1)}, "NIfTI file"),
        ({"srow_x": [np.nan] * 4}, "not finite"),
        ({"srow_x": [0] * 4, "srow_y": [0] * 4, "qform_code": 0}, "no usable geometry|not perpendicular"),
        ({"quatern_b": 1.0, "quatern_c": 1.0, "sform_code": 0}, "header is damaged"),
    ],
)
def test_absurd_headers_are_named(tmp_path: Path, fields: dict[str, Any], words: str) -> None:
    """One and the same in image and label, so that they agree."""
    image, label = a_case(tmp_path)
    patched(image, **fields)
    patched(label, **fields)
    with pytest.raises(UnusableError, match=words) as caught:
        convert_case(job(tmp_path, [image], label))
    assert str(image) in str(caught.value) or words.startswith("cut off")


@pytest.mark.parametrize(
    "scale", [(0, 0), (np.nan, np.nan), (np.inf, 0), (0, np.nan), (0, 7), (1, np.nan), (1, np.inf)]
)
def test_meaningless_scalings_are_none(tmp_path: Path, scale: tuple[float, float]) -> None:
    """The written label says the same to SimpleITK and nibabel, which differ in an intercept with a slope of 0."""
    image, label = a_case(tmp_path)
    patched(label, scl_slope=scale[0], scl_inter=scale[1])
    entry = convert_case(job(tmp_path, [image], label))
    made = tmp_path / "target" / "labelsTr" / "case.nii.gz"
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(made))).T, LABELS)
    np.testing.assert_array_equal(volumes.load(made)[0], LABELS)
    assert bool(entry["label"]["changes"]) == (scale in ((0, 7), (1, np.nan), (1, np.inf)))


@pytest.mark.parametrize("offset", [352, 368, 1000])
def test_voxels_may_begin_later(tmp_path: Path, offset: int) -> None:
    image, label = a_case(tmp_path, ending=".nii")
    content = bytearray(label.read_bytes())
    content[352:352] = bytes(offset - 352)
    content[108:112] = np.array(offset, "<f4").tobytes()
    label.write_bytes(content)
    convert_case(job(tmp_path, [image], label))
    np.testing.assert_array_equal(volumes.load(tmp_path / "target" / "labelsTr" / "case.nii.gz")[0], LABELS)


@pytest.mark.parametrize("check", ["none", "fast", "full"])
def test_uncompressed_files_of_any_channel_are_compressed(tmp_path: Path, check: str) -> None:
    """Headers are read where files must be rewritten, whatever is checked."""
    image, label = a_case(tmp_path, ending=".nii")
    second = volumes.save(tmp_path / "second.nii", volumes.image(1), volumes.affine())
    entry = convert_case(job(tmp_path, [image, second], label, check=check))
    made = tmp_path / "target"
    for name, path in (("imagesTr/case_0000", image), ("imagesTr/case_0001", second), ("labelsTr/case", label)):
        assert gzip.decompress((made / f"{name}.nii.gz").read_bytes()) == path.read_bytes()
    assert [file["action"] for file in (*entry["images"], entry["label"])] == ["write"] * 3


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("most", [3, 300])
def test_order_of_bytes_is_that_of_the_header(tmp_path: Path, order: str, most: int) -> None:
    image, label = a_case(tmp_path)
    expected = LABELS.astype(np.uint16) * (most // 3)
    header = nibabel.Nifti1Header(endianness=order)
    made: Any = nibabel.Nifti1Image(expected.astype(f"{order}u2"), volumes.affine(), header)
    label.write_bytes(gzip.compress(made.to_bytes()))
    values = {int(value): int(value) for value in np.unique(expected)}
    values[most // 3] = 1  # so that it is written anew
    values[most // 3 * 2] = 2
    convert_case(job(tmp_path, [image], label, rules={"label_map": {**values, 999: 999}}))
    read, _ = volumes.load(tmp_path / "target" / "labelsTr" / "case.nii.gz")
    np.testing.assert_array_equal(read, np.vectorize(values.get)(expected))
    volume = read_volume(source(label), label.read_bytes())
    volume.stored = expected
    with (tmp_path / "again.nii").open("wb") as stream:
        volume.write(stream)
    np.testing.assert_array_equal(volumes.load(tmp_path / "again.nii")[0], expected)
    assert read_header(source(tmp_path / "again.nii"))[0].endianness == order


@pytest.mark.parametrize(("nan", "expected"), [("minimum", -1000.0), ("zero", 0.0)])
def test_what_replaces_nan(tmp_path: Path, nan: str, expected: float) -> None:
    image, label = a_case(tmp_path)
    array = volumes.image(0).astype(np.float32)
    array[0, 0, 0], array[1, 1, 1], array[2, 2, 2] = np.nan, -1000, np.inf
    volumes.save(image, array, volumes.affine())
    convert_case(job(tmp_path, [image], label, fix_nan=True, rules={"nan": nan}))
    read, _ = volumes.load(tmp_path / "target" / "imagesTr" / "case_0000.nii.gz")
    assert read[0, 0, 0] == read[2, 2, 2] == expected
    np.testing.assert_array_equal(read[1:2], np.where(np.isfinite(array), array, expected)[1:2])


@pytest.mark.parametrize("codes", [(1, 0), (0, 1), (1, 1)])
def test_nifti2_keeps_its_geometry(tmp_path: Path, codes: tuple[int, int]) -> None:
    """Quaternion, offsets, rows and pixdim all count for one reader or the other."""
    turn = np.array([[0.0, -1.0, 0.0], [0.8, 0.0, -0.6], [0.6, 0.0, 0.8]])
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turn * (1.5, 0.7, 3.0), (10, -20, 30)
    made: Any = nibabel.Nifti2Image(volumes.image(1), None)
    made.header.set_qform(affine, codes[0])
    made.header.set_sform(affine, codes[1])
    path = tmp_path / "two.nii.gz"
    path.write_bytes(gzip.compress(made.to_bytes()))
    convert_case(job(tmp_path, [path], None))
    written = tmp_path / "target" / "imagesTs" / "case_0000.nii.gz"
    read = SimpleITK.ReadImage(str(written))
    found = np.diag([-1, -1, 1]) @ np.reshape(read.GetDirection(), (3, 3)) * np.array(read.GetSpacing())
    np.testing.assert_allclose(found, affine[:3, :3], atol=1e-4)
    np.testing.assert_allclose(np.array(read.GetOrigin()) * (-1, -1, 1), affine[:3, 3], atol=1e-4)
    np.testing.assert_allclose(volumes.load(written)[1], affine, atol=1e-4)
    assert volumes.load(written)[0].shape == SHAPE
