"""A file of one case on its way into the data set: its header read, put right, and brought onto the image's grid."""

from __future__ import annotations

from typing import Any

import nibabel
import numpy as np

from nnunet_ext.dataset_conversion import files, headers, itk_geometry, volumes
from nnunet_ext.dataset_conversion.sources import SourceFile
from nnunet_ext.dataset_conversion.volumes import UnusableError, Volume

_MOST_BYTES = 8  # of a voxel that SimpleITK reads


def is_named_compressed(file: SourceFile) -> bool:
    """What the name says; the content decides where it is looked at."""
    return file.ending.endswith(".gz")


class Planned:
    """A file of the data set, from its source to what is written."""

    def __init__(self, source: SourceFile, name: str, channel: int | None = None, *, reader: str | None = None) -> None:
        """Args: the source, the name in the data set's folder, the place along the fourth axis, nnU-Net's reader."""
        self.source, self.name, self.channel = source, name, channel
        self.by_nibabel = reader is not None and reader.startswith("Nibabel")
        self.header: Any = None
        self.compressed = is_named_compressed(source)
        self.original: dict[str, Any] = {}
        self.changes: list[str] = []
        self.checksum: str | None = None
        self._volume: Volume | None = None

    @property
    def affine(self) -> np.ndarray | None:
        """Where the voxels lie for nnU-Net's reader (RAS, mm); None if it refuses the file."""
        return self.nibabel_affine if self.by_nibabel else itk_geometry.itk_affine(self.header)

    @property
    def nibabel_affine(self) -> np.ndarray:
        """Where the voxels lie for nibabel."""
        return np.asarray(self.header.get_best_affine(), float)

    @property
    def grid(self) -> tuple[tuple[int, ...], np.ndarray]:
        """Shape and affine as they are to be written, as nnU-Net's reader reads them."""
        affine = self.affine
        return tuple(self.header.get_data_shape()[:3]), self.nibabel_affine if affine is None else affine

    def load(self, content: bytes | None = None) -> Volume:
        """The voxels (of the channel), with the header that is to be written."""
        if self._volume is None:
            if content is None:
                content = self.source.read()
                self.checksum = files.whole_checksum(self.source, content)
            volume = volumes.read_volume(self.source, content)
            stored = volume.stored if self.channel is None else volume.stored[..., self.channel]
            self._volume = Volume(self.header, stored.reshape(stored.shape[:3]), self.changes)
        return self._volume

    def change(self, what: str) -> None:
        """Note a change, for which the file must be written anew."""
        self.changes.append(what)


def read_header(file: Planned, channels: int, notices: list[str]) -> None:
    """Read and check a header; what is wrong with it is put right there.

    Args:
        file: gets the header.
        channels: of a file with a fourth axis.
        notices: what was odd is added.

    Raises:
        UnusableError: what is wrong can't be put right.
    """
    header, file.compressed = volumes.read_header(file.source)
    shape = _shape(file, header, channels)
    if header.get_data_dtype().kind not in "iuf" or header.get_data_dtype().itemsize > _MOST_BYTES:
        kind = header.get_value_label("datatype")
        raise UnusableError(f"{file.source.where}: voxels of type {kind}; expected one number each, of up to 64 bits.")
    if isinstance(header, nibabel.Nifti2Header):
        header = volumes.as_nifti1(header)
        file.change("NIfTI-2 made NIfTI-1, which SimpleITK reads")
    file.header = header
    file.original = volumes.geometry(header, shape)
    if file.channel is not None:
        file.change(f"channel {file.channel} of the fourth axis")
    if len(header.get_data_shape()) > len(shape[:3]):
        _drop_axes(header, shape)
    scaling = headers.made_clear(header)
    if scaling is not None:
        _repaired(file, scaling, notices)
    _put_geometry_right(file, notices)


def _shape(file: Planned, header: Any, channels: int) -> tuple[int, ...]:
    """The shape without further axes of length 1."""
    where, shape = file.source.where, tuple(int(edge) for edge in header.get_data_shape())
    if file.channel is not None and (len(shape) != 4 or shape[3] != channels):
        raise UnusableError(f"{where}: shape {shape}; expected four axes, the last with the {channels} channels.")
    while file.channel is None and len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
        file.change(f"a {len(shape) + 1}th axis of length 1 dropped")
    if file.channel is None and len(shape) != 3:
        raise UnusableError(f"{where}: {len(shape)} axes, shape {shape}; expected 3, one file a channel.")
    return shape


def _drop_axes(header: Any, shape: tuple[int, ...]) -> None:
    header.set_data_shape(shape[:3])
    header["pixdim"][4:] = 1


def _repaired(file: Planned, what: str, notices: list[str]) -> None:
    file.change(what)
    notices.append(f"{file.source.base}: {what}")


