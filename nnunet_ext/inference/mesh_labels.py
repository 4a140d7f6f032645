"""Which surfaces there are: names and numbers of classes and regions, as dataset.json has them."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_ext.errors import UserError

SHOWN = 12


@dataclass(frozen=True)
class Target:
    """One surface to be made.

    Attributes:
        name: of the class or region; "label3" where there are no names.
        values: of a label map: the labels that belong to it; of probabilities and models: the channels.
        number: for its colour.
    """

    name: str
    values: tuple[int, ...]
    number: int

    @property
    def file_name(self) -> str:
        """The name without what file names cannot have."""
        return re.sub(r"[^\w.+-]+", "_", self.name).strip("._") or f"label{self.number}"


def read_names(file: Path) -> dict[str, tuple[int, ...]]:
    """Classes and regions of a dataset.json, in its order, without background and the ignore label.

    Raises:
        UserError: it cannot be read, or has no labels.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {file}: {error}") from error
    labels = content.get("labels") if isinstance(content, dict) else None
    if not isinstance(labels, dict):
        raise UserError(f'{file} has no "labels", which nnU-Net\'s dataset.json has')
    try:
        named = {str(name): _values(values) for name, values in labels.items() if name != "ignore"}
    except (TypeError, ValueError) as error:
        raise UserError(f"{file}: a label must be a number or a list of numbers") from error
    return {name: values for name, values in named.items() if set(values) != {0}}


def _values(values: Any) -> tuple[int, ...]:
    return tuple(int(value) for value in (values if isinstance(values, list | tuple) else [values]))


def channel_targets(names: dict[str, tuple[int, ...]], regions: bool) -> list[Target]:
    """The channels of a network's output: one a region; or one a class, of which the background is the first."""
    if regions:
        return [Target(name, (channel,), channel + 1) for channel, name in enumerate(names)]
    return [Target(name, values, values[0]) for name, values in names.items()]


def label_targets(names: dict[str, tuple[int, ...]]) -> list[Target]:
    """Labels of a label map, joined to regions where the names are those of regions."""
    return [Target(name, values, number + 1) for number, (name, values) in enumerate(names.items())]


def numbered(values: Sequence[int]) -> list[Target]:
    """Where there are no names."""
    return [Target(f"label{value}", (int(value),), int(value)) for value in values]


def chosen(wanted: Sequence[str], known: Sequence[Target], *, any_number: bool, joinable: bool) -> list[Target]:
    """The targets that --label names, each once.

    Args:
        wanted: names or numbers, several joined by "+" to one surface.
        known: all there are.
        any_number: numbers that are not known are taken for labels; they may not occur in this image.
        joinable: whether several may be joined.

    Raises:
        UserError: there is no such class or region.
    """
    found: dict[str, Target] = {}
    for text in wanted:
        target = _one(text, known, any_number)
        if target is None:
            parts = [_one(part, known, any_number) for part in text.split("+")]
            present = [part for part in parts if part is not None]
            if len(parts) < 2 or len(present) < len(parts):
                raise UserError(f"there is no class or region {text}; there are: {_listed(known)}")
            if not joinable:
                raise UserError(f"--label {text}: regions cannot be joined; ask for each of them")
            values = tuple(sorted({value for part in present for value in part.values}))
            target = Target("+".join(part.name for part in present), values, present[0].number)
        found.setdefault(target.name, target)
    return list(found.values())


def _one(text: str, known: Sequence[Target], any_number: bool) -> Target | None:
    for target in known:
        if text == target.name:
            return target
    if not re.fullmatch(r"\d{1,9}", text):
        return None
    for target in known:
        if target.values == (int(text),):
            return target
    return Target(f"label{int(text)}", (int(text),), int(text)) if any_number and int(text) > 0 else None


def _listed(known: Sequence[Target]) -> str:
    texts = [f"{target.name} ({'+'.join(map(str, target.values))})" for target in known[:SHOWN]]
    return ", ".join(texts) + (f" and {len(known) - SHOWN} more" if len(known) > SHOWN else "")
