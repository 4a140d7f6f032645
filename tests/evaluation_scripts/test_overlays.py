from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_evaluations import write_nifti
from matplotlib.figure import Figure
from skimage import io as pictures

from nnunet_ext.errors import UserError
from nnunet_ext.evaluation_scripts.overlays import COLOURS, Overlay, draw_plane, overlay
from nnunet_ext.evaluation_scripts.results import CaseResult
from nnunet_ext.evaluation_scripts.views import PATIENT, PICTURE, box_around, cut, upright
from nnunet_ext.evaluation_scripts.worst_places import most_different, worst_place

SHAPE = (16, 20, 10)  # X to the right, Y to the front, Z to the head
SPACING = (2.0, 1.0, 4.0)
RIGHT = (slice(11, 15), slice(12, 18), slice(5, 8))  # right, front, above
RAS = np.diag([*SPACING, 1.0])


def _stored(volume: np.ndarray, codes: str) -> tuple[np.ndarray, np.ndarray]:
    """An RAS volume as a file with other axes has it, (x, y, z), and its affine."""
    affine = np.zeros((4, 4))
    affine[3, 3] = 1.0
    axes, stored = [], volume
    for column, letter in enumerate(codes):
        axis, sign = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}[letter]
        axes.append(axis)
        affine[axis, column] = sign * SPACING[axis]
        if sign < 0:
            stored = np.flip(stored, axis)
            affine[axis, 3] = (volume.shape[axis] - 1) * SPACING[axis]
    return np.ascontiguousarray(stored.transpose(axes)), affine


def _maps() -> tuple[np.ndarray, np.ndarray]:
    reference, predicted = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.uint8)
    reference[RIGHT] = 1
    predicted[RIGHT] = 1
    predicted[11:15, 12:18, 7] = 0
    predicted[11:15, 10:12, 6] = 1  # a false part behind
    reference[2:4, 3:5, 5] = predicted[2:4, 3:5, 5] = 2
    return reference, predicted


def _case(folder: Path, codes: str = "RAS") -> CaseResult:
    paths = []
    for name, volume in zip(("references", "predictions"), _maps(), strict=True):
        stored, affine = _stored(volume, codes)
        paths.append(str(write_nifti(folder / name / "c.nii.gz", stored, affine)))
    image = np.zeros(SHAPE, np.float32)
    image[RIGHT] = 100.0
    write_nifti(folder / "images" / "c_0000.nii.gz", *_stored(image, codes))
    return CaseResult("c", paths[0], paths[1], {"one": {"Dice": 0.5}, "two": {"Dice": 1.0}})


STRUCTURES = {"one": (1,), "two": (2,)}


def _read(png: bytes) -> np.ndarray:
    found: np.ndarray = pictures.imread(io.BytesIO(png))[..., :3].astype(int)
    return found


@pytest.mark.parametrize("codes", ["LPS", "PSR"])
def test_every_orientation_is_seen_alike(tmp_path: Path, codes: str) -> None:
    expected = overlay(_case(tmp_path / "ras"), STRUCTURES, tmp_path / "ras" / "images")
    found = overlay(_case(tmp_path / "other", codes), STRUCTURES, tmp_path / "other" / "images")
    assert [one.caption for one in found.pictures] == [one.caption for one in expected.pictures]
    for one, other in zip(found.pictures, expected.pictures, strict=True):
        assert np.abs(_read(one.png) - _read(other.png)).mean() < 0.5
    assert found.worst == expected.worst


@pytest.mark.parametrize("codes", ["RAS", "LPS"])
def test_right_is_on_the_left_front_above_and_scale_by_spacing(tmp_path: Path, codes: str) -> None:
    drawn = overlay(_case(tmp_path, codes), STRUCTURES, tmp_path / "images")
    axial, coronal, sagittal = (_read(one.png) for one in drawn.pictures)
    white = axial.min(axis=2) > 200
    rows, columns = np.nonzero(white)
    height, width = white.shape
    assert columns.mean() < 0.4 * width  # the patient's right
    assert rows.mean() < 0.45 * height  # the front
    assert width / height == pytest.approx(16 * 2 / (20 * 1), rel=0.02)
    assert coronal.shape[1] / coronal.shape[0] == pytest.approx(16 * 2 / (10 * 4), rel=0.02)
    assert sagittal.shape[1] / sagittal.shape[0] == pytest.approx(20 * 1 / (10 * 4), rel=0.02)
    assert np.nonzero((sagittal.min(axis=2) > 200).any(axis=0))[0].mean() < 0.5 * sagittal.shape[1]  # the front
    assert drawn.pictures[0].caption == "axial, slice 8 of 10 from the feet"
    assert "reference solid" in drawn.pictures[0].alt
    assert [one.caption.split(",")[0] for one in drawn.pictures] == ["axial", "coronal", "sagittal"]


def test_contours_run_along_the_edges_of_the_masks() -> None:
    reference, predicted = np.zeros((2, 12, 10), np.uint8)
    reference[3:7, 2:8] = 1
    predicted[5:9, 2:8] = 1
    axes = Figure().add_subplot()
    draw_plane(axes, [reference, predicted, np.ones((12, 10))], (0.5, 3.0), [(1,)], [COLOURS[0]])
    solid, dashed = axes.collections
    for lines, rows in ((solid, (3, 7)), (dashed, (5, 9))):
        points = np.concatenate([path.vertices for path in lines.get_paths()])
        assert points[:, 0].min() == pytest.approx(2 * 0.5)
        assert points[:, 0].max() == pytest.approx(8 * 0.5)
        assert points[:, 1].min() == pytest.approx(rows[0] * 3.0)
        assert points[:, 1].max() == pytest.approx(rows[1] * 3.0)
    styles: list[Any] = [lines.get_linestyle()[0] for lines in (solid, dashed)]
    assert styles[0][1] is None
    assert len(styles[1][1]) == 2
    assert list(axes.images[0].get_extent()) == [0, 5.0, 0, 36.0]


