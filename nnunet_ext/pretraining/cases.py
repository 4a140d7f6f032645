"""The cases that are pre-trained on, in nnU-Net's own preprocessed format."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

from nnunet_ext.pretraining.frames import Frame

Box = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Case:
    """A preprocessed case.

    Attributes:
        name: unique in its pool, and the stem of its files.
        folder: where nnU-Net's files of it are (``NAME.b2nd``, ``NAME_seg.b2nd``, ``NAME.pkl``).
        source: the data set's name, or the folder of images without labels.
        raw: file of each channel, as it was given.
        sha256: of these files' bytes, in the same order; empty where the raw files are gone.
        shape: of the preprocessed image, voxels (the array's three axes).
        body: for each axis first voxel and the one after the last that may show the patient; centres are drawn in it.
        frame: from voxels of the preprocessed image to LPS millimetres.
    """

    name: str
    folder: Path
    source: str
    raw: tuple[str, ...]
    sha256: tuple[str, ...]
    shape: tuple[int, ...]
    body: Box
    frame: Frame

    def image(self) -> Any:
        """The preprocessed image (C, *shape), float32; only what is indexed is read from the disk."""
        return self._load()[0]

    def properties(self) -> dict[str, Any]:
        """nnU-Net's properties: geometry of the raw image, crop and shape before resampling."""
        return cast("dict[str, Any]", self._load()[3])

    def _load(self) -> tuple[Any, Any, Any, Any]:
        loaded: tuple[Any, Any, Any, Any] = infer_dataset_class(str(self.folder))(
            str(self.folder), [self.name]
        ).load_case(self.name)
        return loaded


@dataclass(frozen=True)
class Pool:
    """All cases for one configuration of a data set's plans.

    Attributes:
        folder: our own folder, for landmark tables and other things that belong to these cases.
        cases: sorted: the data set's own first, then folder by folder.
        plans: content of the plans file.
        configuration: its name in the plans.
        dataset_json: content of dataset.json.
        left_out: cases that could not be prepared, each with the reason.
    """

    folder: Path
    cases: tuple[Case, ...]
    plans: dict[str, Any]
    configuration: str
    dataset_json: dict[str, Any]
    left_out: tuple[tuple[str, str], ...] = ()

    @property
    def spacing(self) -> tuple[float, ...]:
        """Of the preprocessed arrays' axes, in mm."""
        return tuple(float(value) for value in self._settings()["spacing"])

    @property
    def patch_size(self) -> tuple[int, ...]:
        """Of the plans, in voxels, the arrays' axes."""
        return tuple(int(edge) for edge in self._settings()["patch_size"])

    @property
    def transpose_backward(self) -> tuple[int, ...]:
        """nnU-Net's: axes of the preprocessed arrays to those of the reader."""
        return tuple(int(axis) for axis in self.plans["transpose_backward"])

    def _settings(self) -> dict[str, Any]:
        from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

        return cast("dict[str, Any]", PlansManager(self.plans).get_configuration(self.configuration).configuration)


def body_box(image: Any, most: int = 64) -> Box:
    """The box around everything that is brighter than Otsu's threshold, on a coarse grid of the first channel.

    It only tells where patches are drawn: air around a patient is worth no step. Cropped images of one organ give
    nearly all of themselves.

    Args:
        image: (C, *shape), preprocessed.
        most: the grid has at most about so many points an axis.
    """
    from skimage.filters import threshold_otsu

    shape = image.shape[1:]
    steps = [max(1, edge // most) for edge in shape]
    coarse = np.asarray(image[0])[tuple(slice(None, None, step) for step in steps)]
    if not np.isfinite(coarse).all() or coarse.min() == coarse.max():
        return tuple((0, edge) for edge in shape)
    bright = coarse > threshold_otsu(coarse)
    box = []
    for axis, (edge, step) in enumerate(zip(shape, steps, strict=True)):
        found = np.flatnonzero(bright.any(tuple(other for other in range(bright.ndim) if other != axis)))
        box.append((int(found[0]) * step, min(int(edge), int(found[-1] + 1) * step)))
    return tuple(box)
