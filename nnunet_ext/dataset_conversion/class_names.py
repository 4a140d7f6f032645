"""What users and dataset.json files say of classes and channels, made into what nnU-Net v2 wants.

nnU-Net wants label values that follow each other from 0, "background" for 0, and "ignore", if any, last.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_ext.dataset_conversion.sources import SourceFile
from nnunet_ext.errors import UserError

BACKGROUND, IGNORE = "background", "ignore"


@dataclass(frozen=True)
class Classes:
    """The classes of a data set.

    Attributes:
        labels: name -> value, or values of a region, in the data set that is made; with "background": 0.
        label_map: value in the download -> value in the data set; None: they are the same.
        regions_class_order: nnU-Net's, with regions.
    """

    labels: Mapping[str, int | tuple[int, ...]]
    label_map: Mapping[int, int] | None = None
    regions_class_order: tuple[int, ...] | None = None


@dataclass(frozen=True)
class _Class:
    """Of the download: a region has several values that stay apart; a class's values are merged."""

    name: str
    values: tuple[int, ...]
    region: bool = False


def classes_of_json(content: Mapping[str, Any], where: str) -> Classes:
    """The classes that a JSON states under "labels", as nnU-Net v1 (value: name) or v2 (name: value or values).

    Raises:
        UserError: they are not understood; `where` is named.
    """
    labels = content.get("labels")
    if not isinstance(labels, Mapping) or not labels:
        raise UserError(f"{where}: no labels there; expected such as {{'labels': {{'background': 0, 'liver': 1}}}}")
    try:
        if all(isinstance(name, str) and not name.lstrip("-").isdigit() for name in labels.values()):
            found = [_Class(str(name), (int(value),)) for value, name in labels.items()]
        else:
            found = [
                _Class(str(name), tuple(int(value) for value in values), len(values) > 1)
                if isinstance(values, Sequence) and not isinstance(values, str)
                else _Class(str(name), (int(values),))
                for name, values in labels.items()
            ]
        order = content.get("regions_class_order")
        return _classes(found, tuple(int(value) for value in order) if order else None)
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: labels {labels!r} are not understood ({error})") from error


def classes_of_words(words: Sequence[str]) -> Classes:
    """The classes that a user states: ``liver=1 kidneys=2+3 tumour=4``, regions ``whole=1,2,3``, or a JSON file.

    Values joined by + become one class, also those of ``background=0+9``; values joined by commas are a region.

    Raises:
        UserError: they are not understood, claim a value twice, or leave out how regions are laid over each other.
    """
    if len(words) == 1 and words[0].lower().endswith(".json"):
        content = read_json(Path(words[0]).expanduser())
        return classes_of_json(content if "labels" in content else {"labels": content}, words[0])
    found = []
    for word in words:
        name, equals, text = word.rpartition("=")
        region = "," in text
        try:
            values = tuple(int(value) for value in text.split("," if region else "+"))
        except ValueError:
            values = ()
        if not (name and equals and values):
            raise UserError(
                f"--label-names: {word!r} is not understood; expected NAME=VALUE, such as liver=1 kidneys=2+3 (one "
                "class of two values), or whole_tumour=1,2,3 (a region), or one JSON file."
            )
        found.append(_Class(name, values, region))
    return _classes(found, None)