def test_the_worst_places() -> None:
    reference, predicted = _maps()
    assert most_different(reference, predicted, STRUCTURES.values(), 2) == 7
    place, name, distance = worst_place(reference, predicted, STRUCTURES, SPACING)
    assert (name, distance) == ("one", 4.0)  # millimetres: one slice
    assert place[2] == 7
    assert predicted[place] == 0
    assert reference[place] == 1


def test_worst_place_where_a_structure_is_missing_or_nothing_differs() -> None:
    reference = np.zeros(SHAPE, np.uint8)
    reference[RIGHT] = 1
    place, name, distance = worst_place(reference, np.zeros_like(reference), {"one": (1,)}, SPACING)
    assert (name, distance) == ("one", math.inf)
    assert reference[place] == 1
    place, name, distance = worst_place(reference, reference, {"one": (1,)}, SPACING)
    assert (name, distance) == ("one", 0.0)
    empty = np.zeros_like(reference)
    assert worst_place(empty, empty, {"one": (1,)}, SPACING) == ((8, 10, 5), "", 0.0)
    assert most_different(reference, reference, [(1,)], 2) == 5
    assert most_different(empty, empty, [(1,)], 2) == 5


def test_nested_regions_background_and_ignored_labels(tmp_path: Path) -> None:
    case = _case(tmp_path)
    regions = {"background": (0,), "both": (1, 2), "two": (2,), "absent": (7,)}
    drawn = overlay(case, regions)
    assert list(drawn.legend) == ["both", "two"]
    assert drawn.legend["both"] == COLOURS[1]
    assert drawn.worst.endswith("both")
    ignoring = overlay(case, STRUCTURES, ignore=1)  # the false part alone is left
    assert ignoring.worst == "one is in the reference or the prediction alone"


def test_without_an_image_or_with_another_one(tmp_path: Path) -> None:
    case = _case(tmp_path)
    assert overlay(case, STRUCTURES).notice == ""
    assert "no image c_0000" in overlay(case, STRUCTURES, tmp_path).notice
    write_nifti(tmp_path / "other" / "c_0000.nii.gz", np.zeros((4, 4, 4)), RAS)
    assert "shape" in overlay(case, STRUCTURES, tmp_path / "other").notice
    (tmp_path / "other" / "c_0000.nii.gz").write_bytes(b"nothing")
    assert "c_0000" in overlay(case, STRUCTURES, tmp_path / "other").notice


def test_a_missing_prediction_cannot_be_drawn(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no prediction"):
        overlay(CaseResult("c", "c.nii.gz", None, {}), STRUCTURES)


def test_pictures_are_upright(tmp_path: Path) -> None:
    labels = np.zeros((30, 40), np.uint8)
    labels[2:8, 5:20] = 1  # above, to the left
    image = np.zeros((30, 40, 3), np.uint8)
    image[2:8, 5:20] = 255
    for folder, array in (("r", labels), ("p", np.roll(labels, 3, 1)), ("i", image)):
        (tmp_path / folder).mkdir()
        name = "c_0000.png" if folder == "i" else "c.png"
        pictures.imsave(tmp_path / folder / name, array, check_contrast=False)
    case = CaseResult("c", str(tmp_path / "r/c.png"), str(tmp_path / "p/c.png"), {"one": {"Dice": 0.5}})
    drawn: Overlay = overlay(case, {"one": (1,)}, tmp_path / "i")
    assert len(drawn.pictures) == 1
    shown = _read(drawn.pictures[0].png)
    rows, columns = np.nonzero(shown.min(axis=2) > 200)
    assert rows.mean() < shown.shape[0] / 2
    assert columns.mean() < shown.shape[1] / 2
    assert "3.0 voxels" in drawn.worst


def test_views() -> None:
    volume = np.arange(24).reshape(2, 3, 4)  # (z, y, x)
    turned = upright([volume], (3.0, 2.0, 1.0), np.diag([-1.0, -2.0, 3.0, 1.0]))  # LPS
    assert turned.spacing == (1.0, 2.0, 3.0)
    assert turned.planes == PATIENT
    whole = ((0, 4), (0, 3), (0, 2))
    shown = cut(turned.volumes[0], PATIENT[0], 0, whole)
    assert shown[::-1].tolist() == volume[0].tolist()  # LPS as stored is the radiological view
    flat = upright([volume[0]], (1.0, 1.0), None)
    assert flat.planes == PICTURE
    assert cut(flat.volumes[0], PICTURE[0], 0, ((0, 4), (0, 3), (0, 1)))[::-1].tolist() == volume[0].tolist()
    stack = upright([volume], (1.0, 1.0, 1.0), None)
    assert cut(stack.volumes[0], stack.planes[0], 1, whole)[::-1].tolist() == volume[1].tolist()


def test_box_around() -> None:
    labelled = np.zeros((100, 50, 10), bool)
    assert box_around(labelled, (1.0, 1.0, 1.0)) == ((0, 100), (0, 50), (0, 10))
    labelled[40:50, 3:5, 5] = True
    assert box_around(labelled, (1.0, 2.0, 5.0)) == ((20, 70), (0, 15), (1, 10))
