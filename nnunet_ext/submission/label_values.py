"""Label values on their way back: conversion.json's label map inverted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from nnunet_ext.submission.problems import Problem
from nnunet_ext.submission.raw_data import RawData
from nnunet_ext.submission.wording import listed, ranged


def inverse_map(raw: RawData) -> tuple[dict[int, int], list[Problem]]:
    """Value in the data set -> value in the download.

    Returns:
        The map, without values that come from nowhere; and the values that several of the download became, which
        cannot be told apart any more.
    """
    if raw.label_map is None:
        return {value: value for value in sorted(raw.values)}, []
    sources: dict[int, list[int]] = {}
    for before, after in sorted(raw.label_map.items()):
        sources.setdefault(after, []).append(before)
    problems = [
        Problem(
            "labels",
            raw.name,
            f"its label {value}{_name(raw, value)} stands for {listed(before)} of the download (label_map in "
            "conversion.json): which of them a voxel had is not known any more, and the server wants them apart. "
            "Convert with all labels and train on that.",
        )
        for value, before in sorted(sources.items())
        if len(before) > 1
    ]
    return {value: before[0] for value, before in sorted(sources.items()) if len(before) == 1}, problems


def _name(raw: RawData, value: int) -> str:
    return f" ({raw.labels[value]})" if value in raw.labels else ""


def names_of(raw: RawData, inverse: Mapping[int, int]) -> dict[int, str]:
    """Value in a submission -> the label's name in the data set; values that only occur in regions have none."""
    return {inverse[value]: name for value, name in raw.labels.items() if value in inverse}


def table_of(inverse: Mapping[int, int]) -> np.ndarray:
    """The map as an array (256,) uint8, to be indexed with labels; what has no value becomes 0."""
    table = np.zeros(256, np.uint8)
    for value, before in inverse.items():
        if 0 <= value < 256 and 0 <= before < 256:
            table[value] = before
    return table


def unexpected(name: str, found: Iterable[int], allowed: Iterable[int], whose: str) -> Problem | None:
    """What is wrong if there are other values than allowed.

    Args:
        name: of the file, for the message.
        found: values in it.
        allowed: all that may occur.
        whose: who allows them, for the message.
    """
    allowed = set(allowed)
    outside = sorted(set(found) - allowed)
    if not outside:
        return None
    return Problem("values", name, f"value{'s' * (len(outside) > 1)} {listed(outside)}; {whose} has {ranged(allowed)}")