def _classes(found: Sequence[_Class], order: tuple[int, ...] | None) -> Classes:
    found = _with_background(found)
    regions = [entry for entry in found if entry.region]
    if regions and any(len(entry.values) > 1 and not entry.region for entry in found if entry.name != BACKGROUND):
        raise UserError("regions (1,2) and merged values (1+2) cannot be used together: merge into a file of its own.")
    groups = [found[0].values]  # of values in the download that become one value
    if regions:
        ignored = [entry.values for entry in found if entry.name == IGNORE]
        rest = {value for entry in found[1:] if entry.name != IGNORE for value in entry.values}
        groups += [(value,) for value in sorted(rest)] + ignored
    else:
        groups += sorted((e.values for e in found[1:] if e.name != IGNORE), key=min)
        groups += [entry.values for entry in found if entry.name == IGNORE]
    claimed = [value for group in groups for value in group]
    twice = sorted({value for value in claimed if claimed.count(value) > 1})
    if twice:
        raise UserError(f"label values {twice} are claimed by several classes: give each value to one class.")
    new = {value: number for number, group in enumerate(groups) for value in group}
    labels: dict[str, int | tuple[int, ...]] = {}
    for entry in found:
        name = entry.name if entry.name not in labels else f"{entry.name}_{entry.values[0]}"
        labels[name] = tuple(new[value] for value in entry.values) if entry.region else new[entry.values[0]]
    same = all(value == number for value, number in new.items())
    if regions:
        order = tuple(new.get(value, value) for value in order) if order else _region_order(labels)
    return Classes(labels, None if same else new, order if regions else None)


def _with_background(found: Sequence[_Class]) -> list[_Class]:
    """Put the background first: the class of this name, or else the one of value 0, whatever it is called."""
    named = [entry for entry in found if entry.name.lower() == BACKGROUND]
    first = (named or [entry for entry in found if 0 in entry.values and not entry.region])[:1]
    rest = [entry for entry in found if entry not in first]
    return [_Class(BACKGROUND, first[0].values if first else (0,)), *rest]


def _region_order(labels: Mapping[str, int | tuple[int, ...]]) -> tuple[int, ...]:
    """The value of each region where no later region lies over it."""
    nested = [set(v) if isinstance(v, tuple) else {v} for name, v in labels.items() if name not in (BACKGROUND, IGNORE)]
    order = []
    for index, values in enumerate(nested):
        own = values.difference(*nested[index + 1 :])
        if len(own) != 1:
            raise UserError(
                "regions: give them from the largest to the smallest, each with one value that no later one has, such "
                "as whole=1,2,3 core=2,3 enhancing=3; or state regions_class_order in a JSON file for --label-names."
            )
        order.append(own.pop())
    return tuple(order)


def channels_of_json(content: Mapping[str, Any]) -> tuple[str, ...]:
    """The channels that a dataset.json states, of nnU-Net v2 ("channel_names") or v1 ("modality"), in order."""
    stated = content.get("channel_names", content.get("modality"))
    if isinstance(stated, Mapping):
        return tuple(str(stated[key]) for key in sorted(stated, key=lambda key: (len(str(key)), str(key))))
    if isinstance(stated, str):
        return (stated,)
    return tuple(str(name) for name in stated) if isinstance(stated, Sequence) else ()


def read_json(source: Path | SourceFile) -> dict[str, Any]:
    """A JSON object.

    Raises:
        UserError: it cannot be read, or is something else.
    """
    where = str(source) if isinstance(source, Path) else source.where
    try:
        content = json.loads(source.read_text("utf-8-sig") if isinstance(source, Path) else source.text())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{where}: not a readable JSON file ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"{where}: holds a {type(content).__name__}; expected an object, {{...}}")
    return content


def names_missing(key: str, label: SourceFile) -> UserError:
    """The error for labels that nobody named; it shows which values one of them has."""
    values = _values(label)
    example = " ".join(f"class{value}={value}" for value in (values or [1, 2]) if value)
    seen = f" {label.where} holds the values {', '.join(map(str, values))}." if values else ""
    return UserError(f"{key}: what the label values mean is not known.{seen} Name them: --label-names {example}")


def _values(label: SourceFile) -> list[int]:
    """The values in a NIfTI label map; none where it has more than 200 or cannot be read."""
    import gzip

    import nibabel
    import numpy as np

    try:
        content = label.read()
        content = gzip.decompress(content) if content.startswith(b"\x1f\x8b") else content
        read: Any = nibabel.Nifti1Image.from_bytes(content)
        values = np.unique(np.asanyarray(read.dataobj))
        return [int(value) for value in values] if len(values) <= 200 and (values == np.round(values)).all() else []
    except Exception:  # it is an example in a message; conversion reports what is wrong with the file
        return []
