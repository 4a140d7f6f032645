"""All metrics of a pair of label maps: overlap, surface distances in millimetres or voxels, for labels and regions."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import cached_property

import numpy as np

from nnunet_ext.evaluation_scripts.distances import SurfaceDistances, directed
from nnunet_ext.evaluation_scripts.overlap import JointHistogram, Overlap
from nnunet_ext.evaluation_scripts.surfaces import Borders, Elements


class CasePair:
    """A reference and a prediction on the same grid; everything is computed when it is first asked for.

    Surfaces of all labels are found in one pass over the part of the image that holds labels.
    """

    def __init__(self, reference: np.ndarray, predicted: np.ndarray, spacing: Sequence[float]) -> None:
        """Take a pair.

        Args:
            reference: label map (z, y, x) or (y, x), unsigned integers.
            predicted: of the same shape.
            spacing: millimetres along each of its axes.

        Raises:
            ValueError: shapes, spacing or types that do not fit.
        """
        if len(spacing) != reference.ndim:
            raise ValueError(f"a spacing of {len(spacing)} for {reference.ndim} axes")
        for name, labels in (("reference", reference), ("prediction", predicted)):
            if labels.dtype.kind not in "ub":
                raise ValueError(f"the {name} must be of unsigned integers; got {labels.dtype}")
        if reference.shape != predicted.shape:
            raise ValueError(f"shapes differ: reference {reference.shape}, prediction {predicted.shape}")
        self.spacing = tuple(float(edge) for edge in spacing)
        self._whole = reference, predicted

    @cached_property
    def histogram(self) -> JointHistogram:
        """How many voxels have each pair of labels."""
        return JointHistogram(*self._whole)

    @cached_property
    def _maps(self) -> list[np.ndarray]:
        return _cropped(*self._whole)

    def overlap(self, structure: Collection[int]) -> Overlap:
        """Voxel counts of a label or region."""
        return self.histogram.overlap(structure)

    def border_distances(self, structure: Collection[int], spacing: Sequence[float] | None = None) -> SurfaceDistances:
        """Distances between border voxels.

        Args:
            structure: label or labels of a region.
            spacing: instead of the pair's own; ones for distances in voxels.

        Raises:
            ValueError: the structure holds the background.
        """
        _check_structure(structure)
        reference, predicted = (borders.of(structure) for borders in self._borders)
        shape = self._borders[0].shape
        ways = directed(predicted, reference, shape, self.spacing if spacing is None else spacing)
        return SurfaceDistances(*ways)

    def element_distances(self, structure: Collection[int]) -> SurfaceDistances:
        """Distances between surface elements in millimetres, with the elements' sizes.

        Raises:
            ValueError: the structure holds the background.
        """
        _check_structure(structure)
        (reference, reference_sizes), (predicted, predicted_sizes) = (
            elements.of(structure) for elements in self._elements
        )
        ways = directed(predicted, reference, self._elements[0].shape, self.spacing)
        return SurfaceDistances(*ways, predicted_sizes, reference_sizes)

    @cached_property
    def _borders(self) -> tuple[Borders, Borders]:
        return Borders(self._maps[0]), Borders(self._maps[1])

    @cached_property
    def _elements(self) -> tuple[Elements, Elements]:
        return Elements(self._maps[0], self.spacing), Elements(self._maps[1], self.spacing)


def _check_structure(structure: Collection[int]) -> None:
    if 0 in structure or not structure:
        raise ValueError(f"surfaces exist of labels other than 0; got {sorted(structure)}")


def _cropped(*maps: np.ndarray) -> list[np.ndarray]:
    """The part of the maps that holds labels, with a margin of one voxel where the image has it."""
    box = []
    for axis in range(maps[0].ndim):
        others = tuple(other for other in range(maps[0].ndim) if other != axis)
        used = np.flatnonzero(np.any([labels.any(axis=others) for labels in maps], axis=0))
        start, stop = (int(used[0]), int(used[-1]) + 1) if len(used) else (0, 1)
        box.append(slice(max(0, start - 1), min(maps[0].shape[axis], stop + 1)))
    return [labels[tuple(box)] for labels in maps]
