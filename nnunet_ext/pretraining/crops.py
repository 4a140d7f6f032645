"""Cutting patches out of preprocessed images: where, and with zeros around."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Index = npt.NDArray[np.int64]


def cut(image: Any, centre: Sequence[int] | Index, size: Sequence[int]) -> npt.NDArray[np.float32]:
    """The voxels [centre - size // 2, centre - size // 2 + size) of each axis; 0 outside of the image.

    Only the part that lies in the image is read. This is the published crop (specification alice 1.3).

    Args:
        image: (C, D, H, W), an array or a file that is read where it is indexed.
        centre: (3,) voxel, may lie outside.
        size: (3,) voxels.

    Returns:
        (C, *size) float32, its own memory.
    """
    lower = [int(middle) - edge // 2 for middle, edge in zip(centre, size, strict=True)]
    inside = [
        slice(max(0, low), max(0, low, min(end, low + edge)))
        for low, edge, end in zip(lower, size, image.shape[1:], strict=True)
    ]
    patch = np.zeros((image.shape[0], *size), np.float32)
    target = [slice(s.start - low, s.stop - low) for s, low in zip(inside, lower, strict=True)]
    if all(s.stop > s.start for s in inside):
        patch[tuple([slice(None), *target])] = image[tuple([slice(None), *inside])]  # noqa: C409  # for Python 3.10
    return patch


def draw_centre(random: np.random.Generator, body: Sequence[tuple[int, int]]) -> Index:
    """A voxel of a box, uniformly."""
    lower, upper = np.asarray(body, np.int64).T
    return np.asarray(random.integers(lower, upper), np.int64)


def pulled_in(centre: npt.ArrayLike, shape: Sequence[int], size: Sequence[int]) -> Index:
    """The nearest centre whose patch has as little padding as possible.

    Along an axis where the image is longer than the patch, the patch then lies in the image; where it is shorter, the
    image lies in the patch.

    Args:
        centre: (3,) voxel.
        shape: (3,) of the image.
        size: (3,) of the patch.
    """
    half, slack = np.asarray(size) // 2, np.asarray(shape) - np.asarray(size)
    lower, upper = half + np.minimum(0, slack), half + np.maximum(0, slack)
    return np.clip(np.asarray(centre, np.int64), lower, upper).astype(np.int64)


def draw_overlapping(
    random: np.random.Generator,
    centre: npt.ArrayLike,
    shape: Sequence[int],
    size: Sequence[int],
    overlap: tuple[float, float] = (0.4, 0.9),
) -> tuple[Index, Index]:
    """Two centres whose patches share a part of every axis that is drawn from `overlap` (specification alice 3.3).

    Args:
        random: what is drawn depends on its state alone.
        centre: (3,) voxel around which they lie.
        shape: (3,) of the image; both patches are pulled in.
        size: (3,) of the patches.
        overlap: least and largest share of an axis, for the least that the two have in common.

    Returns:
        The centres of view 0 and view 1; their difference is the exact displacement.
    """
    shares = random.uniform(*overlap, 3)
    furthest = 0.5 * (1 - shares) * np.asarray(size)
    moved = np.rint(random.uniform(-furthest, furthest)).astype(np.int64)
    first, second = (pulled_in(np.asarray(centre) + sign * moved, shape, size) for sign in (-1, 1))
    return first, second
