"""NIfTI volumes of a download: headers without their voxels, geometry, and the few repairs that conversion makes.

Arrays are (x, y, z), as in the file; affines lead to millimetres to the right, anterior and superior (RAS).
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import IO, Any

import nibabel
import numpy as np
from nibabel.orientations import (
    aff2axcodes,
    apply_orientation,
    axcodes2ornt,
    inv_ornt_aff,
    io_orientation,
    ornt_transform,
)

from nnunet_ext.dataset_conversion import headers
from nnunet_ext.dataset_conversion.headers import scaling as scaling
from nnunet_ext.dataset_conversion.sources import SourceFile

SPACING_TOLERANCE = 1e-3
"""Relative difference of two spacings that are called the same."""
ORIGIN_TOLERANCE = 1e-2
"""Millimetres between two origins that are called the same."""
DIRECTION_TOLERANCE = 1e-3
"""Difference of direction cosines that are called the same."""
ORTHOGONAL = 1e-4
"""Cosine between two axes up to which ITK, nnU-Net's reader, takes them for perpendicular."""
REPAIRABLE = 1e-3
"""Cosine between two axes up to which they are made perpendicular."""
_GZIP = b"\x1f\x8b"


class UnusableError(Exception):
    """A case cannot be used; the message says which file, what is wrong, and what to do."""


@dataclass
class Volume:
    """A NIfTI image in memory.

    Attributes:
        header: nibabel's, of NIfTI-1 or NIfTI-2; says what is to be written.
        stored: (x, y, z) or (x, y, z, channel), as stored: neither slope nor intercept are applied.
        changes: what was done to it.
    """

    header: Any
    stored: np.ndarray
    changes: list[str] = field(default_factory=list)

    @property
    def affine(self) -> np.ndarray:
        """Voxel indices to millimetres (4, 4)."""
        return np.asarray(self.header.get_best_affine(), float)

    def values(self) -> np.ndarray:
        """Slope and intercept applied."""
        slope, inter = scaling(self.header)
        return self.stored if (slope, inter) == (1.0, 0.0) else self.stored * slope + inter

    def write(self, stream: IO[bytes]) -> None:
        """Write a single-file NIfTI image, slab by slab, in the header's type and order of bytes."""
        header = self.header.copy()
        dtype = header.get_data_dtype()
        header.set_data_shape(self.stored.shape)
        header.set_data_offset(0)  # the smallest that is possible
        header.write_to(stream)
        stream.write(bytes(header.get_data_offset() - stream.tell()))
        for slab in np.moveaxis(self.stored, -1, 0):
            stream.write(slab.astype(dtype, copy=False).tobytes(order="F"))


def read_header(file: SourceFile) -> tuple[Any, bool]:
    """Read a NIfTI file's header; no voxels are read.

    Returns:
        Nibabel's header, and whether the file is compressed, whatever its name says.

    Raises:
        UnusableError: it is none.
    """
    try:
        with file.open() as stream:
            magic = stream.read(2)
            stream.seek(0)
            content: Any = gzip.GzipFile(fileobj=stream) if magic == _GZIP else stream
            return headers.parse(content), magic == _GZIP
    except (EOFError, OSError, zlib.error) as error:
        raise damaged(file, error) from error
    except headers.FAULTS as error:
        raise _no_nifti(file, error) from error


def damaged(file: SourceFile, error: BaseException | str) -> UnusableError:
    """What to say of a file that ends too early or fails its checksum."""
    reason = f"{error}".rstrip(".") or "it ends too early"
    return UnusableError(f"{file.where}: cut off or damaged ({reason}): download it again.")


def _no_nifti(file: SourceFile, error: BaseException) -> UnusableError:
    return UnusableError(f"{file.where}: not a NIfTI file, or its header is damaged ({error}).")


def read_volume(file: SourceFile, content: bytes) -> Volume:
    """A whole NIfTI file.

    Args:
        file: where it comes from, for messages.
        content: of the file, compressed or not.

    Raises:
        UnusableError: cut off, damaged, or no NIfTI file.
    """
    raw = uncompressed(file, content)
    try:
        header = headers.parse(io.BytesIO(raw))
    except EOFError as error:
        raise damaged(file, error) from error
    except headers.FAULTS as error:
        raise _no_nifti(file, error) from error
    shape, dtype, offset = header.get_data_shape(), header.get_data_dtype(), header.get_data_offset()
    needed = int(offset) + int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if len(raw) < needed:
        raise damaged(file, f"{len(raw)} bytes of {needed}")
    flat = np.frombuffer(raw, dtype, count=int(np.prod(shape, dtype=np.int64)), offset=int(offset))
    return Volume(header, flat.reshape(shape, order="F"))


def uncompressed(file: SourceFile, content: bytes) -> bytes:
    """The content without gzip's compression, its checksum tested.

    Raises:
        UnusableError: cut off or damaged.
    """
    if not content.startswith(_GZIP):
        return content
    try:
        return gzip.decompress(content)
    except (EOFError, OSError, zlib.error) as error:
        raise damaged(file, error) from error


def geometry(header: Any, shape: Sequence[int]) -> dict[str, Any]:
    """What conversion.json keeps of where an image lies: enough to write the same header again.

    Args:
        header: nibabel's.
        shape: (x, y, z).
    """
    return {
        "shape": [int(edge) for edge in shape[:3]],
        "affine": np.asarray(header.get_best_affine(), float).tolist(),
        "spacing": [float(edge) for edge in header["pixdim"][1:4]],
        "qform_code": int(header["qform_code"]),
        "sform_code": int(header["sform_code"]),
        "xyzt_units": int(header["xyzt_units"]),
        "pixdim": [float(value) for value in header["pixdim"]],
        "quaternion": [float(header[name]) for name in _QUATERNION],
        "srow": [[float(value) for value in header[name]] for name in _ROWS],
    }


