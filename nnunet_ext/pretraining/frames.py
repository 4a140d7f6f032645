"""Where the voxels of a preprocessed case lie in the patient: LPS millimetres, whatever reader and orientation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from nnunet_ext.errors import UserError

Array = npt.NDArray[np.float64]
RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True, eq=False)
class Frame:
    """From voxel indices of an array to patient coordinates and back.

    LPS as in SimpleITK and DICOM: millimetres that increase towards the patient's left, posterior and superior.

    Attributes:
        shape: voxels of the array, of each of its axes.
        matrix: (4, 4) float64, homogeneous: index in the order of the array's axes, voxel centres at whole numbers, to
            LPS mm (x, y, z).

    Reference: specification alice 3.3.
    """

    shape: tuple[int, int, int]
    matrix: Array

    @classmethod
    def from_properties(
        cls, properties: Mapping[str, Any], shape: Sequence[int], transpose_backward: Sequence[int]
    ) -> Frame:
        """Of a case that nnU-Net preprocessed: resampling, crop, transposition and the reader's geometry undone.

        Args:
            properties: nnU-Net's, of the reader and of the preprocessor.
            shape: of the preprocessed array without its channel axis.
            transpose_backward: of the plans: axis of the preprocessed array for each axis of the image.

        Raises:
            UserError: the properties are not those of a preprocessed case, or their geometry is singular.
        """
        try:
            cropped = np.asarray(properties["shape_after_cropping_and_before_resampling"], np.float64)
            lower = np.asarray([bounds[0] for bounds in properties["bbox_used_for_cropping"]], np.float64)
        except KeyError as error:
            raise UserError(f"properties without {error}: not of a preprocessed case; preprocess it again") from error
        if not len(shape) == len(cropped) == len(lower) == len(transpose_backward) == 3:
            raise UserError(f"an array of shape {tuple(shape)} doesn't fit its properties: preprocess the case again")
        ratio = cropped / np.asarray(shape, np.float64)
        in_crop = np.diag([*ratio, 1.0])
        in_crop[:3, 3] = 0.5 * ratio - 0.5 + lower
        in_image = np.eye(4)
        in_image[:3, :3] = np.eye(3)[list(transpose_backward)]
        return cls._checked(shape, image_matrix(properties) @ in_image @ in_crop)

    @classmethod
    def regular(cls, shape: Sequence[int], spacing: Sequence[float], lower: npt.ArrayLike) -> Frame:
        """A grid along the patient's axes in SimpleITK's array order (z, y, x).

        Args:
            shape: voxels (z, y, x).
            spacing: mm (z, y, x).
            lower: LPS mm (x, y, z) of the first voxel's centre.
        """
        matrix = np.eye(4)
        matrix[:3, :3] = np.diag(np.asarray(spacing, np.float64))[::-1]
        matrix[:3, 3] = lower
        return cls._checked(shape, matrix)

    @classmethod
    def _checked(cls, shape: Sequence[int], matrix: Array) -> Frame:
        if not np.isfinite(matrix).all() or abs(np.linalg.det(matrix[:3, :3])) < 1e-12:
            raise UserError(f"an image with a singular geometry: {matrix[:3].tolist()}; repair its header")
        z, y, x = (int(edge) for edge in shape)
        return cls((z, y, x), matrix)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Frame) and self._content == other._content

    def __hash__(self) -> int:
        return hash(self._content)

    @property
    def _content(self) -> tuple[tuple[int, int, int], bytes]:
        return self.shape, self.matrix.tobytes()

    @cached_property
    def inverse(self) -> Array:
        """(4, 4) float64: LPS mm to index."""
        return np.asarray(np.linalg.inv(self.matrix), np.float64)

    @property
    def spacing(self) -> Array:
        """(3,) float64: mm between voxels, of each axis of the array."""
        return np.asarray(np.linalg.norm(self.matrix[:3, :3], axis=0), np.float64)

    def to_lps(self, index: npt.ArrayLike) -> Array:
        """LPS mm (..., 3) of indices (..., 3), which may be fractions."""
        return apply(self.matrix, index)

    def to_index(self, points: npt.ArrayLike) -> Array:
        """Fractional indices (..., 3) of LPS points (..., 3) in mm."""
        return apply(self.inverse, points)

    def holds(self, points: npt.ArrayLike) -> npt.NDArray[np.bool_]:
        """Which LPS points (..., 3) lie in the array, up to the outer edges of its voxels (...,)."""
        index = self.to_index(points)
        return np.asarray(((index >= -0.5) & (index <= np.asarray(self.shape) - 0.5)).all(-1))

    def corners(self) -> Array:
        """LPS mm (8, 3) of the outer corners of the array's first and last voxels."""
        unit = np.stack(np.meshgrid([0, 1], [0, 1], [0, 1], indexing="ij"), -1).reshape(-1, 3)
        return self.to_lps(unit * np.asarray(self.shape) - 0.5)


def apply(matrix: Array, points: npt.ArrayLike) -> Array:
    """Points (..., 3) under a homogeneous (4, 4) matrix."""
    return np.asarray(points, np.float64) @ matrix[:3, :3].T + matrix[:3, 3]


def image_matrix(properties: Mapping[str, Any]) -> Array:
    """(4, 4) float64: index of the image as nnU-Net's reader gives it (z, y, x) to LPS mm.

    nnU-Net's SimpleITK readers keep spacing, origin and direction; its nibabel readers an affine in RAS, of which
    `NibabelIOWithReorient` uses the reoriented one. Images without a geometry (TIFF, PNG) have their corner at 0, 0, 0.
    Two-dimensional images get a third axis; of four-dimensional ones the first three count.

    Raises:
        UserError: none of these.
    """
    reverse = np.eye(4)[[2, 1, 0, 3]]
    if "sitk_stuff" in properties:
        return _of_simpleitk(properties["sitk_stuff"]) @ reverse
    if "nibabel_stuff" in properties:
        kept = properties["nibabel_stuff"]
        affine = np.asarray(kept.get("reoriented_affine", kept["original_affine"]), np.float64)
        return RAS_TO_LPS @ affine @ reverse
    if "spacing" in properties:
        return reverse @ np.diag([*np.asarray(properties["spacing"], np.float64), 1.0])
    raise UserError("properties without spacing: not those of nnU-Net's readers; preprocess the case again")


def _of_simpleitk(kept: Mapping[str, Any]) -> Array:
    dimensions = len(kept["spacing"])
    used = min(dimensions, 3)
    direction = np.asarray(kept["direction"], np.float64).reshape(dimensions, dimensions)[:used, :used]
    matrix = np.eye(4)
    matrix[:used, :used] = direction * np.asarray(kept["spacing"], np.float64)[:used]
    matrix[:used, 3] = np.asarray(kept["origin"], np.float64)[:used]
    return matrix
