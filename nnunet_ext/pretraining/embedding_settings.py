"""How our own anatomical embedding is trained, and what it is trained on: settings that follow from the volumes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np

from nnunet_ext.errors import UserError
from nnunet_ext.losses.anatomical_embedding import Distances
from nnunet_ext.pretraining.cases import Pool
from nnunet_ext.pretraining.embedding_grids import canonical_grid

FLAT_CROP, CUBIC_CROP = (32, 96, 96), (64, 64, 64)  # voxels (z, y, x) of large volumes
_STRIDE = 8
_LEAST_CROP = 16
_LEAST_CELLS = 48  # voxels that the shortest side of the median volume shall have
_REFERENCE_SPACING = 2.0  # mm, that of the published distances
_LOOKED_AT = 64


@dataclass(frozen=True)
class Settings:
    """Of the network and its training; all of it is kept in the file.

    Attributes:
        input_channels: of the preprocessed images.
        spacing: mm of the isotropic voxels that the network sees.
        crop: voxels (z, y, x) of a view.
        ct: whether a channel is CT, whose intensities mean the same everywhere.
        features: of the network's stages.
        fine: numbers of a fine vector.
        coarse: numbers of a coarse vector.
        learning_rate: of stochastic gradient descent, after the warm-up.
        temperature: of both losses. The published one is 0.5; with 0.1 the loss fell further in the same time, and
            places were found better, in other patients, too.
        rotation: degrees that a view is turned by at most, about each axis.
    """

    input_channels: int
    spacing: float
    crop: tuple[int, int, int]
    ct: bool = False
    features: tuple[int, ...] = (16, 32, 64, 128)
    fine: int = 32
    coarse: int = 32
    learning_rate: float = 0.02
    temperature: float = 0.1
    rotation: float = 10.0

    @property
    def distances(self) -> Distances:
        """The loss's distances: the published ones at 2 mm, in proportion to the spacing otherwise."""
        return Distances().scaled(self.spacing / _REFERENCE_SPACING)

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Settings:
        """Of `as_dict`'s values.

        Raises:
            UserError: other settings than these.
        """
        names = {entry.name for entry in fields(cls)}
        if set(values) != names:
            raise UserError(
                f"settings of an embedding are {', '.join(sorted(names))}, the file has {', '.join(sorted(values))}; "
                "it was written by another version of nnunet_ext: train the embedding again"
            )
        plain: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
        return cls(**plain)


def settings_for(pool: Pool, **changes: Any) -> Settings:
    """Settings that fit a pool's volumes (specification alice 3.2).

    Args:
        pool: the cases.
        **changes: settings that shall be others.
    """
    cases = pool.cases[:: max(1, len(pool.cases) // _LOOKED_AT)]
    frames = [canonical_grid(case.frame, 1.0) for case in cases]
    extent = np.median([frame.shape for frame in frames], axis=0)  # mm, since the grids have 1 mm
    names = pool.dataset_json.get("channel_names", pool.dataset_json.get("modality", {})).values()
    ct = any(str(name).strip().lower() == "ct" for name in names)
    spacing = float(changes.pop("spacing", isotropic_spacing(pool.spacing, extent, ct)))
    fitting = Settings(int(pool.cases[0].image().shape[0]), spacing, crop_size(extent / spacing), ct)
    return replace(fitting, **changes)


def isotropic_spacing(spacing: Sequence[float], extent: Sequence[float] | np.ndarray, ct: bool) -> float:
    """Millimetres of the voxels that the network sees.

    2 mm for CT, otherwise twice the largest spacing of the plans, between 2 and 6 mm; but less for small volumes, so
    that the shortest side has about 48 voxels, as far as the plans' spacing has details to offer.

    Args:
        spacing: mm, of the plans.
        extent: mm (3,) of the median volume.
        ct: whether a channel is CT.
    """
    usual = 2.0 if ct else float(np.clip(2 * max(spacing), 2.0, 6.0))
    small = max(min(spacing), float(min(extent)) / _LEAST_CELLS)
    return round(min(usual, small), 3)


def crop_size(grid: Sequence[float] | np.ndarray) -> tuple[int, int, int]:
    """Voxels (z, y, x) of a view: 32 x 96 x 96, or 64^3 for volumes that are nearly cubes, at most 3/4 of the volume.

    Two views of 3/4 of a volume always overlap and still differ. Sides are multiples of 8, and at least 16: of smaller
    volumes a part of the view is empty, and not learned from.

    Args:
        grid: voxels (z, y, x) of the median volume.
    """
    usual = CUBIC_CROP if max(grid) <= 1.5 * min(grid) else FLAT_CROP
    z, y, x = (
        min(most, max(_LEAST_CROP, round(0.75 * float(size) / _STRIDE) * _STRIDE))
        for most, size in zip(usual, grid, strict=True)
    )
    return z, y, x
