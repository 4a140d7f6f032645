"""Tiny NIfTI volumes, and what a test knows of a download that it built."""

from __future__ import annotations

import gzip
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

SHAPE = (14, 16, 12)
RAS = np.diag([1.0, 1.0, 2.0, 1.0])
LPS = np.diag([-1.0, -1.0, 2.0, 1.0])


@dataclass(frozen=True)
class Truth:
    """What must come back of a case.

    Attributes:
        labels: (x, y, z) uint8, in the data set's own values, in the axes of the original image.
        affine: of the original image (RAS, mm).
    """

    labels: np.ndarray
    affine: np.ndarray


@dataclass
class Tree:
    """A download that a test built.

    Attributes:
        key: the converter's.
        place: what a user would name: a folder or an archive.
        own: options of the converter.
        training, test: case id -> what its labels are; also those that the download withholds.
        faulty: case ids that must be left out.
    """

    key: str
    place: Path
    own: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Truth] = field(default_factory=dict)
    test: dict[str, Truth] = field(default_factory=dict)
    faulty: set[str] = field(default_factory=set)


def affine(spacing: tuple[float, float, float] = (1.0, 1.0, 2.0), seed: int = 0, lps: bool = True) -> np.ndarray:
    """An affine with this spacing in millimetres and an origin of its own; LPS axes as most challenges' files have."""
    made = np.diag([*spacing, 1.0])
    if lps:
        made[:2] *= -1
    made[:3, 3] = np.round(np.random.default_rng(seed).uniform(-50, 50, 3), 3)
    return made


def image(seed: int, shape: tuple[int, ...] = SHAPE, ct: bool = False) -> np.ndarray:
    """Noise (x, y, z): int16, Hounsfield units of air to bone with `ct`, else 0 to 800."""
    rng = np.random.default_rng(seed)
    made = rng.integers(-1000, 800, shape) if ct else rng.integers(0, 800, shape)
    return made.astype(np.int16)


def labels(seed: int, values: tuple[int, ...], shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """A label map (x, y, z), uint8, with all of `values`, each a box of its own; without any symmetry."""
    rng = np.random.default_rng(1000 + seed)
    made = np.zeros(shape, np.uint8)
    free = list(np.ndindex(*(max(edge // 2, 1) for edge in shape)))
    for value, place in zip(values, rng.permutation(len(free)), strict=False):
        corner = tuple(2 * index for index in free[place])
        made[tuple(slice(start, start + 2) for start in corner)] = value
    return made


def save(path: Path, array: np.ndarray, transform: np.ndarray, *, dtype: Any = None, **header: Any) -> Path:
    """Write a volume, making its folder.

    Args:
        path: ends with .nii or .nii.gz, in any case of letters.
        array: (x, y, z) or (x, y, z, channel).
        transform: its affine.
        dtype: stored as this; the array's if not given.
        **header: set in the header after the affine (``qform_code=0``, ``scl_slope=2.0``).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    made = nibabel.Nifti1Image(array.astype(dtype or array.dtype), transform)
    made.header.set_xyzt_units("mm")
    made.set_sform(transform, 1)
    made.set_qform(transform, 1)
    for name, value in header.items():
        made.header[name] = value
    content = made.to_bytes()
    path.write_bytes(gzip.compress(content, 1, mtime=0) if path.name.lower().endswith(".gz") else content)
    return path


def load(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """A volume's values (x, y, z) and its affine."""
    read: Any = nibabel.load(path)
    return np.asanyarray(read.dataobj), read.affine
