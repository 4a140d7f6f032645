"""One prediction becomes one file of the submission."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from nnunet_ext.submission.grids import Turn, grid_problem, turn_back
from nnunet_ext.submission.label_values import table_of, unexpected
from nnunet_ext.submission.nifti import (
    LabelMap,
    UnreadableError,
    as_uint8,
    count_values,
    dimension_problem,
    encoded,
    read,
)
from nnunet_ext.submission.planning import Item
from nnunet_ext.submission.problems import Problem


@dataclass
class Written:
    """What became of a prediction.

    Attributes:
        item: which.
        problems: why it cannot be submitted.
        values: value in the submission -> voxels.
    """

    item: Item
    problems: list[Problem] = field(default_factory=list)
    values: dict[int, int] = field(default_factory=dict)


def write_item(item: Item, folder: Path | None) -> Written:
    """Check a prediction and write it as the server wants it.

    Args:
        item: what and where.
        folder: that the submission's names start at; None: only check.

    Raises:
        OSError: it cannot be written.
    """
    done = Written(item)
    labels = _background(item) if item.prediction is None else _checked(item, item.prediction, done)
    turn = turn_back(item.case.original, item.case.written)
    if turn is None:
        text = "conversion.json's geometries of the original and the converted image do not correspond: convert again"
        done.problems.append(Problem("geometry", item.case.id, text))
    if labels is not None and turn is not None and not done.problems and folder is not None:
        _write(item, labels, turn, folder / item.path)
    return done


def _background(item: Item) -> np.ndarray:
    return np.zeros(item.case.written.shape, np.uint8, order="F")


def _checked(item: Item, path: Path, done: Written) -> np.ndarray | None:
    """The labels in the submission's values; None with problems noted."""
    try:
        with path.open("rb") as stream:
            labels = read(stream)
    except (OSError, UnreadableError) as error:
        done.problems.append(Problem("unreadable", str(path), f"{error}: predict this case again"))
        return None
    flat = dimension_problem(str(path), labels)
    if flat is not None:
        done.problems.append(flat)
        return None
    grid = grid_problem(str(path), labels.geometry(), item.case.written, "the image that nnU-Net read")
    done.problems += [] if grid is None else [grid]
    return _translated(item, path, labels, done)


def _translated(item: Item, path: Path, labels: LabelMap, done: Written) -> np.ndarray | None:
    counts, noise = count_values(labels)
    if noise is not None:
        done.problems.append(Problem("values", str(path), f"{noise}: label maps are wanted, no probabilities"))
        return None
    wrong = unexpected(str(path), counts, item.known, "the data set")
    if wrong is None:
        lost = [value for value in counts if value not in item.inverse]
        if lost:
            text = f"value {lost[0]} comes from no value of the download (label_map in conversion.json)"
            wrong = Problem("values", str(path), text)
    if wrong is None:
        done.values = dict(sorted((item.inverse[value], number) for value, number in counts.items()))
        wrong = unexpected(str(path), done.values, item.allowed, "the server")
    if wrong is not None:
        done.problems.append(wrong)
        return None
    found = as_uint8(labels)
    if all(item.inverse[value] == value for value in counts):
        return found
    return np.take(table_of(item.inverse), found)


def _write(item: Item, labels: np.ndarray, turn: Turn, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(turn(labels), item.case.original, compress=path.name.endswith(".gz")))
