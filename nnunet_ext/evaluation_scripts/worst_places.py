"""Where a prediction is worst: the slice that differs most, and the point farthest from the other surface."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np

from nnunet_ext.evaluation_scripts.distances import directed
from nnunet_ext.evaluation_scripts.surfaces import Borders
from nnunet_ext.evaluation_scripts.views import box_around

Place = tuple[int, int, int]


def mask_of(labels: np.ndarray, structure: Collection[int]) -> np.ndarray:
    """Whether each voxel belongs to a label or region, bool of the shape of `labels`."""
    table = np.zeros(max(int(labels.max(initial=0)), *structure) + 1, bool)
    table[list(structure)] = True
    found: np.ndarray = table[labels]
    return found


def most_different(
    reference: np.ndarray, predicted: np.ndarray, structures: Iterable[Collection[int]], axis: int
) -> int:
    """The slice with the largest symmetric difference, of all structures together.

    Args:
        reference: labels, three axes.
        predicted: labels.
        structures: label values of each.
        axis: along which the slices lie.

    Returns:
        Its position; without any difference, of the slice with most of the structures, or the middle one.
    """
    named = [tuple(structure) for structure in structures]
    places = np.nonzero(reference != predicted)
    ours, theirs = reference[places], predicted[places]
    differs = np.zeros(len(ours), bool)
    for structure in named:
        differs |= mask_of(ours, structure) != mask_of(theirs, structure)
    if differs.any():
        return int(np.bincount(places[axis][differs]).argmax())
    values = {value for structure in named for value in structure}
    labelled = mask_of(reference, values) if values else np.zeros(reference.shape, bool)
    area = labelled.sum(axis=tuple(other for other in range(3) if other != axis))
    return int(area.argmax()) if area.any() else reference.shape[axis] // 2


def worst_place(
    reference: np.ndarray,
    predicted: np.ndarray,
    structures: Mapping[str, Collection[int]],
    spacing: Sequence[float],
) -> tuple[Place, str, float]:
    """The border voxel that is farthest from the other mask's border, of all structures.

    Args:
        reference: labels, three axes.
        predicted: labels.
        structures: name -> label values.
        spacing: millimetres along the axes.

    Returns:
        Its indices, the structure's name and the distance in millimetres: infinite where a structure is in one of the
        two alone (then the middle of the largest of these); 0 where nothing differs, and "" where nothing is labelled.
    """
    box = box_around((reference > 0) | (predicted > 0), spacing, margin=0.0)
    part = tuple(slice(*ends) for ends in box)
    borders = Borders(reference[part]), Borders(predicted[part])
    best: tuple[float, int, int, str] | None = None
    for name, structure in structures.items():
        surfaces = borders[0].of(structure), borders[1].of(structure)
        candidate = _farthest(*surfaces, borders[0].shape, spacing)
        if candidate is not None and (best is None or candidate[:2] > best[:2]):
            best = (*candidate, name)
    if best is None:
        return (reference.shape[0] // 2, reference.shape[1] // 2, reference.shape[2] // 2), "", 0.0
    distance, _, flat, name = best
    place = np.unravel_index(flat, borders[0].shape)
    x, y, z = (int(index) + ends[0] for index, ends in zip(place, box, strict=True))
    return (x, y, z), name, distance


def _farthest(
    one: np.ndarray, other: np.ndarray, shape: tuple[int, ...], spacing: Sequence[float]
) -> tuple[float, int, int] | None:
    """(distance, number of points, the worst of them) of two surfaces, flat indices; None if both are empty."""
    points = np.concatenate([one, other])
    if not len(points):
        return None
    distances = np.concatenate(directed(one, other, shape, spacing))
    worst = int(distances.argmax())
    distance = float(distances[worst])
    if distance == 0 or math.isinf(distance):  # no point is worse than the others
        return distance, len(points), _middle(points, shape, spacing)
    return distance, len(points), int(points[worst])


def _middle(flat: np.ndarray, shape: tuple[int, ...], spacing: Sequence[float]) -> int:
    """The point that is nearest to the mean of all."""
    places = np.stack(np.unravel_index(flat, shape), axis=1) * np.asarray(spacing, float)
    return int(flat[((places - places.mean(axis=0)) ** 2).sum(axis=1).argmin()])
