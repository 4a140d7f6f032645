"""Rules as a user writes them: names of labels and regions, volumes with a unit."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from nnunet_ext.errors import UserError
from nnunet_ext.inference.postprocess_rules import LARGEST, REPLACE, SMALLEST, Rule, label_around
from nnunet_ext.inference.prediction_folders import foreground, label_values
from nnunet_ext.labels import has_regions

ALL = "all"
_UNITS = {"mm3": ("mm3", 1.0), "mm³": ("mm3", 1.0), "ml": ("mm3", 1000.0), "voxels": ("voxels", 1.0)}


def volume(text: str) -> tuple[float, str]:
    """A volume such as 0.5ml: number and unit, "mm3" or "voxels".

    Raises:
        UserError: it is something else.
    """
    match = re.fullmatch(r"\s*([0-9.eE+-]+)\s*(\S+)\s*", text)
    try:
        number = float(match[1]) if match else math.nan
    except ValueError:
        number = math.nan
    if match is None or match[2] not in _UNITS or not 0 < number < math.inf:
        raise UserError(f"volume {text!r}: expected a number above 0 with mm3, ml or voxels, such as 50mm3")
    unit, factor = _UNITS[match[2]]
    return number * factor, unit


def named(dataset_json: Mapping[str, Any], name: str) -> tuple[str, tuple[int, ...]]:
    """A label or region by its name or, of labels, number: its name and values.

    Raises:
        UserError: there is none.
    """
    structures = foreground(dataset_json)
    if name in structures:
        return name, structures[name]
    for known, values in structures.items():
        if name.isdecimal() and values == (int(name),):
            return known, values
    raise UserError(f"{name!r}: no such label or region in dataset.json, which has {', '.join(structures)}")


def target(dataset_json: Mapping[str, Any], name: str) -> int:
    """The value of a label by its name or number; of a region, that of its own voxels (regions_class_order).

    Raises:
        UserError: there is none.
    """
    if name == "background":
        return 0
    if name.isdecimal() and int(name) in label_values(dataset_json):
        return int(name)
    known, values = named(dataset_json, name)
    if has_regions(dataset_json):
        return int(dataset_json["regions_class_order"][list(foreground(dataset_json)).index(known)])
    return values[0]


def rules_of(
    dataset_json: Mapping[str, Any],
    largest: Sequence[str] = (),
    smallest: Sequence[Sequence[str]] = (),
    replace: Sequence[Sequence[str]] = (),
) -> list[Rule]:
    """Rules, in this order.

    Args:
        dataset_json: of the predictions.
        largest: names; "all": every label.
        smallest: name and volume.
        replace: name, volume, and the label that it becomes.

    Raises:
        UserError: an unknown name, or a volume without unit.
    """
    rules = []
    for name in [each for given in largest for each in (foreground(dataset_json) if given == ALL else [given])]:
        known, labels = named(dataset_json, name)
        rules.append(Rule(LARGEST, known, labels, label_around(dataset_json, labels)))
    for name, size in smallest:
        known, labels = named(dataset_json, name)
        rules.append(Rule(SMALLEST, known, labels, label_around(dataset_json, labels), *volume(size)))
    for name, size, into in replace:
        known, labels = named(dataset_json, name)
        becomes = target(dataset_json, into)
        if becomes in labels:
            raise UserError(f"--replace {name} {size} {into}: {into} is a part of {name}; name another label")
        rules.append(Rule(REPLACE, known, labels, becomes, *volume(size)))
    return rules


def replacements_of(dataset_json: Mapping[str, Any], replace: Sequence[Sequence[str]]) -> dict[str, int]:
    """Name -> label that it becomes, of (name, label).

    Raises:
        UserError: an unknown name, or a label that is a part of what it replaces.
    """
    return {
        rule.name: rule.becomes
        for rule in rules_of(dataset_json, replace=[(name, "1voxels", into) for name, into in replace])
    }