def _put_geometry_right(file: Planned, notices: list[str]) -> None:
    affine = file.grid[1]
    spacing = volumes.spacing_of(affine)
    if not np.isfinite(affine).all() or not (spacing > 0).all():
        raise UnusableError(f"{file.source.where}: no usable geometry: spacing {spacing.round(6).tolist()}.")
    if file.affine is None or (file.by_nibabel and volumes.skew(affine) > volumes.ORTHOGONAL):
        _straighten(file, affine, notices)
    elif file.by_nibabel and not np.allclose(spacing, file.header["pixdim"][1:4], rtol=volumes.SPACING_TOLERANCE):
        # nnU-Net's readers that use nibabel take spacings from pixdim, or from the affine if they turn the axes
        given = [float(edge) for edge in file.header["pixdim"][1:4]]
        volumes.set_affine(file.header, affine, file.original["shape"])
        _repaired(file, f"pixdim {given} set to the spacing of the affine, {_rounded(affine)} mm", notices)
    else:
        _notice_conflict(file, notices)


def _straighten(file: Planned, affine: np.ndarray, notices: list[str]) -> None:
    """Make axes perpendicular that are nearly so: ITK refuses them otherwise."""
    skew = volumes.skew(affine)
    if skew > volumes.REPAIRABLE:
        raise UnusableError(
            f"{file.source.where}: its axes are not perpendicular (a cosine of {skew:.4f} between two of them; up to "
            f"{volumes.REPAIRABLE} is repaired): resample it to a rectangular grid first."
        )
    scale = 1.0 if file.by_nibabel else itk_geometry.unit(file.header)
    made = np.diag([scale, scale, scale, 1.0]) @ volumes.made_perpendicular(affine)
    volumes.set_affine(file.header, made, file.original["shape"])
    _repaired(file, f"axes made perpendicular (largest cosine {skew:.1e})", notices)


def _notice_conflict(file: Planned, notices: list[str]) -> None:
    """Say so if a header describes two geometries, and which of them counts."""
    differs = itk_geometry.conflict(file.header)
    if not differs:
        return
    reader, taken = "nibabel", "sform"
    if not file.by_nibabel:
        reader, taken = "SimpleITK", f"{itk_geometry.form_taken(file.header)}, and spacings from pixdim"
    notices.append(f"{file.source.base}: {differs}; nnU-Net's reader ({reader}) takes the {taken}")


def turn_file(file: Planned, turn: np.ndarray, before: np.ndarray) -> None:
    """Turn a file's axes, unless they are right; `before` is the affine that it has."""
    if volumes.is_turn(turn):
        volumes.turned(file.load(), turn, before)


def turn_all_to_ras(planned: list[Planned]) -> None:
    """Turn the files of a case to RAS, all by the axes of the first: a label's header may have been wrong.

    The axes are nibabel's, as conversion.json records them, so that the way back turns predictions by the same.
    """
    first = planned[0]
    grid, affine = first.grid, first.nibabel_affine
    turn = volumes.turn_to(affine, "RAS")
    for file in planned:
        turn_file(file, turn, file.grid[1] if volumes.difference(file.grid, grid) else affine)


def agree(file: Planned, first: Planned, trusted: bool, notices: list[str]) -> None:
    """Make a channel or a label lie on the grid of the first image, or refuse it.

    Args:
        file: whose axes are turned if its header says the same place as the image's in other axes; that is no chance.
        first: the first image.
        trusted: the voxels correspond whatever the headers say: otherwise the file gets the image's geometry.
        notices: what was done is added.

    Raises:
        UnusableError: they can't be of the same case.
    """
    grids = file.grid, first.grid
    differs = volumes.difference(*grids)
    if differs and _turned_onto(file, first, notices):
        return
    if differs.shape:
        raise UnusableError(
            f"{file.source.where}: shape {grids[0][0]}, but {grids[1][0]} of {first.source.base}: not the same case, "
            "or resampled."
        )
    if differs and trusted:
        _copy_geometry(file, first, notices, f"{differs} differed in the header")
    elif differs.spacing:
        raise UnusableError(
            f"{file.source.where}: spacing {_rounded(grids[0][1])} mm, but {_rounded(grids[1][1])} mm of "
            f"{first.source.base}. If their voxels do correspond, --copy-geometry lets it have the image's."
        )
    elif differs:
        notices.append(
            f"{file.source.base}: {differs} differ from those of {first.source.base}; left so, since nnU-Net goes by "
            "voxels. Look at an overlay; --copy-geometry lets it have the image's."
        )
    elif not np.allclose(volumes.spacing_of(grids[0][1]), volumes.spacing_of(grids[1][1])):
        _copy_geometry(file, first, notices, "spacing differed by less than 0.1 %, which nnU-Net does not accept")


def _turned_onto(file: Planned, first: Planned, notices: list[str]) -> bool:
    """Turn a file's axes to those of the first image if it then lies exactly there."""
    grid, wanted = file.grid, first.grid
    turn = volumes.turn_to(grid[1], wanted[1])
    if not volumes.is_turn(turn) or volumes.difference(volumes.turned_grid(*grid, turn), wanted):
        return False
    turn_file(file, turn, grid[1])
    notices.append(f"{file.source.base}: {file.changes[-1]}, as the image {first.source.base} has them")
    return True


def _rounded(affine: np.ndarray) -> list[float]:
    return [float(edge) for edge in volumes.spacing_of(affine).round(5)]


def _copy_geometry(file: Planned, first: Planned, notices: list[str], why: str) -> None:
    volumes.copy_geometry(file.header, first.header)
    _repaired(file, f"geometry of {first.source.base} copied: {why}", notices)
