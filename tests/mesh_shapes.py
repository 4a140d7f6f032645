"""A known ellipsoid in an oblique image with long voxels: exact distances, labels and probabilities."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK
from scipy.spatial.transform import Rotation

ORIGIN = (-30.0, 45.0, 12.0)
AXES = np.array([9.0, 14.0, 11.0])
TURNED = Rotation.from_euler("xyz", [10, 70, -20], degrees=True).as_matrix()
VOLUME = 4 / 3 * np.pi * float(AXES.prod())


@dataclass(frozen=True)
class Oblique:
    """An image in x, y, z order; `flipped` has left-handed axes."""

    size: tuple[int, int, int] = (46, 48, 30)
    spacing: tuple[float, float, float] = (0.8, 0.9, 1.3)
    flipped: bool = False

    @property
    def direction(self) -> np.ndarray:
        turned = Rotation.from_euler("xyz", [20, -35, 50], degrees=True).as_matrix()
        return turned * [-1, 1, 1] if self.flipped else turned

    @property
    def centre(self) -> np.ndarray:
        """LPS millimetres; off the voxels' centres."""
        return ORIGIN + self.direction @ (np.array(self.size) * self.spacing * 0.49 + 0.13)

    def world(self, coords: np.ndarray) -> np.ndarray:
        """LPS of array indices (..., 3) in the order (d, h, w), by SimpleITK's definition."""
        return coords[..., ::-1] * np.array(self.spacing) @ self.direction.T + ORIGIN

    def voxels(self) -> np.ndarray:
        edges = [np.arange(n) for n in self.size[::-1]]
        return np.stack(np.meshgrid(*edges, indexing="ij"), -1).astype(float)

    def image(self, values: np.ndarray) -> SimpleITK.Image:
        image = SimpleITK.GetImageFromArray(values)
        image.SetSpacing(self.spacing)
        image.SetOrigin(ORIGIN)
        image.SetDirection(self.direction.ravel().tolist())
        return image

    def write(self, values: np.ndarray, path: Path) -> Path:
        SimpleITK.WriteImage(self.image(values), str(path))
        return path

    def distance(self, points: np.ndarray) -> np.ndarray:
        """Millimetres outside of the ellipsoid (N,), negative inside; to first order, so exact near its surface."""
        q = (points - self.centre) @ TURNED
        r = np.linalg.norm(q / AXES, axis=-1)
        return (r - 1) * r / np.maximum(np.linalg.norm(q / AXES**2, axis=-1), 1e-9)

    def outward(self, points: np.ndarray) -> np.ndarray:
        """Unit normals (N, 3) of the ellipsoids through points."""
        normals = ((points - self.centre) @ TURNED / AXES**2) @ TURNED.T
        return normals / np.linalg.norm(normals, axis=-1, keepdims=True)

    def labels(self) -> np.ndarray:
        """1 in the ellipsoid."""
        return (self.distance(self.world(self.voxels())) < 0).astype(np.uint8)

    def probabilities(self) -> np.ndarray:
        """Of the ellipsoid, (D, H, W), float32: a network's that is sure two millimetres away."""
        return (1 / (1 + np.exp(1.5 * self.distance(self.world(self.voxels()))))).astype(np.float32)
