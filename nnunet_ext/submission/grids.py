"""Whether voxels lie where they must, and turning them back to the original image's axes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from nibabel.quaternions import fillpositive, quat2mat

from nnunet_ext.dataset_conversion.volumes import SPACING_TOLERANCE, difference, spacing_of
from nnunet_ext.submission.problems import Problem
from nnunet_ext.submission.raw_data import Geometry

AXIS_TOLERANCE = 1e-2
"""How much an axis may deviate from the original's, in voxels a voxel, where a header had to be repaired."""
OFFSET_TOLERANCE = 0.1
"""The same for the first voxel, in voxels."""
_MILLIMETRES = {1: 1000.0, 3: 0.001}  # of NIfTI's units metre and micrometre


@dataclass(frozen=True)
class Turn:
    """How an array of the written geometry becomes one of the original.

    Attributes:
        order: for each axis of the original, the written one.
        flips: axes of the original that run the other way.
    """

    order: tuple[int, int, int]
    flips: tuple[int, ...]

    def __call__(self, array: np.ndarray) -> np.ndarray:
        """Turn a label map (x, y, z)."""
        return np.flip(array.transpose(self.order), self.flips)


def turn_back(original: Geometry, written: Geometry) -> Turn | None:
    """The turn from the written to the original image; None where they do not correspond voxel by voxel."""
    if original.shape == written.shape and (original.affine == written.affine or None in _affines(original, written)):
        return Turn((0, 1, 2), ())
    if original.affine is None or written.affine is None:
        return None
    try:
        change = np.linalg.inv(np.array(original.affine)) @ np.array(written.affine)
    except np.linalg.LinAlgError:
        return None
    signs = np.rint(change[:3, :3])
    whole = bool(np.isfinite(change).all()) and np.abs(change[:3, :3] - signs).max() <= AXIS_TOLERANCE
    if not whole or not np.array_equal(signs @ signs.T, np.eye(3)):
        return None
    order = [int(axis) for axis in np.abs(signs).argmax(axis=1)]
    flips = tuple(axis for axis in range(3) if signs[axis, order[axis]] < 0)
    if tuple(written.shape[axis] for axis in order) != original.shape:
        return None
    first = [original.shape[axis] - 1 if axis in flips else 0 for axis in range(3)]
    if np.abs(change[:3, 3] - first).max() > OFFSET_TOLERANCE:
        return None
    return Turn((order[0], order[1], order[2]), flips)


def _affines(*geometries: Geometry) -> list[tuple[tuple[float, ...], ...] | None]:
    return [geometry.affine for geometry in geometries]


def grid_problem(name: str, got: Geometry, wanted: Geometry, what: str) -> Problem | None:
    """Compare shape, spacing and both affines, within the tolerances of the conversion's checks.

    Spacings may differ by 1e-3 of them, origins by 1e-2 mm, direction cosines by 1e-3. Where a header has two affines
    (sform and qform) or a unit other than millimetres, readers differ in what they make of it: whatever one may make of
    the label map's must be something that one may make of the image's. Where the image has none, only spacings are
    compared.

    Args:
        name: of the file, for the message.
        got: of a label map.
        wanted: of the image.
        what: whose geometry that is, for the message.
    """
    if got.shape != wanted.shape:
        shapes = [" x ".join(map(str, shape)) for shape in (got.shape, wanted.shape)]
        return Problem("shape", name, f"{shapes[0]} voxels (x, y, z); {what} has {shapes[1]}")
    if got.affine is None or wanted.affine is None or repr(got.header) == repr(wanted.header):  # NaN is not NaN
        return None
    if not is_finite(got):
        return Problem("geometry", name, "its spacing, sform or qform has numbers that are not finite, or are 0")
    candidates = list(_readings(wanted))
    spacings = [spacing_of(candidate) for candidate in candidates] + [_pixdim(wanted)]
    if not any(np.allclose(_pixdim(got), spacing, rtol=SPACING_TOLERANCE, atol=0) for spacing in spacings):
        return Problem("geometry", name, f"spacing {_joined(_pixdim(got))} mm (pixdim); {what} has {_spacing(wanted)}")
    for reading in _readings(got):
        differences = [difference((got.shape, reading), (wanted.shape, other)) for other in candidates]
        if not _placed(wanted):
            if all(found.spacing for found in differences):
                return Problem("geometry", name, f"spacing {_spacing(got)} mm; {what} has {_spacing(wanted)}")
        elif all(differences):
            found = differences[0]
            return Problem(
                "geometry",
                name,
                f"{found} differ{'' if ' and ' in str(found) else 's'} from that of {what}: "
                f"{_told(reading)} instead of {_told(candidates[0])}",
            )
    return None


def is_finite(geometry: Geometry) -> bool:
    """Whether spacings are positive and all numbers that readers use finite."""
    used = [_pixdim(geometry)]
    used += [np.ravel(geometry.header["srow"])] if geometry.header["sform_code"] else []
    used += [np.ravel(geometry.header["quaternion"])] if geometry.header["qform_code"] else []
    return bool(np.isfinite(np.concatenate(used)).all() and used[0].all())


def _pixdim(geometry: Geometry) -> np.ndarray:
    return np.abs(np.array(geometry.header["pixdim"][1:4], float))


def _joined(lengths: np.ndarray) -> str:
    return " x ".join(f"{length:g}" for length in lengths)


def _placed(geometry: Geometry) -> bool:
    return bool(geometry.header["qform_code"] or geometry.header["sform_code"])


def _valid(affine: tuple[tuple[float, ...], ...]) -> np.ndarray:
    """As an array whose axes have a length, so that directions exist."""
    made = np.array(affine)
    made[:3, :3] += np.diag(np.where(np.abs(made[:3, :3]).sum(axis=0) == 0, 1e-12, 0.0))
    return made


def _readings(geometry: Geometry) -> Iterator[np.ndarray]:
    """What different readers make of a header: sform, qform, and either in millimetres."""
    units = _MILLIMETRES.get(int(geometry.header["xyzt_units"]) & 7, 1.0)
    affines = [_valid(geometry.affine)] if geometry.affine is not None else []
    if geometry.header["qform_code"]:
        qform = _qform(geometry)
        affines += [] if qform is None else [qform]
    for affine in affines:
        yield affine
        if units != 1.0:
            yield np.diag([units, units, units, 1.0]) @ affine


def _qform(geometry: Geometry) -> np.ndarray | None:
    values = np.array(geometry.header["quaternion"], float)
    spacing = np.array(geometry.header["pixdim"], float)
    made = np.eye(4)
    try:
        made[:3, :3] = quat2mat(fillpositive(values[:3], w2_thresh=-1e-5)) * np.abs(spacing[1:4])
    except ValueError:
        return None
    made[:3, 2] *= -1.0 if spacing[0] == -1 else 1.0
    made[:3, 3] = values[3:]
    return _valid(tuple(tuple(row) for row in made))


def _spacing(geometry: Geometry) -> str:
    return _joined(spacing_of(np.array(geometry.affine)))


def _told(affine: np.ndarray) -> str:
    lengths = spacing_of(affine)
    cosines = np.round(affine[:3, :3] / lengths, 4) + 0.0
    origin = ", ".join(f"{value:.6g}" for value in affine[:3, 3])
    columns = "; ".join(" ".join(f"{value:g}" for value in column) for column in cosines.T)
    return f"spacing {' x '.join(f'{length:.6g}' for length in lengths)}, origin ({origin}), axes [{columns}]"
