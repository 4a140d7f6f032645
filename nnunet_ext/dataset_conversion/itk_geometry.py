"""Where a NIfTI file's voxels lie for SimpleITK, nnU-Net's usual reader; it is not always where nibabel sees them."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from nnunet_ext.dataset_conversion.volumes import SPACING_TOLERANCE, difference, directions

_TO_MILLIMETRES = {1: 1e3, 3: 1e-3}  # NIfTI's codes of metre and micrometre; all others count as millimetres
_SCANNER = 1
_ORTHONORMAL = 1e-4
_SIMILAR = 1e-4
_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def itk_affine(header: Any) -> np.ndarray | None:
    """Voxel indices to millimetres as SimpleITK 2.5 (ITK 5.4) reads them.

    Found by experiments with all codes, and compared with SimpleITK in the tests:

    - Spacing is always pixdim, also where the sform says another; 0, NaN and infinity count as 1, and a negative value
      turns the axis round. Metres and micrometres are made millimetres; other units count as millimetres.
    - Codes below 0 count as 0, those above 4 as any other.
    - Both codes 0: the axes are those of the patient in LPS, the origin is 0.
    - Only the qform has a code: the qform. A quaternion that is too long is shortened to 1, NaN in it counts as 0, and
      any negative pixdim[0] is a qfac of -1.
    - Only the sform has a code: the sform; if its axes are not perpendicular (rows of the direction matrix whose
      product differs from the identity by more than 1e-4), the file is refused.
    - Both have one: the qform if the axes of the sform are not perpendicular; else the sform if its code is 1, or if
      the two are very similar (1e-4); else the qform.
    - "Very similar" is judged by singular vectors, without all of their signs. So of a sform with a code from 2 and a
      qform of the same first voxel and the same spacings, which differ in axes alone, either may be taken. There
      SimpleITK itself is asked.

    Args:
        header: nibabel's, of a NIfTI-1 file with three axes or more.

    Returns:
        The affine (4, 4) in RAS, or None if SimpleITK refuses the file.
    """
    spacing = _spacing(header)
    if not any(_codes(header)):
        return _with(_TO_RAS[:3, :3], np.zeros(3), spacing, unit(header))
    chosen = _chosen(header)
    if chosen is None:
        return None
    if chosen == "unclear":
        return _asked(header)
    matrix = sform(header) if chosen == "sform" else qform(header)
    axes = matrix[:3, :3] / np.linalg.norm(matrix[:3, :3], axis=0)
    return _with(axes, matrix[:3, 3], spacing, unit(header))


def unit(header: Any) -> float:
    """Millimetres of the unit that lengths in the header have."""
    return _TO_MILLIMETRES.get(int(header["xyzt_units"]) & 7, 1.0)


def sform(header: Any) -> np.ndarray:
    """The sform (4, 4), whatever its code."""
    return np.array([header["srow_x"], header["srow_y"], header["srow_z"], (0, 0, 0, 1)], float)


def qform(header: Any) -> np.ndarray:
    """The qform (4, 4), whatever its code; spacings that are not positive count as 1."""
    b, c, d, *offset = _finite([header[f"quatern_{name}"] for name in "bcd"] + [header[f"qoffset_{n}"] for n in "xyz"])
    square = b * b + c * c + d * d
    if 1 - square < 1e-7:
        a = 0.0
        b, c, d = (value / np.sqrt(square) for value in (b, c, d))
    else:
        a = np.sqrt(1 - square)
    spacing = _spacing(header)
    made = np.eye(4)
    made[:3, :3] = nibabel.quaternions.quat2mat((a, b, c, d)) * np.where(spacing > 0, spacing, 1.0)
    made[:3, 2] *= -1.0 if float(header["pixdim"][0]) < 0 else 1.0
    made[:3, 3] = offset
    return made


def _finite(values: Any) -> list[float]:
    return [float(value) if np.isfinite(value) else 0.0 for value in values]


def _spacing(header: Any) -> np.ndarray:
    given = np.array(header["pixdim"][1:4], float)
    return np.where(np.isfinite(given) & (given != 0), given, 1.0)


def _with(axes: np.ndarray, origin: np.ndarray, spacing: np.ndarray, scale: float) -> np.ndarray:
    made = np.eye(4)
    made[:3, :3] = axes * spacing * scale
    made[:3, 3] = origin * scale
    return made


def form_taken(header: Any) -> str | None:
    """The form, "qform" or "sform", that tells SimpleITK axes and origin; None if neither does."""
    chosen = _chosen(header) if any(_codes(header)) else None
    if chosen != "unclear":
        return chosen
    axes = directions(_asked(header))
    apart = [np.abs(directions(form) - axes).max() for form in (qform(header), sform(header))]
    return "qform" if apart[0] < apart[1] else "sform"


def conflict(header: Any) -> str | None:
    """How a header contradicts itself, beyond the tolerances of `volumes.difference`; None if it does not."""
    has_qform, has_sform = _codes(header)
    if not has_sform:
        return None
    said = sform(header)
    lengths = np.linalg.norm(said[:3, :3], axis=0)
    if not has_qform:
        pixdim = np.array(header["pixdim"][1:4], float)
        if np.allclose(lengths, pixdim, rtol=SPACING_TOLERANCE, atol=0):
            return None
        return f"spacing {pixdim.round(5).tolist()} in pixdim, but {lengths.round(5).tolist()} in its sform"
    if not np.isfinite(said).all() or not (lengths > 0).all():
        return "its sform is none"
    differs = difference(((), said), ((), qform(header)))
    return f"its qform and its sform differ in {differs}" if differs else None


def _codes(header: Any) -> tuple[bool, bool]:
    return int(header["qform_code"]) > 0, int(header["sform_code"]) > 0


def _chosen(header: Any) -> str | None:
    """The form that is taken: "qform", "sform", "unclear" or None."""
    has_qform, has_sform = _codes(header)
    if not has_sform or not _perpendicular(sform(header)):
        return "qform" if has_qform else None
    if not has_qform or int(header["sform_code"]) == _SCANNER:
        return "sform"
    forms = sform(header), qform(header)
    apart = np.abs(forms[0] - forms[1])
    if apart[:3, 3].max() > _SIMILAR or apart.max() <= _SIMILAR:
        return "qform"
    return "unclear"


def _perpendicular(matrix: np.ndarray) -> bool:
    lengths = np.linalg.norm(matrix[:3, :3], axis=0)
    if not np.isfinite(matrix).all() or not (lengths > 0).all():
        return False
    axes = (matrix[:3, :3] / lengths).astype(np.float32)
    return bool(np.abs(axes @ axes.T - np.eye(3, dtype=np.float32)).max() <= _ORTHONORMAL)


def _asked(header: Any) -> np.ndarray:
    """What SimpleITK makes of a file of one voxel with this header."""
    import SimpleITK

    small = header.copy()
    small.set_data_dtype(np.uint8)
    small.set_data_shape((1, 1, 1))
    small.set_data_offset(352)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "header.nii"
        path.write_bytes(small.binaryblock + bytes(5))
        image = SimpleITK.ReadImage(str(path))
    made = np.eye(4)
    made[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * np.array(image.GetSpacing())
    made[:3, 3] = image.GetOrigin()
    return _TO_RAS @ made
