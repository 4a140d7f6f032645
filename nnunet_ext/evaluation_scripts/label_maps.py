"""Label maps from files, with their geometry; and whether two lie on the same grid."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nnunet_ext.dataset_conversion import other_formats, volumes
from nnunet_ext.dataset_conversion.label_values import LabelValues
from nnunet_ext.dataset_conversion.sources import SourceFile, ending_of
from nnunet_ext.errors import UserError

_TIFF = (".tif", ".tiff")
ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha", ".gipl", ".png", ".bmp", ".tif", ".tiff")


@dataclass(frozen=True)
class LabelMap:
    """A label map.

    Attributes:
        labels: (z, y, x), in 2D (y, x); uint8 or uint16.
        spacing: millimetres along the axes of `labels`; of pictures 1, which is a pixel, unless a JSON file beside it
            states another, as nnU-Net's reader of 3D TIFF has it.
        affine: from (x, y, z) to RAS millimetres; None: of pictures.
    """

    labels: np.ndarray
    spacing: tuple[float, ...]
    affine: np.ndarray | None


def read(path: Path) -> LabelMap:
    """Read a label map.

    Raises:
        UserError: it can't be read, or holds something else than labels.
    """
    file = SourceFile(path.name, path, None, path.stat().st_size, path.stat().st_mtime_ns)
    try:
        if file.ending in (".nii", ".nii.gz"):
            volume = volumes.read_volume(file, file.read())
            array, affine = volume.values(), volume.affine
        else:
            array, given = other_formats.read(file)
            if given is None:
                return _picture(path, array)
            affine = given
        if array.ndim > 3 and array.shape[3:] == (1,) * (array.ndim - 3):
            array = array.reshape(array.shape[:3])
        if array.ndim != 3:
            raise UserError(f"{path}: {array.ndim} axes; a label map has 3")
        labels = LabelValues(array, str(path)).integers.transpose(2, 1, 0)
    except volumes.UnusableError as error:
        raise UserError(str(error).replace(": download it again.", ".")) from error
    spacing = tuple(float(edge) for edge in volumes.spacing_of(affine)[::-1])
    return LabelMap(labels, spacing, affine)


def _picture(path: Path, array: np.ndarray) -> LabelMap:
    """A picture; a stack of TIFF pages is a volume, and of colours the first counts."""
    if array.ndim == 3 and not (path.suffix.lower() in _TIFF and array.shape[2] > 4):
        array = array[..., 0]
    labels = LabelValues(array, str(path)).integers
    return LabelMap(labels, stated_spacing(path, labels.ndim) or (1.0,) * labels.ndim, None)


def stated_spacing(path: Path, axes: int = 3) -> tuple[float, ...] | None:
    """The spacing in mm that nnU-Net's reader of 3D TIFF finds in a JSON file beside the picture; None: no such file.

    Raises:
        UserError: it has another content.
    """
    beside = path.with_suffix(".json")
    if path.suffix.lower() not in _TIFF or not beside.is_file():
        return None
    try:
        spacing = tuple(float(edge) for edge in json.loads(beside.read_text(encoding="utf-8"))["spacing"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{beside}: no spacing of {path.name} can be read from it ({error!r}).") from error
    if len(spacing) != axes or min(spacing) <= 0:
        raise UserError(f"{beside}: spacing {spacing}, expected {axes} positive numbers in mm.")
    return spacing


def unit_of(path: Path) -> str:
    """Of distances in a label map: "mm", or "pixels" where the file knows no spacing."""
    pictures = (".png", ".bmp", *_TIFF)
    return "pixels" if path.suffix.lower() in pictures and not _has_sidecar(path) else "mm"


def _has_sidecar(path: Path) -> bool:
    return path.suffix.lower() in _TIFF and path.with_suffix(".json").is_file()


def same_grid(reference: LabelMap, predicted: LabelMap, names: tuple[Path, Path]) -> list[str]:
    """Check that two label maps can be compared voxel by voxel.

    Args:
        reference: one.
        predicted: the other.
        names: their files, for messages.

    Returns:
        Notices: origin or direction differ.

    Raises:
        UserError: shape or spacing differ.
    """
    if reference.labels.shape != predicted.labels.shape:
        raise UserError(
            f"{names[1]}: shape {predicted.labels.shape}, but {reference.labels.shape} of {names[0]} (axes z, y, x): "
            "not the same image, or predicted on another grid. Nothing is resampled: predict on the original image."
        )
    if reference.affine is None or predicted.affine is None:
        return []
    shape = reference.labels.shape[::-1]
    differs = volumes.difference((shape, predicted.affine), (shape, reference.affine))
    _refuse_turned(predicted.affine, reference.affine, shape, names)
    if differs.spacing:
        raise UserError(
            f"{names[1]}: spacing {_rounded(predicted)} mm, but {_rounded(reference)} mm of {names[0]} (axes z, y, x): "
            "not the same image, or a header was lost."
        )
    return (
        [f"{names[1].name}: {differs} differ from those of {names[0]}; voxels are compared as stored"]
        if differs
        else []
    )


def _refuse_turned(
    predicted: np.ndarray, reference: np.ndarray, shape: tuple[int, ...], names: tuple[Path, Path]
) -> None:
    """Refuse a prediction of the same place in the patient whose axes run otherwise: its voxels don't correspond."""
    turn = volumes.turn_to(predicted, reference)
    if volumes.is_turn(turn) and not volumes.difference(
        volumes.turned_grid(shape, predicted, turn), (shape, reference)
    ):
        raise UserError(
            f"{names[1]}: its axes are {volumes.axes(predicted)}, those of {names[0]} {volumes.axes(reference)}: the "
            "same image, turned. Compare label maps in the original's axes, as nnU-Net's commands write them."
        )


def _rounded(label_map: LabelMap) -> tuple[float, ...]:
    return tuple(round(edge, 5) for edge in label_map.spacing)


def is_label_map(path: Path) -> bool:
    """Whether a file's name is one of a label map; hidden files are not."""
    return path.is_file() and not path.name.startswith(".") and ending_of(path.name) in ENDINGS
