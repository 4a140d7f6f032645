"""Label maps as NIfTI files: read with everything that a server might stumble over, and written byte for byte alike.

Arrays are (x, y, z), as in the file.
"""

from __future__ import annotations

import gzip
import io
import math
import zipfile
import zlib
from dataclasses import dataclass
from typing import IO, Any

import nibabel
import numpy as np

from nnunet_ext.dataset_conversion.volumes import geometry, scaling
from nnunet_ext.submission.problems import Problem
from nnunet_ext.submission.raw_data import Geometry, geometry_of

_GZIP = b"\x1f\x8b"
_GZIP_HEADER = _GZIP + bytes([8, 0, 0, 0, 0, 0, 0, 255])  # deflate, no name, no time, unknown system
LEVEL = 6
MOST_BYTES = 1 << 32
"""Of a label map that is read: a volume of 512 x 512 x 2000 voxels as 64-bit floats."""
OFFSET = 352
"""Where voxels begin in a file: the header, and four bytes that announce no extension."""
_QUATERNION = ("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z")
_ROWS = ("srow_x", "srow_y", "srow_z")


class UnreadableError(Exception):
    """A file is no NIfTI label map; the message says why."""


@dataclass(frozen=True)
class LabelMap:
    """A NIfTI file in memory.

    Attributes:
        header: nibabel's.
        stored: as stored, in the shape that the header states.
        compressed: by gzip.
        trailing: there is more after the voxels.
    """

    header: Any
    stored: np.ndarray
    compressed: bool
    trailing: bool = False

    @property
    def scaling(self) -> tuple[float, float]:
        """Slope and intercept; 1 and 0 where the header sets none."""
        return scaling(self.header)

    def geometry(self) -> Geometry:
        """Where the voxels lie; of 3D images."""
        return geometry_of(geometry(self.header, self.stored.shape))


def read(stream: IO[bytes]) -> LabelMap:
    """Read a file, and no more of it than its header states and one byte, whatever it would unpack to.

    Raises:
        UnreadableError: it is cut off, damaged, or no NIfTI image of numbers in a single file.
    """
    try:
        compressed = stream.read(2) == _GZIP
        stream.seek(0)
        return _read(gzip.GzipFile(fileobj=stream) if compressed else stream, compressed)
    except (EOFError, OSError, zlib.error, zipfile.BadZipFile) as error:
        raise UnreadableError(f"cut off or damaged ({error})") from error


def _read(stream: Any, compressed: bool) -> LabelMap:
    start = stream.read(348)
    if len(start) == 348 and 540 in (int.from_bytes(start[:4], "little"), int.from_bytes(start[:4], "big")):
        start += stream.read(540 - 348)
    header = parse_header(start)
    shape, dtype = header.get_data_shape(), header.get_data_dtype()
    if dtype.kind not in "iuf":
        raise UnreadableError(f"its voxels are of type {dtype}: a label map has one number a voxel")
    if not shape or min(shape) < 1:
        raise UnreadableError(f"its shape is {shape}")
    number, offset = math.prod(int(edge) for edge in shape), int(header.get_data_offset()) - len(start)
    size = offset + number * dtype.itemsize
    if offset < 0 or size > MOST_BYTES:
        raise UnreadableError(f"its header states {size} bytes, the voxels {offset} bytes behind it: no label map")
    content = stream.read(size + 1)
    if len(content) < size:
        raise UnreadableError(f"cut off: {len(content)} bytes after its header, of {size}")
    stored = np.frombuffer(content, dtype, number, offset).reshape(shape, order="F")
    return LabelMap(header, stored, compressed, trailing=len(content) > size)