_QUATERNION = ("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z")
_ROWS = ("srow_x", "srow_y", "srow_z")


def spacing_of(affine: np.ndarray) -> np.ndarray:
    """Millimetres between voxels along (x, y, z)."""
    return np.sqrt((affine[:3, :3] ** 2).sum(axis=0))


def directions(affine: np.ndarray) -> np.ndarray:
    """The axes' direction cosines, one column an axis."""
    return affine[:3, :3] / spacing_of(affine)


def skew(affine: np.ndarray) -> float:
    """The largest cosine between two different axes: 0 where all are perpendicular."""
    cosines = directions(affine)
    return float(np.abs(cosines.T @ cosines - np.eye(3)).max())


def made_perpendicular(affine: np.ndarray) -> np.ndarray:
    """The affine with the nearest perpendicular axes, spacing and origin as they were."""
    left, _, right = np.linalg.svd(directions(affine))
    made = affine.copy()
    made[:3, :3] = (left @ right) * spacing_of(affine)
    return made


@dataclass(frozen=True)
class Difference:
    """How two grids differ; a False is "the same within the tolerances of this module"."""

    shape: bool
    spacing: bool
    origin: bool
    direction: bool

    def __bool__(self) -> bool:
        return self.shape or self.spacing or self.origin or self.direction

    def __str__(self) -> str:
        return " and ".join(name for name in ("shape", "spacing", "origin", "direction") if getattr(self, name))


def difference(one: tuple[Sequence[int], np.ndarray], other: tuple[Sequence[int], np.ndarray]) -> Difference:
    """Compare two grids, each (shape, affine)."""
    shapes, affines = [tuple(grid[0][:3]) for grid in (one, other)], [grid[1] for grid in (one, other)]
    spacings = [spacing_of(affine) for affine in affines]
    return Difference(
        shape=shapes[0] != shapes[1],
        spacing=not np.allclose(spacings[0], spacings[1], rtol=SPACING_TOLERANCE, atol=0),
        origin=bool(np.linalg.norm(affines[0][:3, 3] - affines[1][:3, 3]) > ORIGIN_TOLERANCE),
        direction=bool(np.abs(directions(affines[0]) - directions(affines[1])).max() > DIRECTION_TOLERANCE),
    )


def axes(affine: np.ndarray) -> str:
    """Where the axes point, such as "RAS"."""
    return "".join(code or "?" for code in aff2axcodes(affine))


def turn_to(affine: np.ndarray, wanted: np.ndarray | str) -> np.ndarray:
    """Nibabel's orientation that turns the axes of an image to those of another image, or to codes such as "RAS"."""
    target = axcodes2ornt(tuple(wanted)) if isinstance(wanted, str) else io_orientation(wanted)
    turn: np.ndarray = ornt_transform(io_orientation(affine), target)
    return turn


def is_turn(turn: np.ndarray) -> bool:
    """Whether an orientation changes anything."""
    return not np.array_equal(turn, [[0, 1], [1, 1], [2, 1]])


def turned_grid(shape: Sequence[int], affine: np.ndarray, turn: np.ndarray) -> tuple[tuple[int, ...], np.ndarray]:
    """Shape and affine after the axes were turned."""
    order = [list(turn[:, 0]).index(axis) for axis in range(3)]
    return tuple(int(shape[axis]) for axis in order), affine @ inv_ornt_aff(turn, tuple(shape[:3]))


def turned(volume: Volume, turn: np.ndarray, before: np.ndarray) -> None:
    """Turn the axes in place; every voxel stays where it was in the patient.

    Args:
        volume: its header says the new axes afterwards.
        turn: nibabel's orientation.
        before: the affine that the volume has (RAS, mm).
    """
    _, affine = turned_grid(volume.stored.shape, before, turn)
    volume.stored = apply_orientation(volume.stored, turn)
    set_affine(volume.header, affine, volume.stored.shape)
    volume.changes.append(f"axes turned from {axes(before)} to {axes(affine)}")


def set_affine(header: Any, affine: np.ndarray, shape: Sequence[int]) -> None:
    """Let a header say this affine (RAS, mm) so that all readers understand the same.

    It is the sform and the qform, both as coordinates of the scanner, as ITK writes them: of other codes ITK takes the
    qform, whose quaternion is less exact.
    """
    header.set_data_shape(shape)
    header.set_sform(affine, 1)
    header.set_qform(affine, 1, strip_shears=True)
    header["pixdim"][1:4] = spacing_of(affine)
    header["xyzt_units"] = (int(header["xyzt_units"]) & ~_SPACE) | _MILLIMETRES


_SPACE, _MILLIMETRES = 7, 2  # of NIfTI's units


def as_nifti1(header: Any) -> Any:
    """A NIfTI-1 header that says the same as one of NIfTI-2, which SimpleITK, nnU-Net's reader, does not know."""
    made = nibabel.Nifti1Header(endianness=header.endianness)
    made.set_data_dtype(header.get_data_dtype())
    made.set_data_shape(header.get_data_shape())
    copy_geometry(made, header)
    made["scl_slope"], made["scl_inter"] = header["scl_slope"], header["scl_inter"]
    return made


def copy_geometry(header: Any, source: Any) -> None:
    """Give a header the spacing, units, qform and sform of another, so that every reader sees both in one place."""
    for name in ("xyzt_units", "qform_code", "sform_code", *_QUATERNION, *_ROWS):
        header[name] = source[name]
    header["pixdim"][:4] = source["pixdim"][:4]
