"""What removing components would do to every structure's Dice, for all thresholds at once: one look at each case."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nnunet_ext.errors import UserError
from nnunet_ext.evaluation_scripts import label_maps
from nnunet_ext.inference.postprocess_rules import Box, Rule, apply_rules, boxes_of, components, joint_box, mask_of

Structures = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class TableJob:
    """One case.

    Attributes:
        case: its id.
        reference, predicted: files.
        values: all labels, background first; they are the indices of histograms.
        ignore: label of the reference whose voxels do not count; None: there is none.
        rules: applied to the prediction first.
        structures: whose components are looked at.
    """

    case: str
    reference: Path
    predicted: Path
    values: tuple[int, ...]
    ignore: int | None
    rules: tuple[Rule, ...]
    structures: Structures


@dataclass(frozen=True)
class Removal:
    """What would be taken out of one structure of one case.

    Attributes:
        sizes: (U,) voxels of its components, ascending, each size once.
        moved: (U + 1, K, K) voxels with reference label x predicted label in all components of the first 0, 1, ... U
            sizes.
        voxels: of the whole structure.
    """

    sizes: np.ndarray
    moved: np.ndarray
    voxels: int

    def below(self, voxels: int) -> np.ndarray:
        """(K, K) of the components with fewer voxels."""
        found: np.ndarray = self.moved[int(np.searchsorted(self.sizes, voxels))]
        return found

    def but_largest(self) -> np.ndarray:
        """(K, K) of all components but the largest."""
        found: np.ndarray = self.moved[max(len(self.sizes) - 1, 0)]
        return found

    def whole_if_below(self, voxels: int) -> np.ndarray:
        """(K, K) of the whole structure, if it has fewer voxels; else nothing."""
        found: np.ndarray = self.moved[-1 if self.voxels < voxels else 0]
        return found


@dataclass(frozen=True)
class CaseTable:
    """One case.

    Attributes:
        voxel: its volume in mm³.
        histogram: (K, K) voxels with reference label x predicted label, in the part of the image that has any.
        removals: name of the structure -> what can be taken out of it.
    """

    voxel: float
    histogram: np.ndarray
    removals: Mapping[str, Removal]


def tabulate(job: TableJob) -> CaseTable:
    """Look at one case.

    Raises:
        UserError: its files can't be read, do not lie on the same grid, or have unknown labels.
    """
    reference, predicted = label_maps.read(job.reference), label_maps.read(job.predicted)
    label_maps.same_grid(reference, predicted, (job.reference, job.predicted))
    voxel = math.prod(predicted.spacing)
    labels = apply_rules(predicted.labels, voxel, job.rules)
    crop = _used_part(reference.labels, labels)
    labels = labels[crop]
    pairs = _pairs(job, reference.labels[crop], labels)
    histogram = _counted(pairs.reshape(-1), 1, len(job.values))[0]
    boxes = boxes_of(labels)
    removals = {}
    for name, values in job.structures.items():
        box = joint_box(boxes, values)
        if box is None:
            nothing = np.zeros((1, len(job.values), len(job.values)), np.int64)
            removals[name] = Removal(np.zeros(0, np.int64), nothing, 0)
        else:
            removals[name] = _removal(mask_of(labels[box], values), pairs[box], len(job.values))
    return CaseTable(voxel, histogram, removals)


def _used_part(reference: np.ndarray, predicted: np.ndarray) -> Box:
    """The part of the image where either has labels: elsewhere there is nothing to count."""
    found = [joint_box(boxes, tuple(boxes)) for boxes in (boxes_of(reference), boxes_of(predicted))]
    used = {number: box for number, box in enumerate(found) if box is not None}
    return joint_box(used, tuple(used)) or (slice(0, 1),) * reference.ndim


def _pairs(job: TableJob, reference: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Reference and predicted label of each voxel as one number; K * K where the reference is to be ignored."""
    count = len(job.values)
    unknown = -1
    place = np.full(1 << 16, unknown, np.int32)
    place[list(job.values)] = range(count)
    columns = place[predicted]
    if job.ignore is not None:
        place[job.ignore] = count
    rows = place[reference]
    for path, found, labels in ((job.reference, rows, reference), (job.predicted, columns, predicted)):
        if (found == unknown).any():
            others = np.unique(labels[found == unknown]).tolist()
            raise UserError(f"{path} has labels {others}; dataset.json has {list(job.values)}")
    return np.where(rows == count, count * count, rows * count + columns)


def _removal(mask: np.ndarray, pairs: np.ndarray, count: int) -> Removal:
    numbers, sizes = components(mask)
    different, rank = np.unique(sizes, return_inverse=True)
    inside = numbers > 0
    codes = rank[numbers[inside] - 1] * (count * count + 1) + pairs[inside]
    joint = _counted(codes, len(different), count)
    moved = np.concatenate([np.zeros((1, count, count), np.int64), np.cumsum(joint, axis=0)])
    return Removal(different, moved, int(sizes.sum()))


def _counted(codes: np.ndarray, groups: int, count: int) -> np.ndarray:
    """(groups, K, K) from group * (K * K + 1) + pair; the last pair is that of voxels that do not count."""
    found = np.bincount(codes, minlength=groups * (count * count + 1)).reshape(groups, -1)
    return found[:, :-1].reshape(groups, count, count).astype(np.int64)


def dice(histogram: np.ndarray, places: Sequence[Sequence[int]], both_empty: float) -> np.ndarray:
    """The Dice of every structure.

    Args:
        histogram: (..., K, K) voxels with reference label x predicted label.
        places: indices of each structure's labels.
        both_empty: what counts where neither reference nor prediction has it.

    Returns:
        (..., structures).
    """
    found = []
    for labels in places:
        both = histogram[..., list(labels), :][..., list(labels)].sum((-1, -2))
        total = histogram[..., list(labels), :].sum((-1, -2)) + histogram[..., list(labels)].sum((-1, -2))
        found.append(np.where(total > 0, 2 * both / np.maximum(total, 1), both_empty))
    return np.stack(found, -1)


def after(histogram: np.ndarray, moved: np.ndarray, becomes: int) -> np.ndarray:
    """The histogram (..., K, K) after voxels (..., K, K) got the label of the index `becomes`."""
    changed = histogram - moved
    changed[..., becomes] += moved.sum(-1)
    return np.asarray(changed)
