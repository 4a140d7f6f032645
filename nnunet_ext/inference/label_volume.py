"""Label maps larger than memory: written brick by brick into a file, and streamed from there into an image."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.openers import ImageOpener
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform

from nnunet_ext.architectures.blocks.point_grid import PointGrid
from nnunet_ext.errors import UserError

NIFTI = (".nii", ".nii.gz")
LONGEST = 32767  # voxels an axis of a NIfTI file
_SLAB = 1 << 24  # bytes read at once


class LabelVolume:
    """Labels in a file, all background at first. The file is mapped only while it is written to or read from."""

    def __init__(self, path: Path, shape: Sequence[int], highest: int) -> None:
        """Make the file.

        Args:
            path: is overwritten.
            shape: (D, H, W), the last axis fastest in the file.
            highest: label; uint8 where that is enough, else uint16.

        Raises:
            OSError: there is no room for it.
        """
        self.path, self.shape = path, tuple(int(edge) for edge in shape)
        self.dtype = np.dtype(np.uint8 if highest <= np.iinfo(np.uint8).max else np.uint16)
        size = math.prod(self.shape) * self.dtype.itemsize
        with path.open("wb") as file:
            if hasattr(os, "posix_fallocate"):  # a disk that is full kills a process that writes to mapped memory
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                file.truncate(size)

    def mapped(self, mode: Any = "r") -> np.memmap[Any, Any]:
        """All labels; pages that were touched stay in memory as long as this is referred to."""
        return np.memmap(self.path, self.dtype, mode, shape=self.shape)

    def write(self, brick: tuple[slice, ...], labels: Any) -> None:
        """Set the labels of a box."""
        self.mapped("r+")[brick] = np.asarray(labels)


def image_affine(properties: dict[str, Any]) -> np.ndarray | None:
    """From voxel indices (x, y, z) of an image, as its reader gives it, to millimetres (right, anterior, superior).

    Args:
        properties: of nnU-Net's readers. None where these know nothing but a spacing.

    Raises:
        UserError: it is no 3D image.
    """
    if "nibabel_stuff" in properties:
        stuff = properties["nibabel_stuff"]
        return np.asarray(stuff.get("reoriented_affine", stuff["original_affine"]), float)
    if "sitk_stuff" not in properties:
        return None
    stuff = properties["sitk_stuff"]
    if len(stuff["spacing"]) != 3:
        raise UserError(f"the image has {len(stuff['spacing'])} axes; it must have 3, a file for each channel")
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(stuff["direction"], (3, 3)) * np.asarray(stuff["spacing"])
    affine[:3, 3] = stuff["origin"]
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine  # ITK counts to the left and posterior


def grid_affine(affine: np.ndarray, grid: PointGrid) -> np.ndarray:
    """The affine of a grid of points in an image whose affine is given; both for indices (x, y, z)."""
    within = np.diag([*grid.scale[::-1], 1.0])
    within[:3, 3] = grid.offset[::-1]
    return affine @ within


def save(labels: LabelVolume, target: Path, grid: PointGrid, properties: dict[str, Any], reader: Any) -> None:
    """Write an image as a whole or not at all.

    NIfTI files are streamed; for others, nnU-Net's writer gets all labels at once.

    Args:
        labels: of the grid's points.
        target: the file; an earlier one is replaced.
        grid: points in the image.
        properties: of the image, by nnU-Net's reader.
        reader: nnU-Net's.
    """
    affine = image_affine(properties)
    with whole(target) as unfinished:
        if affine is not None and target.name.endswith(NIFTI):
            write_nifti(labels, unfinished, grid_affine(affine, grid), original_orientation(properties))
        else:
            reader.write_seg(np.array(labels.mapped()), str(unfinished), _of_grid(properties, grid))


@contextmanager
def whole(target: Path) -> Iterator[Path]:
    """A path to write a file to, which becomes `target` at the end of the block if all went well.

    What is written beside it, such as a spacing, goes with it, before it.
    """
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as folder:
        unfinished = Path(folder) / target.name
        yield unfinished
        for path in sorted(Path(folder).iterdir(), key=lambda path: path == unfinished):
            os.replace(path, target.parent / path.name)


def original_orientation(properties: dict[str, Any]) -> np.ndarray | None:
    """Nibabel's orientation of the file's axes, where nnU-Net's reader reorders them; else None."""
    if "original_orientation" in properties.get("sitk_stuff", {}):
        return np.asarray(axcodes2ornt(tuple(properties["sitk_stuff"]["original_orientation"])))
    if "reoriented_affine" in properties.get("nibabel_stuff", {}):
        return np.asarray(io_orientation(properties["nibabel_stuff"]["original_affine"]))
    return None


