"""Images that are no NIfTI files: labels in three axes are no colours, and what can't be done is said."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK
import tifffile
from one_case import job
from skimage import io
from trees import volumes

from nnunet_ext.dataset_conversion.other_work import unusable_options
from nnunet_ext.dataset_conversion.volumes import UnusableError
from nnunet_ext.dataset_conversion.work import convert_case

MAP = {0: 0, 1: 3, 2: 1, 3: 2}


def saved(path: Path, array: np.ndarray, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".nrrd":
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(array), str(path))
    elif path.suffix in (".tif", ".tiff"):
        tifffile.imwrite(path, array, **options)
    else:
        io.imsave(path, array, check_contrast=False)
    return path


def mapped(labels: np.ndarray) -> np.ndarray:
    return np.vectorize(MAP.get)(labels).astype(np.uint8)


@pytest.mark.parametrize("shape", [(5, 16, 14), (3, 16, 14), (4, 16, 14), (16, 14, 3)])
@pytest.mark.parametrize("ending", [".tif", ".tiff"])
def test_three_axes_of_a_tiff_are_no_colours(tmp_path: Path, shape: tuple[int, ...], ending: str) -> None:
    labels = volumes.labels(0, (1, 2, 3), shape)
    grey = {"photometric": "minisblack"}
    image = saved(tmp_path / f"image{ending}", volumes.image(0, shape).astype(np.uint8), **grey)
    label = saved(tmp_path / f"label{ending}", labels, **grey)
    entry = convert_case(job(tmp_path, [image], label, ending=ending))
    assert entry["label"]["values"]["1"] == int((labels == 1).sum())
    entry = convert_case(job(tmp_path, [image], label, ending=ending, rules={"label_map": MAP}))
    made = tmp_path / "target" / "labelsTr" / f"case{ending}"
    np.testing.assert_array_equal(tifffile.imread(made), mapped(labels))
    assert entry["label"]["values"]["3"] == int((labels == 1).sum())
    labels[0, 0, 0] = 9
    saved(label, labels, **grey)
    with pytest.raises(UnusableError, match=r"unexpected labels \{9\}"):
        convert_case(job(tmp_path, [image], label, ending=ending))


def test_three_slices_that_are_stored_like_colours(tmp_path: Path) -> None:
    labels = volumes.labels(0, (1, 2, 3), (3, 16, 14))
    separate = {"photometric": "rgb", "planarconfig": "separate"}
    image, label = saved(tmp_path / "i.tif", labels * 50, **separate), saved(tmp_path / "l.tif", labels, **separate)
    convert_case(job(tmp_path, [image], label, ending=".tif", rules={"label_map": MAP}))
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "target/labelsTr/case.tif"), mapped(labels))


def test_shapes_in_three_axes_must_be_the_same(tmp_path: Path) -> None:
    image = saved(tmp_path / "i.tif", np.zeros((5, 16, 14), np.uint8))
    for shape in ((6, 16, 14), (5, 16, 12), (16, 14), (5, 16)):
        label = saved(tmp_path / "l.tif", np.ones(shape, np.uint8))
        with pytest.raises(UnusableError, match=r"shape .* but \(5, 16, 14\) of i.tif"):
            convert_case(job(tmp_path, [image], label, ending=".tif"))


@pytest.mark.parametrize("ending", [".png", ".tif"])
def test_grey_labels_that_are_stored_in_colours(tmp_path: Path, ending: str) -> None:
    labels = volumes.labels(0, (1, 2, 3), (16, 14, 2))[..., 0]
    image = saved(tmp_path / f"i{ending}", np.stack([labels * 9, labels, labels], -1))
    label = saved(tmp_path / f"l{ending}", np.stack([labels] * 3, -1))
    convert_case(job(tmp_path, [image], label, ending=ending, rules={"label_map": MAP}))
    np.testing.assert_array_equal(io.imread(tmp_path / f"target/labelsTr/case{ending}"), mapped(labels))
    with pytest.raises(UnusableError, match="a picture in colours"):
        convert_case(job(tmp_path, [image], image, ending=ending))


def test_colours_before_rows(tmp_path: Path) -> None:
    labels = volumes.labels(0, (1, 2, 3), (16, 14, 2))[..., 0]
    image = saved(
        tmp_path / "i.tif", np.stack([labels * 9, labels, labels]), photometric="rgb", planarconfig="separate"
    )
    label = saved(tmp_path / "l.tif", labels)
    assert convert_case(job(tmp_path, [image], label, ending=".tif"))["label"]["action"] == "link"


@pytest.mark.parametrize(
    ("option", "named"),
    [
        ({"reorient": True}, "--reorient files"),
        ({"copy_geometry": True, "fix_nan": True}, "--copy-geometry and --fix-nan"),
        ({"reader": "NibabelIOWithReorient"}, "--reorient reader"),
    ],
)
def test_options_of_nifti_files_are_refused(tmp_path: Path, option: dict[str, Any], named: str) -> None:
    labels = volumes.labels(0, (1, 2, 3))
    image, label = saved(tmp_path / "i.nrrd", labels), saved(tmp_path / "l.nrrd", labels)
    plain = job(tmp_path, [image], label, ending=".nrrd")
    assert convert_case(plain)["label"]["action"] == "link"
    with pytest.raises(UnusableError, match=rf"^{named}: for NIfTI files only, .* are \.nrrd"):
        convert_case(dataclasses.replace(plain, **option))
    asked = {"reorient": False, "copy_geometry": False, "fix_nan": False, **option}
    assert unusable_options(".nii", **asked) is None
    assert (unusable_options(".png", **asked) or "").startswith(named)
