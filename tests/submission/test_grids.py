"""Geometry as nnU-Net's readers and writers leave it, and turning back."""

from __future__ import annotations

from itertools import permutations, product
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from nibabel.eulerangles import euler2mat
from nibabel.orientations import apply_orientation, inv_ornt_aff
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from trees.volumes import affine, save

from nnunet_ext.dataset_conversion.volumes import geometry
from nnunet_ext.submission.grids import grid_problem, turn_back
from nnunet_ext.submission.nifti import read
from nnunet_ext.submission.raw_data import Geometry, geometry_of

HEADERS: dict[str, dict[str, Any]] = {
    "both": {},
    "qform only": {"sform_code": 0},
    "sform only": {"qform_code": 0},
    "no codes": {"sform_code": 0, "qform_code": 0},
    "metres": {"xyzt_units": 1},
    "micrometres": {"xyzt_units": 3},
    "no units": {"xyzt_units": 0},
    "other codes": {"sform_code": 4, "qform_code": 2},
}


def _oblique() -> np.ndarray:
    made = affine((0.7, 0.9, 3.0), seed=4)
    made[:3, :3] = euler2mat(0.3, 0.2, -0.4) @ made[:3, :3]
    return made


def _geometry(header: Any) -> Geometry:
    return geometry_of(geometry(header, header.get_data_shape()))


def _of(path: Path) -> Geometry:
    with path.open("rb") as stream:
        return read(stream).geometry()


WRONG: dict[str, dict[str, Any]] = {
    "spacing beside a right sform": {"pixdim": [1, 9, 1, 2, 0, 0, 0, 0], "qform_code": 0},
    "spacing": {"pixdim": [1, 9, 1, 2, 0, 0, 0, 0]},
    "metres": {"xyzt_units": 1},
    "qform's origin beside a right sform": {"qoffset_x": 500},
    "sform's origin beside a right qform": {"srow_x": [-1, 0, 0, 500]},
    "NaN": {"srow_x": [np.nan, 0, 0, 0]},
    "NaN in qform": {"qoffset_x": np.nan},
    "no spacing": {"pixdim": [1, 0, 1, 2, 0, 0, 0, 0]},
}


@pytest.mark.parametrize("name", WRONG)
def test_whatever_a_reader_may_make_of_a_header_must_be_right(tmp_path: Path, name: str) -> None:
    image = _of(save(tmp_path / "a.nii", np.zeros((5, 6, 7), np.int16), affine()))
    header = nibabel.Nifti1Header((tmp_path / "a.nii").read_bytes()[:348], check=False)
    for key, value in WRONG[name].items():
        header[key] = value
    (tmp_path / "b.nii").write_bytes(header.binaryblock + (tmp_path / "a.nii").read_bytes()[348:])
    problem = grid_problem("b", _of(tmp_path / "b.nii"), image, "it")
    assert problem is not None
    assert problem.kind == "geometry"


@pytest.mark.parametrize("writer", [SimpleITKIO, NibabelIO, NibabelIOWithReorient])
@pytest.mark.parametrize("name", HEADERS)
@pytest.mark.parametrize("oblique", [False, True])
def test_what_nnunet_writes_is_taken(tmp_path: Path, writer: Any, name: str, oblique: bool) -> None:
    transform = _oblique() if oblique else affine(seed=3)
    path = save(tmp_path / "a.nii.gz", np.zeros((5, 6, 7), np.int16), transform, **HEADERS[name])
    image, properties = writer().read_images([str(path)])
    writer().write_seg(np.zeros(image.shape[1:], np.uint8), str(tmp_path / "b.nii.gz"), properties)
    got = _of(tmp_path / "b.nii.gz")
    assert grid_problem("b", got, _geometry(nibabel.load(path).header), "the image") is None
    moved = _of(save(tmp_path / "c.nii", np.zeros((5, 6, 7)), transform @ np.diag([1, 1, 1.1, 1])))
    problem = grid_problem("c", moved, _geometry(nibabel.load(path).header), "the image")
    assert problem is not None
    assert problem.kind == "geometry"


def _both(original: np.ndarray, written: np.ndarray, shapes: tuple[Any, Any]) -> tuple[Geometry, Geometry]:
    images = [nibabel.Nifti1Image(np.zeros(s, np.uint8), a) for a, s in zip((original, written), shapes, strict=True)]
    return _geometry(images[0].header), _geometry(images[1].header)


def test_all_turns_come_back() -> None:
    labels = np.arange(5 * 6 * 7).reshape(5, 6, 7)
    for order, flips in product(permutations(range(3)), product((1, -1), repeat=3)):
        turn = np.array(list(zip(order, flips, strict=True)))
        there = apply_orientation(labels, turn)
        back = turn_back(*_both(_oblique(), _oblique() @ inv_ornt_aff(turn, labels.shape), (labels.shape, there.shape)))
        assert back is not None
        assert np.array_equal(back(there), labels)


@pytest.mark.parametrize(
    "change",
    [
        np.diag([1.0, 1, 1.05, 1]),
        np.array([[1.0, 0, 0, 0.2], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]),
        np.diag([0.0, 1, 1, 1]),
    ],
)
def test_images_that_do_not_correspond(change: np.ndarray) -> None:
    original, written = _both(affine(), affine(), ((5, 6, 7), (5, 6, 7)))
    moved = tuple(tuple(row) for row in np.array(original.affine) @ change)
    assert turn_back(Geometry(original.shape, moved, original.header), written) is None
    assert turn_back(original, Geometry((6, 5, 7), written.affine, written.header)) is None
