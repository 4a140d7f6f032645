"""Coarse volumes and bodies of a pool's cases."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_ext.errors import UserError
from nnunet_ext.pretraining.body import (
    BODY_HU,
    CROPPED_MM,
    Mask,
    body_mask,
    body_threshold,
    image_box,
    is_ct,
    mask_box,
)
from nnunet_ext.pretraining.cases import Case, Pool
from nnunet_ext.pretraining.coarse import Coarse, Read, coarse, median_extent, reading, resampled
from nnunet_ext.pretraining.frames import Array, Frame, image_matrix
from nnunet_ext.pretraining.local_ncc import Scale


@dataclass(frozen=True)
class Looking:
    """How a pool's cases are looked at; small, for it goes to every worker process.

    Attributes:
        reader: nnU-Net's name of the reader, for raw images.
        ct: whether the first channel is CT.
        level: what -500 HU has become in the preprocessed CT; None: not a CT, or it can't be told.
        whole: the images are crops of one organ, so the body is all of the image.
        scale: of the comparisons; its grid is the coarse volumes'.
    """

    reader: str
    ct: bool
    level: float | None
    whole: bool
    scale: Scale

    @classmethod
    def at(cls, pool: Pool) -> Looking:
        """At the cases of a pool."""
        frames = [case.frame for case in pool.cases]
        manager = PlansManager(pool.plans)
        configuration = manager.get_configuration(pool.configuration).configuration
        return cls(
            reader=str(pool.plans["image_reader_writer"]),
            ct=is_ct(configuration),
            level=body_threshold(pool.plans, configuration),
            whole=median_extent(frames) < CROPPED_MM,
            scale=Scale.fitting(frames),
        )

    def volume(self, case: Case, grid: float | None = None) -> Coarse:
        """The first channel of a case; `grid` mm instead of the scale's.

        Raises:
            UserError: it cannot be read.
        """
        return coarse(_first_channel(case), case.frame, grid or self.scale.grid)

    def body(self, case: Case, volume: Coarse) -> Mask:
        """The body in a case's volume: of the raw CT where the preprocessed one is clipped above -500 HU."""
        if self.whole:
            return volume.inside
        if self.ct and self.level is None and case.raw and Path(case.raw[0]).is_file():
            return body_mask(self._raw(case, volume.frame), BODY_HU) & volume.inside
        return body_mask(volume, self.level)

    def box(self, case: Case) -> Array:
        """(2, 3) LPS mm: the body's box, or the image's."""
        if self.whole:
            return image_box(case.frame)
        volume = self.volume(case)
        return mask_box(self.body(case, volume), volume.frame)

    def _raw(self, case: Case, target: Frame) -> Coarse:
        plans = PlansManager({"image_reader_writer": self.reader})
        image, properties = plans.image_reader_writer_class().read_images([case.raw[0]])
        _, z, y, x = image.shape
        return resampled(reading(image[0]), Frame((z, y, x), image_matrix(properties)), target)


def _first_channel(case: Case) -> Read:
    try:
        image = case.image()
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise UserError(
            f"cannot read the preprocessed {case.folder / case.name}: {error}; remove it, so that it is made again"
        ) from error
    if tuple(image.shape[1:]) != tuple(case.frame.shape):
        raise UserError(f"{case.folder / case.name} has shape {image.shape[1:]}, {case.frame.shape} was expected")
    return lambda first, last: np.asarray(image[0, first:last], np.float32)
