"""Connected components of two masks on the part of the image that holds them."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from scipy import ndimage

from nnunet_ext.evaluation_scripts.metrics import CasePair

Box = tuple[slice, ...]


class Components:
    """Numbered components of a mask.

    Attributes:
        numbers: (z, y, x), 0 outside.
        count: how many there are.
        sizes: voxels of component 1, 2, ... at index 0, 1, ...
        boxes: of component 1, 2, ... at index 0, 1, ...
    """

    def __init__(self, numbers: np.ndarray, count: int) -> None:
        """Take numbered components, all of which occur."""
        self.numbers, self.count = numbers, count
        self.sizes = np.bincount(numbers.reshape(-1), minlength=count + 1)[1:]
        self.boxes: list[Box] = ndimage.find_objects(numbers)

    @classmethod
    def of(cls, mask: np.ndarray, corners: bool) -> Components:
        """The components of a mask.

        Args:
            mask: boolean, of any dimension.
            corners: whether voxels that touch at an edge or corner only are connected (26 neighbours in 3D) or those
                with a common face alone (6 neighbours, SciPy's default).
        """
        return cls(*ndimage.label(mask, ndimage.generate_binary_structure(mask.ndim, mask.ndim if corners else 1)))


def region_crop(
    reference: np.ndarray, predicted: np.ndarray, labels: Collection[int], margin: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """The masks of a region, cropped to the part of the image that holds either.

    Args:
        reference: label map of any dimension.
        predicted: of the same shape.
        labels: of the region.
        margin: voxels around it, where the image has them.

    Returns:
        Two boolean masks of one shape; of a single voxel if both are empty.
    """
    masks = [np.isin(labelled, list(labels)) for labelled in (reference, predicted)]
    box = []
    for axis in range(reference.ndim):
        others = tuple(other for other in range(reference.ndim) if other != axis)
        used = np.flatnonzero(masks[0].any(axis=others) | masks[1].any(axis=others))
        start, stop = (int(used[0]), int(used[-1]) + 1) if len(used) else (0, 1)
        box.append(slice(max(0, start - margin), min(reference.shape[axis], stop + margin)))
    return masks[0][tuple(box)], masks[1][tuple(box)]


def touching(first: np.ndarray, second: np.ndarray) -> dict[tuple[int, int], int]:
    """Which numbered objects share voxels.

    Args:
        first: numbers, 0 outside.
        second: of the same shape.

    Returns:
        (number in first, number in second) -> common voxels, sorted.
    """
    both = (first > 0) & (second > 0)
    columns = int(second.max(initial=0)) + 1
    pairs, counts = np.unique(first[both].astype(np.int64) * columns + second[both], return_counts=True)
    return {(int(pair) // columns, int(pair) % columns): int(count) for pair, count in zip(pairs, counts, strict=True)}


def masks_of(
    reference: Components, numbers: Collection[int], predicted: Components, others: Collection[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Some components of the reference and some of the prediction: two boolean masks on the crop that holds them.

    Raises:
        ValueError: none is named.
    """
    boxes = [reference.boxes[number - 1] for number in numbers] + [predicted.boxes[number - 1] for number in others]
    if not boxes:
        raise ValueError("no component to compare")
    box = tuple(slice(min(s.start for s in along), max(s.stop for s in along)) for along in zip(*boxes, strict=True))
    return np.isin(reference.numbers[box], list(numbers)), np.isin(predicted.numbers[box], list(others))


def pair_of(
    reference: Components,
    numbers: Collection[int],
    predicted: Components,
    others: Collection[int],
    spacing: Sequence[float],
) -> CasePair:
    """Some components of the reference against some of the prediction, all of them together the label 1.

    Raises:
        ValueError: none is named.
    """
    masks = masks_of(reference, numbers, predicted, others)
    return CasePair(masks[0].astype(np.uint8), masks[1].astype(np.uint8), spacing)