def parse_header(content: bytes) -> Any:
    """Nibabel's header of a NIfTI file, of its first bytes: 348, or 540 of NIfTI-2; more do not matter.

    Raises:
        UnreadableError: it is none.
    """
    start = content[:4]
    kinds = {348: nibabel.Nifti1Header, 540: nibabel.Nifti2Header}
    kind = next((kinds[n] for order in ("little", "big") if (n := int.from_bytes(start, order)) in kinds), None)
    if kind is None:
        raise UnreadableError("no NIfTI file" if content else "empty")
    try:
        header = kind.from_fileobj(io.BytesIO(content[: kind.sizeof_hdr]), check=False)  # without extensions
        header.get_data_shape(), header.get_data_dtype(), header.get_best_affine()
    except Exception as error:  # nibabel raises half a dozen types for headers that it cannot make sense of
        raise UnreadableError(f"no NIfTI file, or its header is damaged ({error})") from error
    if not header["magic"].item().startswith(b"n+"):
        raise UnreadableError("the header of a pair of files (.hdr and .img); servers take single files")
    return header


def count_values(labels: LabelMap) -> tuple[dict[int, int], str | None]:
    """How many voxels have each value, slope and intercept applied, slice by slice to save memory.

    Returns:
        Value -> voxels, sorted; and what is wrong, if values are no whole numbers.
    """
    slope, inter = labels.scaling
    counts: dict[int, int] = {}
    for part in np.moveaxis(labels.stored, -1, 0):
        scaled = part if (slope, inter) == (1.0, 0.0) else part * slope + inter
        values, numbers = np.unique(scaled, return_counts=True)
        bad = values[~np.isfinite(values) | (values != np.rint(values))] if values.dtype.kind == "f" else values[:0]
        if bad.size:
            return {}, f"{bad.size} values in one slice are no whole numbers, such as {float(bad[0]):g}"
        for value, number in zip(values, numbers, strict=True):
            counts[int(value)] = counts.get(int(value), 0) + int(number)
    return dict(sorted(counts.items())), None


def as_uint8(labels: LabelMap) -> np.ndarray:
    """The values, slope and intercept applied; they must be known to be whole numbers from 0 to 255."""
    slope, inter = labels.scaling
    if (slope, inter) == (1.0, 0.0):
        return labels.stored.astype(np.uint8, copy=False)
    made = np.empty(labels.stored.shape, np.uint8, order="F")
    for k in range(labels.stored.shape[-1]):
        made[..., k] = np.rint(labels.stored[..., k] * slope + inter)
    return made


def encoded(labels: np.ndarray, geometry: Geometry, *, compress: bool) -> bytes:
    """The content of a file: uint8, slope 1, intercept 0, and what the geometry's header says, bit for bit.

    Args:
        labels: (x, y, z) of the geometry's shape.
        geometry: of the original image.
        compress: by gzip, without a time, so that the same labels always make the same bytes.
    """
    header = nibabel.Nifti1Header(endianness="<")
    header.set_data_dtype(np.uint8)
    header.set_data_shape(geometry.shape)
    for name in ("qform_code", "sform_code", "xyzt_units", "pixdim"):
        header[name] = geometry.header[name]
    for names, values in ((_QUATERNION, geometry.header["quaternion"]), (_ROWS, geometry.header["srow"])):
        for name, value in zip(names, values, strict=True):
            header[name] = value
    header["scl_slope"], header["scl_inter"] = 1, 0
    header["vox_offset"] = OFFSET
    content = header.binaryblock + bytes(OFFSET - len(header.binaryblock)) + labels.astype(np.uint8).tobytes("F")
    return _compressed(content) if compress else content


def _compressed(content: bytes) -> bytes:
    """Like `gzip.compress`, whose header differs between versions of Python."""
    packer = zlib.compressobj(LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
    ends = [(number & 0xFFFFFFFF).to_bytes(4, "little") for number in (zlib.crc32(content), len(content))]
    return b"".join([_GZIP_HEADER, packer.compress(content), packer.flush(), *ends])


def dimension_problem(name: str, labels: LabelMap) -> Problem | None:
    """What is wrong if it is not 3D."""
    if labels.stored.ndim == 3:
        return None
    shape = " x ".join(map(str, labels.stored.shape))
    return Problem("shape", name, f"{labels.stored.ndim}D ({shape}); label maps must be 3D")