def write_nifti(labels: LabelVolume, path: Path, affine: np.ndarray, orientation: np.ndarray | None = None) -> None:
    """Stream labels into a NIfTI file; a few slabs are in memory, however large it is.

    Where the last axis becomes another one, the labels are read once for each slab of the result.

    Args:
        labels: (z, y, x).
        path: ends with .nii or .nii.gz.
        affine: of indices (x, y, z).
        orientation: nibabel's, to which the axes are to be reordered; None: as they are.
    """
    shape = labels.shape[::-1]
    change = None if orientation is None else ornt_transform(io_orientation(affine), orientation)
    if change is not None:
        affine = affine @ inv_ornt_aff(change, shape)
        shape = tuple(int(shape[list(change[:, 0]).index(axis)]) for axis in range(3))
    header = nibabel.Nifti1Header()
    header.set_data_dtype(labels.dtype)
    header.set_data_shape(shape)
    header.set_qform(affine, code=1)
    header.set_sform(affine, code=1)
    header.set_xyzt_units("mm")
    header.set_slope_inter(1, 0)
    with ImageOpener(str(path), "wb") as file:
        header.write_to(file)
        file.write(bytes(header.get_data_offset() - file.tell()))
        step = _slices(shape[0] * shape[1] * labels.dtype.itemsize)
        for start in range(0, shape[2], step):
            part = slice(start, min(start + step, shape[2]))
            slab = labels.mapped().T[..., part] if change is None else _reordered(labels, change, part)
            file.write(slab.tobytes(order="F"))


def _slices(size: int) -> int:
    """How many slices of so many bytes are read at once."""
    return max(1, _SLAB // size)


def _reordered(labels: LabelVolume, change: np.ndarray, part: slice) -> np.ndarray:
    """Slices along the last axis of the labels (x, y, z) with their axes changed as nibabel's orientation says."""
    shape = labels.shape[::-1]
    axis = list(change[:, 0]).index(2)
    wanted = [slice(0, edge) for edge in shape]
    wanted[axis] = part if change[axis, 1] > 0 else slice(shape[axis] - part.stop, shape[axis] - part.start)
    x, y, z = wanted
    found = np.empty([where.stop - where.start for where in wanted], labels.dtype, order="F")
    step = _slices(shape[0] * shape[1] * labels.dtype.itemsize)
    for start in range(z.start, z.stop, step):  # mapped anew each time, which gives back the pages that were read
        stop = min(start + step, z.stop)
        found[..., start - z.start : stop - z.start] = labels.mapped().T[x, y, start:stop]
    turned: np.ndarray = apply_orientation(found, change)
    return turned


def _of_grid(properties: dict[str, Any], grid: PointGrid) -> dict[str, Any]:
    """Properties for nnU-Net's writers, of another grid in the same image."""
    found = deepcopy(properties)
    found["spacing"] = [float(s) * scale for s, scale in zip(properties["spacing"], grid.scale, strict=True)]
    if "sitk_stuff" in found:
        stuff = found["sitk_stuff"]
        scale, offset = np.array(grid.scale[::-1]), np.array(grid.offset[::-1])
        shift = np.reshape(stuff["direction"], (3, 3)) @ (np.asarray(stuff["spacing"]) * offset)
        stuff["origin"] = tuple(float(value) for value in np.asarray(stuff["origin"]) + shift)
        stuff["spacing"] = tuple(float(value) for value in np.asarray(stuff["spacing"]) * scale)
    return found
