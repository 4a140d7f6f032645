"""Rules that remove or relabel parts of a label map by their size; they are stored as JSON, and nothing is executed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import ndimage

from nnunet_ext.errors import UserError
from nnunet_ext.inference.prediction_folders import foreground, label_values
from nnunet_ext.labels import has_regions

LARGEST, SMALLEST, REPLACE = "largest", "smallest", "replace"
KINDS = (LARGEST, SMALLEST, REPLACE)
UNITS = ("mm3", "voxels")
CONNECTIVITY = "voxels that touch at a face, edge or corner are connected: 26 neighbours, in 2D 8"
Box = tuple[slice, ...]


@dataclass(frozen=True)
class Rule:
    """One step.

    Attributes:
        kind: "largest": of the components of a label or region only the largest is kept (all, if several are the
            largest); "smallest": components smaller than `below` are removed; "replace": if all of it together is
            smaller than `below`, it is removed.
        name: of the label or region, for people.
        labels: its values.
        becomes: label of the voxels that are removed.
        below: volume; 0 for "largest".
        unit: of `below`: "mm3" or "voxels"; in 2D, mm² and pixels.
        origin: who found it, as "nnU-Net".
    """

    kind: str
    name: str
    labels: tuple[int, ...]
    becomes: int = 0
    below: float = 0.0
    unit: str = "mm3"
    origin: str = ""

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: they make no sense.
        """
        if self.kind not in KINDS or self.unit not in UNITS:
            raise ValueError(f"rule {self.kind!r} in {self.unit!r}: expected one of {KINDS}, in {UNITS}")
        if not self.labels or any(type(value) is not int or value < 1 for value in self.labels):
            raise ValueError(f"labels {self.labels}: expected numbers above 0")
        if type(self.becomes) is not int or self.becomes < 0 or self.becomes in self.labels:
            raise ValueError(f"becomes {self.becomes!r}: expected a label that is not among {self.labels}")
        if not (isinstance(self.below, int | float) and 0 <= self.below < math.inf):
            raise ValueError(f"below {self.below!r}: expected a volume")

    def voxels(self, voxel: float) -> int:
        """The smallest number of voxels that is kept, where a voxel has so many mm³."""
        exact = self.below if self.unit == "voxels" else self.below / voxel
        return math.ceil(exact - 1e-6)

    def __str__(self) -> str:
        """In words."""
        then = "" if self.becomes == 0 else f", the rest becomes {self.becomes}"
        if self.kind == LARGEST:
            return f"{self.name}: largest component{then}"
        size = f"{self.below:g} {'mm³' if self.unit == 'mm3' else self.unit}"
        if self.kind == SMALLEST:
            return f"{self.name}: no components below {size}{then}"
        return f"{self.name}: becomes {self.becomes} if all of it is below {size}"


def as_json(rule: Rule) -> dict[str, Any]:
    """A rule as JSON values."""
    return {**asdict(rule), "labels": list(rule.labels)}


def from_json(content: Any, where: object) -> Rule:
    """What `as_json` made.

    Raises:
        UserError: it is something else.
    """
    try:
        return Rule(**{**content, "labels": tuple(content["labels"])})
    except (TypeError, KeyError, ValueError) as error:
        raise UserError(f"{where}: not a rule of nnunet-ext postprocess: {error}") from error


def label_around(dataset_json: Mapping[str, Any], labels: Sequence[int]) -> int:
    """The label of voxels that are taken out of a label or region: background, or that of the region around it.

    The one that nnU-Net's predictions have where they hold the smallest region around it, and not the region itself.
    """
    if not has_regions(dataset_json):
        return 0
    regions = zip(foreground(dataset_json).values(), dataset_json["regions_class_order"], strict=True)
    around = [(len(set(values)), int(label)) for values, label in regions if set(values) > set(labels)]
    label = min(around)[1] if around else 0
    return 0 if label in labels else label


def apply_rules(labels: np.ndarray, voxel: float, rules: Sequence[Rule]) -> np.ndarray:
    """Apply rules one after the other.

    Args:
        labels: label map of any dimension, unsigned integers.
        voxel: mm³ of a voxel.
        rules: in this order.

    Returns:
        A label map of the same type; the given one is not changed.
    """
    result = labels.copy()
    boxes = boxes_of(result)
    for rule in rules:
        box = joint_box(boxes, rule.labels)
        if box is None:
            continue
        part = result[box]
        removed = _removed(mask_of(part, rule.labels), rule, voxel)
        if removed is not None:
            part[removed] = rule.becomes
            boxes[rule.becomes] = _around(boxes.get(rule.becomes), box)
    return result


def _removed(mask: np.ndarray, rule: Rule, voxel: float) -> np.ndarray | None:
    """The voxels that a rule takes out; None: none."""
    if rule.kind == REPLACE:
        return mask if 0 < int(np.count_nonzero(mask)) < rule.voxels(voxel) else None
    numbers, sizes = components(mask)
    goes = sizes < (sizes.max(initial=0) if rule.kind == LARGEST else rule.voxels(voxel))
    if not goes.any():
        return None
    removed: np.ndarray = np.concatenate([[False], goes])[numbers]
    return removed


def components(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The components of a mask, connected also at edges and corners.

    Returns:
        Their numbers, 0 outside; and the voxels of component 1, 2, ... at index 0, 1, ...
    """
    numbers, count = ndimage.label(mask, np.ones((3,) * mask.ndim, bool))
    return numbers, np.bincount(numbers.reshape(-1), minlength=count + 1)[1:]


def mask_of(labels: np.ndarray, values: Sequence[int]) -> np.ndarray:
    """Where a label map has any of these values."""
    mask: np.ndarray = labels == values[0]
    for value in values[1:]:
        mask |= labels == value
    return mask


def boxes_of(labels: np.ndarray) -> dict[int, Box]:
    """The part of the image that holds each label that occurs."""
    found = ndimage.find_objects(labels)
    return {value: box for value, box in enumerate(found, 1) if box is not None}


def joint_box(boxes: Mapping[int, Box], values: Sequence[int]) -> Box | None:
    """The part of the image that holds any of these values; None: they do not occur."""
    joint: Box | None = None
    for value in values:
        if value in boxes:
            joint = _around(joint, boxes[value])
    return joint


def _around(first: Box | None, second: Box) -> Box:
    if first is None:
        return second
    return tuple(slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in zip(first, second, strict=True))


def check_labels(rules: Sequence[Rule], dataset_json: Mapping[str, Any]) -> None:
    """See that rules name labels of a data set.

    Raises:
        UserError: one does not.
    """
    known = set(label_values(dataset_json))
    for rule in rules:
        if not {*rule.labels, rule.becomes} <= known:
            raise UserError(f"rule {rule}: its labels {rule.labels} are not among the data set's {sorted(known)}")
