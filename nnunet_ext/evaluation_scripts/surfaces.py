"""Where the surfaces of the labels of a map are: border voxels and surface elements, of all labels in one pass.

Both are found on the whole map at once, so that a false positive far away, which would blow up a bounding box, costs
nothing (specification evaluation, sections 2.1 and 2.2).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import product

import numpy as np

from nnunet_ext.evaluation_scripts.element_sizes import element_sizes


class Borders:
    """Border voxels: those with a face neighbour outside of the structure; outside of the image counts as outside.

    Attributes:
        shape: of the map.
    """

    def __init__(self, labels: np.ndarray) -> None:
        """Find the border voxels of every label but 0.

        Args:
            labels: of any dimension, unsigned integers.
        """
        self.shape = labels.shape
        self._labels = np.ascontiguousarray(labels)
        found = np.zeros(labels.shape, bool)
        for axis in range(labels.ndim):
            one, other = _halves(labels.ndim, axis)
            differ = self._labels[one] != self._labels[other]
            found[one] |= differ
            found[other] |= differ
            found[_at(labels.ndim, axis, 0)] = True
            found[_at(labels.ndim, axis, -1)] = True
        found &= self._labels != 0
        places = np.flatnonzero(found)
        values = self._labels.reshape(-1)[places]
        order = np.argsort(values, kind="stable")
        self._places, self._values = places[order], values[order]

    def of(self, structure: Collection[int]) -> np.ndarray:
        """Flat indices of the border voxels of a label or of a region of several, sorted."""
        parts = [self._of_label(label) for label in sorted(set(structure))]
        if len(parts) == 1:
            return parts[0]
        places = np.sort(np.concatenate(parts)) if parts else np.zeros(0, np.int64)
        within = np.zeros(max(int(self._labels.max(initial=0)), *structure) + 1, bool)
        within[list(structure)] = True
        return places[self._has_neighbour_outside(places, within)]

    def _of_label(self, label: int) -> np.ndarray:
        start, stop = np.searchsorted(self._values, [label, label + 1])
        found: np.ndarray = self._places[start:stop]
        return found

    def _has_neighbour_outside(self, places: np.ndarray, within: np.ndarray) -> np.ndarray:
        """Which voxels of a region have a face neighbour that is not in it."""
        outside = np.zeros(len(places), bool)
        flat = self._labels.reshape(-1)
        step = self._labels.size
        for index, edge in zip(np.unravel_index(places, self.shape), self.shape, strict=True):
            step //= edge
            for sign, end in ((-1, 0), (1, edge - 1)):
                at_end = index == end
                neighbour = np.where(at_end, places, places + sign * step)
                outside |= at_end | ~within[flat[neighbour]]
        return outside


class Elements:
    """Surface elements: cells of 2 x 2 x 2 voxels (2 x 2 in 2D) whose corners are not all in or all out.

    Attributes:
        shape: of the grid of cells, one larger than the map along each axis.
    """

    def __init__(self, labels: np.ndarray, spacing: Sequence[float]) -> None:
        """Find the cells whose corners differ.

        Args:
            labels: (z, y, x) or (y, x), unsigned integers; outside is background.
            spacing: millimetres along each axis of `labels`.

        Raises:
            ValueError: another number of axes.
        """
        self._sizes = element_sizes(spacing)
        padded = np.pad(labels, 1)
        lowest = highest = padded
        for axis in range(labels.ndim):
            one, other = _halves(labels.ndim, axis)
            lowest = np.minimum(lowest[one], lowest[other])
            highest = np.maximum(highest[one], highest[other])
        self.shape = lowest.shape
        self._cells = np.flatnonzero(lowest != highest)
        self._lowest, self._highest = (values.reshape(-1)[self._cells] for values in (lowest, highest))
        cells = np.unravel_index(self._cells, self.shape)
        corners = product((0, 1), repeat=labels.ndim)
        self._corners = [
            padded[tuple(index + step for index, step in zip(cells, corner, strict=True))] for corner in corners
        ]

    def of(self, structure: Collection[int]) -> tuple[np.ndarray, np.ndarray]:
        """The surface elements of a label or region.

        Returns:
            Flat indices of the cells, sorted, and the area in mm² (in 2D the length in mm) of each element.
        """
        near = np.flatnonzero((self._lowest <= max(structure)) & (self._highest >= min(structure)))
        within = np.zeros(int(self._highest.max(initial=0)) + 1, np.uint8)
        within[[label for label in structure if label < len(within)]] = 1
        code = np.zeros(len(near), np.uint8)
        for corner in self._corners:  # the first corner is the highest bit
            code <<= 1
            code |= within[corner[near]]
        mixed = (code != 0) & (code != 2 ** len(self._corners) - 1)
        return self._cells[near[mixed]], self._sizes[code[mixed]]


def _halves(ndim: int, axis: int) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """All but the last and all but the first place along an axis."""
    one, other = [slice(None)] * ndim, [slice(None)] * ndim
    one[axis], other[axis] = slice(None, -1), slice(1, None)
    return tuple(one), tuple(other)


def _at(ndim: int, axis: int, place: int) -> tuple[slice | int, ...]:
    found: list[slice | int] = [slice(None)] * ndim
    found[axis] = place
    return tuple(found)
