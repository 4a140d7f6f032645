"""Volumes as a reader of images expects them: cut in three planes, the patient's right on the left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from nibabel.orientations import apply_orientation, io_orientation

MARGIN = 20.0
"""Millimetres (pixels of pictures) around the labels that are shown."""
Box = tuple[tuple[int, int], ...]
"""First and last but one index along each axis."""


@dataclass(frozen=True)
class Plane:
    """How a plane of an upright volume (X, Y, Z) is shown.

    Attributes:
        name: of the plane.
        axis: that is cut.
        right: axis that is shown from left to right.
        up: axis that is shown from below upwards.
        mirrored: whether the first index of `right` is on the right.
        letters: of the patient's sides at the left, right, lower and upper border; "" where nobody knows them.
        start: where the slices are counted from.
    """

    name: str
    axis: int
    right: int
    up: int
    mirrored: bool
    letters: tuple[str, str, str, str]
    start: str


PATIENT = (
    Plane("axial", 2, 0, 1, True, ("R", "L", "P", "A"), "from the feet"),
    Plane("coronal", 1, 0, 2, True, ("R", "L", "I", "S"), "from the back"),
    Plane("sagittal", 0, 1, 2, True, ("A", "P", "I", "S"), "from the left"),
)
"""The radiological way."""
UNKNOWN = ("", "", "", "")
STORED = (
    Plane("slice", 2, 0, 1, False, UNKNOWN, "as stored"),
    Plane("cut along the rows", 1, 0, 2, False, UNKNOWN, "from below"),
    Plane("cut along the columns", 0, 1, 2, False, UNKNOWN, "as stored"),
)
"""Of stacks without geometry."""
PICTURE = (Plane("picture", 2, 0, 1, False, UNKNOWN, ""),)


@dataclass(frozen=True)
class Upright:
    """Volumes of one case in the same axes.

    Attributes:
        volumes: (X, Y, Z); with a geometry, X increases to the patient's right, Y to the front, Z to the head.
        spacing: millimetres along X, Y, Z.
        planes: in which they are shown.
    """

    volumes: tuple[np.ndarray, ...]
    spacing: tuple[float, float, float]
    planes: tuple[Plane, ...]


def upright(volumes: Sequence[np.ndarray], spacing: Sequence[float], affine: np.ndarray | None) -> Upright:
    """Turn volumes that were stored alike.

    Args:
        volumes: (z, y, x) or (y, x), all of one shape.
        spacing: along their axes.
        affine: from (x, y, z) to RAS millimetres, of all of them; None: pictures, or stacks of pictures.
    """
    if affine is not None:
        orientation = io_orientation(affine)
        turned = tuple(apply_orientation(volume.transpose(2, 1, 0), orientation) for volume in volumes)
        edges = np.empty(3)
        edges[orientation[:, 0].astype(int)] = tuple(spacing)[::-1]
        return Upright(turned, (float(edges[0]), float(edges[1]), float(edges[2])), PATIENT)
    flat = volumes[0].ndim == 2
    stacked = [volume[None] if flat else volume for volume in volumes]
    edges = np.array([1.0, *spacing] if flat else list(spacing))[::-1]
    return Upright(
        tuple(volume[:, ::-1].transpose(2, 1, 0) for volume in stacked),  # the first row is above
        (float(edges[0]), float(edges[1]), float(edges[2])),
        PICTURE if flat else STORED,
    )


def cut(volume: np.ndarray, plane: Plane, position: int, box: Box) -> np.ndarray:
    """A plane as it is shown: (rows from below, columns from the left).

    Args:
        volume: upright (X, Y, Z).
        plane: which.
        position: of the slice along the plane's axis.
        box: part of the volume.
    """
    index: list[int | slice] = [slice(*ends) for ends in box]
    index[plane.axis] = position
    shown = volume[tuple(index)]
    if plane.right < plane.up:
        shown = shown.T
    return shown[:, ::-1] if plane.mirrored else shown


def box_around(labelled: np.ndarray, spacing: Sequence[float], margin: float = MARGIN) -> Box:
    """The part of a volume that holds labels, with a margin; the whole of it if none does.

    Args:
        labelled: bool (X, Y, Z).
        spacing: millimetres along X, Y, Z.
        margin: millimetres.
    """
    box = []
    for axis, edge in enumerate(spacing):
        others = tuple(other for other in range(3) if other != axis)
        used = np.flatnonzero(labelled.any(axis=others))
        length = labelled.shape[axis]
        step = round(margin / edge)
        box.append((max(0, int(used[0]) - step), min(length, int(used[-1]) + 1 + step)) if len(used) else (0, length))
    return tuple(box)
