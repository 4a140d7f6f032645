"""Made-up patients: an ellipsoid with blobs in it, as a function of LPS millimetres, drawn on any grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nnunet_ext.pretraining.coarse import Coarse, coarse_frame, reading, resampled
from nnunet_ext.pretraining.frames import Frame, apply

_DRAWN: dict[tuple[Any, ...], np.ndarray] = {}


@dataclass(frozen=True)
class Body:
    """A patient; `matrix` (4, 4) maps the common anatomy (LPS mm, centred at 0, 0, 0) to this patient's place.

    Attributes:
        matrix: affine.
        radii: of the ellipsoid, mm (x, y, z).
        blobs: how many.
        seed: of the blobs.
    """

    matrix: np.ndarray = field(default_factory=lambda: np.eye(4))
    radii: tuple[float, float, float] = (90.0, 60.0, 100.0)
    blobs: int = 60
    seed: int = 0

    def values(self, points: np.ndarray) -> np.ndarray:
        """Intensities (...,) at LPS points (..., 3): 0 in air, about 0.3 to 4 inside."""
        anatomy = apply(np.linalg.inv(self.matrix), points)
        radii = np.asarray(self.radii)
        inside = 1 / (1 + np.exp(20 * (np.sqrt(((anatomy / radii) ** 2).sum(-1)) - 1)))  # no jagged edge on a grid
        rng = np.random.default_rng(self.seed)
        found = np.ones(points.shape[:-1])
        for _ in range(self.blobs):
            centre, width = rng.uniform(-0.8, 0.8, 3) * radii, rng.uniform(0.1, 0.25) * radii.min()
            distance = ((anatomy - centre) ** 2).sum(-1)
            found += rng.uniform(-0.7, 1.0) * np.exp(-distance / (2 * width**2))
        return np.asarray(inside * found)

    def drawn(self, frame: Frame) -> np.ndarray:
        """The image (z, y, x) float32 on a grid."""
        key = (self.matrix.tobytes(), self.radii, self.blobs, self.seed, frame)
        if key not in _DRAWN:
            index = np.stack(np.meshgrid(*map(np.arange, frame.shape), indexing="ij"), -1)
            _DRAWN[key] = self.values(frame.to_lps(index)).astype(np.float32)
        return _DRAWN[key].copy()

    def coarse(self, frame: Frame, grid: float = 4.0) -> Coarse:
        """The image of `frame`, on the coarse grid."""
        return resampled(reading(self.drawn(frame)), frame, coarse_frame(frame, grid))


def scanner(shape: Sequence[int] = (56, 36, 52), spacing: float = 4.0, centre: Sequence[float] = (0, 0, 0)) -> Frame:
    """A regular grid (z, y, x) about a centre, LPS mm."""
    half = (np.asarray(shape[::-1]) - 1) / 2 * spacing
    return Frame.regular(shape, (spacing,) * 3, np.asarray(centre, np.float64) - half)


def affine(scale: Sequence[float], shift: Sequence[float], degrees: float = 0.0, shear: float = 0.0) -> np.ndarray:
    """(4, 4): scaled along x, y, z, sheared in x by z, turned about z, shifted."""
    angle = np.deg2rad(degrees)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    sheared = np.eye(3)
    sheared[0, 2] = shear
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = turn @ sheared @ np.diag(scale), shift
    return matrix
