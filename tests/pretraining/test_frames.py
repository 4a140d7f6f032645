"""Frames against SimpleITK's own physical coordinates, through nnU-Net's readers and preprocessor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_ext.errors import UserError
from nnunet_ext.pretraining.frames import Frame, image_matrix

READERS = ("SimpleITKIO", "SimpleITKIOWithReorient", "NibabelIO", "NibabelIOWithReorient")
TRANSPOSES = ((0, 1, 2), (2, 0, 1), (1, 0, 2))
OBLIQUE = (0.96, -0.28, 0.0, 0.28, 0.96, 0.0, 0.0, 0.0, 1.0)


def plans(reader: str, forward: tuple[int, ...], spacing: tuple[float, ...]) -> PlansManager:
    """The least that nnU-Net's preprocessor needs."""
    resampling = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}
    configuration = {
        "spacing": list(spacing),
        "architecture": {},
        "normalization_schemes": ["NoNormalization"],
        "use_mask_for_norm": [False],
        "preprocessor_name": "DefaultPreprocessor",
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": resampling,
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_seg_kwargs": {**resampling, "is_seg": True},
    }
    return PlansManager(
        {
            "image_reader_writer": reader,
            "transpose_forward": list(forward),
            "transpose_backward": [forward.index(axis) for axis in range(3)],
            "configurations": {"3d_fullres": configuration},
            "foreground_intensity_properties_per_channel": {"0": {}},
        }
    )


def ramp_image(direction: tuple[float, ...], spacing: tuple[float, float, float] = (1.0, 1.5, 2.0)) -> SimpleITK.Image:
    """An empty image, voxels (x, y, z) 20 x 16 x 12."""
    image = SimpleITK.Image(20, 16, 12, SimpleITK.sitkFloat64)
    image.SetSpacing(spacing)
    image.SetOrigin((-31.0, 12.5, 700.25))
    image.SetDirection(direction)
    return image


def written(image: SimpleITK.Image, axis: int, path: Path) -> Path:
    """The values are the LPS coordinate of `axis`, plus 10 000; two empty slices at each border are for the crop."""
    coordinates = np.zeros(image.GetSize())
    for index in np.ndindex(*(n - 4 for n in image.GetSize())):
        inner = tuple(int(i) + 2 for i in index)
        coordinates[inner] = image.TransformIndexToPhysicalPoint(inner)[axis] + 10000
    filled = SimpleITK.GetImageFromArray(coordinates.transpose(2, 1, 0))
    filled.CopyInformation(image)
    SimpleITK.WriteImage(filled, str(path))
    return path


def preprocessed(path: Path, manager: PlansManager) -> tuple[np.ndarray, dict[str, Any]]:
    """The case without its channel axis, and its properties."""
    json = {"file_ending": ".nii.gz", "labels": {"background": 0, "a": 1}, "channel_names": {"0": "CT"}}
    data, _, properties = DefaultPreprocessor(verbose=False).run_case(
        [str(path)], None, manager, manager.get_configuration("3d_fullres"), json
    )
    return data[0], properties


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("forward", TRANSPOSES)
@pytest.mark.parametrize("direction", [(1, 0, 0, 0, 1, 0, 0, 0, 1), (-1, 0, 0, 0, 0, 1, 0, -1, 0), OBLIQUE])
def test_voxels_lie_where_simpleitk_says(
    reader: str, forward: tuple[int, int, int], direction: tuple[float, ...], tmp_path: Path
) -> None:
    """The preprocessed voxel's value is a coordinate, so it must equal the frame's; resampling is linear."""
    image = ramp_image(tuple(float(entry) for entry in direction))
    manager = plans(reader, forward, (1.25, 1.25, 1.25))
    for axis in range(3):
        data, properties = preprocessed(written(image, axis, tmp_path / "case_0000.nii.gz"), manager)
        frame = Frame.from_properties(properties, data.shape, manager.transpose_backward)
        index = np.stack(np.meshgrid(*map(np.arange, data.shape), indexing="ij"), -1)
        inner = (slice(2, -2),) * 3  # the border is extrapolated by repetition
        np.testing.assert_allclose(data[inner] - 10000, frame.to_lps(index)[..., axis][inner], atol=3e-3)
        np.testing.assert_allclose(frame.spacing, 1.25, rtol=0.1)


def test_there_and_back() -> None:
    properties = {
        "sitk_stuff": {"spacing": (0.7, 0.8, 3.0), "origin": (1.0, 2.0, 3.0), "direction": OBLIQUE},
        "shape_after_cropping_and_before_resampling": (30, 40, 50),
        "bbox_used_for_cropping": [[1, 31], [2, 42], [3, 53]],
    }
    frame = Frame.from_properties(properties, (33, 44, 25), (1, 2, 0))
    index = np.random.default_rng(0).uniform(-5, 60, (4, 7, 3))
    np.testing.assert_allclose(frame.to_index(frame.to_lps(index)), index, atol=1e-9)
    assert frame.holds(frame.to_lps([[-0.4, 0, 24.4], [-0.6, 0, 0]])).tolist() == [True, False]
    assert frame.holds(frame.corners() * (1 - 1e-9) + 1e-9 * frame.to_lps([16, 22, 12])).all()


def test_a_regular_grid_is_that_of_simpleitk() -> None:
    image = ramp_image((1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0))
    frame = Frame.regular((12, 16, 20), (2.0, 1.5, 1.0), image.GetOrigin())
    np.testing.assert_allclose(frame.to_lps([3, 2, 1]), image.TransformIndexToPhysicalPoint((1, 2, 3)))


def test_flat_and_four_dimensional_and_plain_images() -> None:
    flat = image_matrix({"sitk_stuff": {"spacing": (2.0, 3.0), "origin": (5.0, 7.0), "direction": (1, 0, 0, 1)}})
    assert (flat @ [0, 1, 1, 1]).tolist() == [7, 10, 0, 1]
    direction = np.diag([-1.0, 1.0, 1.0, 1.0]).ravel()
    four = image_matrix(
        {"sitk_stuff": {"spacing": (2.0, 3.0, 4.0, 1.0), "origin": (5.0, 7.0, 9.0, 0.0), "direction": direction}}
    )
    assert (four @ [1, 1, 1, 1]).tolist() == [3, 10, 13, 1]
    assert (image_matrix({"spacing": (4.0, 3.0, 2.0)}) @ [1, 1, 1, 1]).tolist() == [2, 3, 4, 1]


def test_what_is_no_preprocessed_case() -> None:
    with pytest.raises(UserError, match="preprocess it again"):
        Frame.from_properties({"spacing": (1, 1, 1)}, (2, 2, 2), (0, 1, 2))
    whole = {"shape_after_cropping_and_before_resampling": (2, 2, 2), "bbox_used_for_cropping": [[0, 2]] * 3}
    with pytest.raises(UserError, match="without spacing"):
        Frame.from_properties(whole, (2, 2, 2), (0, 1, 2))
    with pytest.raises(UserError, match="singular"):
        Frame.from_properties({**whole, "spacing": (0.0, 1, 1)}, (2, 2, 2), (0, 1, 2))
    with pytest.raises(UserError, match="fit its properties"):
        Frame.from_properties({**whole, "spacing": (1.0, 1, 1)}, (2, 2), (0, 1, 2))
