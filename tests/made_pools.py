"""Pools of made-up patients in nnU-Net's preprocessed format, stored in any orientation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from made_bodies import Body
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

from nnunet_ext.pretraining.cases import Case, Pool
from nnunet_ext.pretraining.frames import Frame

ORIENTATIONS = {"LPS": ((0, 1, 2), (1, 1, 1)), "RAS": ((0, 1, 2), (1, -1, -1)), "RAI": ((0, 1, 2), (-1, 1, 1))}
"""Order of the axes (z, y, x) of a regular grid and their directions; further ones: `stored`."""


def stored(image: np.ndarray, frame: Frame, order: Sequence[int], flips: Sequence[int]) -> tuple[np.ndarray, Frame]:
    """The same image with its axes in another order, some of them backwards."""
    turned = image[tuple(slice(None, None, flip) for flip in flips)].transpose(order)
    turn, last = np.zeros((4, 4)), np.asarray(frame.shape) - 1
    turn[3, 3] = 1
    for axis, source in enumerate(order):
        turn[source, axis] = flips[source]
        turn[source, 3] = 0 if flips[source] == 1 else last[source]
    z, y, x = turned.shape
    return np.ascontiguousarray(turned), Frame((z, y, x), frame.matrix @ turn)


def properties_of(frame: Frame) -> dict[str, Any]:
    """nnU-Net's properties of an image that was neither cropped nor resampled, as SimpleITKIO gives them."""
    columns = frame.matrix[:3, :3][:, ::-1]
    spacing = np.linalg.norm(columns, axis=0)
    return {
        "sitk_stuff": {
            "spacing": tuple(spacing),
            "origin": tuple(frame.matrix[:3, 3]),
            "direction": tuple((columns / spacing).ravel()),
        },
        "spacing": list(spacing[::-1]),
        "shape_before_cropping": frame.shape,
        "shape_after_cropping_and_before_resampling": frame.shape,
        "bbox_used_for_cropping": [[0, edge] for edge in frame.shape],
    }


def write_case(folder: Path, name: str, image: np.ndarray, frame: Frame) -> Case:
    """Write a case of one channel as nnU-Net's preprocessor would."""
    folder.mkdir(parents=True, exist_ok=True)
    data, segmentation = image[None].astype(np.float32), np.zeros((1, *image.shape), np.int8)
    parts = {"chunks": data.shape, "blocks": data.shape, "chunks_seg": data.shape, "blocks_seg": data.shape}
    nnUNetDatasetBlosc2.save_case(data, segmentation, properties_of(frame), str(folder / name), **parts)
    box = tuple((0, edge) for edge in image.shape)
    return Case(name, folder, "made", (), (), image.shape, box, frame)


def plans_of(scheme: str = "ZScoreNormalization") -> dict[str, Any]:
    """As much of plans as correspondences need."""
    configuration = {
        "spacing": [4.0, 4.0, 4.0],
        "patch_size": [16, 16, 16],
        "normalization_schemes": [scheme],
        "architecture": {},
    }
    return {
        "transpose_backward": [0, 1, 2],
        "image_reader_writer": "SimpleITKIO",
        "configurations": {"3d_fullres": configuration},
        "foreground_intensity_properties_per_channel": {
            "0": {"mean": 0.0, "std": 1.0, "percentile_00_5": -1000.0, "percentile_99_5": 1000.0}
        },
    }


def made_pool(root: Path, patients: Mapping[str, tuple[Body, Frame]], orientation: str = "LPS") -> Pool:
    """A pool of drawn patients, all stored in one orientation."""
    cases = []
    for name, (body, frame) in patients.items():
        image, turned = stored(body.drawn(frame), frame, *ORIENTATIONS[orientation])
        cases.append(write_case(root / "cases", name, image, turned))
    json = {"channel_names": {"0": "MR"}, "labels": {"background": 0}, "file_ending": ".nii.gz"}
    return Pool(root / "pool", tuple(cases), plans_of(), "3d_fullres", json)


def spoil(case: Case) -> None:
    """Make a case unreadable."""
    (case.folder / f"{case.name}.b2nd").write_bytes(b"broken")
