"""Parsing NIfTI headers: what no reader could make sense of, or what readers read differently, is refused by name."""

from __future__ import annotations

from typing import Any

import nibabel
import numpy as np

FAULTS = (ValueError, nibabel.spatialimages.HeaderDataError, nibabel.filebasedimages.ImageFileError)
"""What `parse` raises for a file that is no NIfTI file or has a header that is damaged."""
_MOST_AXES = 7
_NO_TYPES = (0, 1)  # unknown and bits, which NIfTI does not have any more


def parse(stream: Any) -> Any:
    """Read a header from the start of a stream.

    Returns:
        Nibabel's, of NIfTI-1 or NIfTI-2.

    Raises:
        EOFError: the stream is empty.
        ValueError: it is none, or makes no sense; also the others of `FAULTS`.
    """
    start = stream.read(4)
    if len(start) < 4:
        raise EOFError("no header")
    stream.seek(0)
    sizes = {int.from_bytes(start, "little"), int.from_bytes(start, "big")}
    if not sizes & {348, 540}:  # of the header, NIfTI's first entry
        raise ValueError(f"it begins with {start!r}")
    kind = nibabel.Nifti2Header if 540 in sizes else nibabel.Nifti1Header
    header = kind.from_fileobj(stream, check=False)
    if not header["magic"].item().startswith(b"n+"):
        raise ValueError("it has not the magic number of a single-file NIfTI image")
    _check(header)
    return header


def _check(header: Any) -> None:
    """Refuse sizes, types and offsets that no image has."""
    dim = [int(edge) for edge in header["dim"]]
    if not 1 <= dim[0] <= _MOST_AXES:
        raise ValueError(f"dim[0] is {dim[0]}; an image has 1 to {_MOST_AXES} axes")
    shape = dim[1 : dim[0] + 1]
    if min(shape) < 1:
        raise ValueError(f"dim is {shape}; every edge must be 1 or more")
    datatype = int(header["datatype"])
    if datatype in _NO_TYPES or datatype not in header._data_type_codes.code:
        raise ValueError(f"datatype is {datatype}, which is none of NIfTI's")
    offset, least = float(header["vox_offset"]), header.single_vox_offset
    if not np.isfinite(offset) or offset < least:
        raise ValueError(f"vox_offset is {offset:g}; voxels begin at byte {least} or later")
    affine = np.asarray(header.get_best_affine(), float)  # may raise for a quaternion
    if not np.isfinite(affine).all():
        raise ValueError("its geometry is not finite")


def scaling(header: Any) -> tuple[float, float]:
    """Slope and intercept; 1 and 0 where the header sets none: a slope of 0, NaN or infinity is none.

    An intercept that is no number counts as 0.
    """
    slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
    if not np.isfinite(slope) or slope == 0:
        return 1.0, 0.0
    return slope, inter if np.isfinite(inter) else 0.0


def made_clear(header: Any) -> str | None:
    """Let a header say its scaling so that all readers understand the same; what was changed, or None.

    SimpleITK adds an intercept also where the slope of 0 says that there is no scaling; nibabel refuses an intercept
    that is no number.
    """
    slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
    none = not np.isfinite(slope) or slope == 0
    if (none and (inter == 0 or not np.isfinite(inter))) or (not none and np.isfinite(inter)):
        return None
    header["scl_slope"], header["scl_inter"] = scaling(header)
    return f"slope {slope:g} and intercept {inter:g} set to {scaling(header)[0]:g} and {scaling(header)[1]:g}"
