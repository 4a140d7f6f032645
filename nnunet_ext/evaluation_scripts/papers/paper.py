"""What a published table says, and what must be known to compare with it; plain data."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from nnunet_ext.dataset_conversion.cases import SPLIT_FILES
from nnunet_ext.evaluation_scripts.structures import Structures

DISTANCES = ("HD95",)


@dataclass(frozen=True)
class Column:
    """A column of the table.

    Attributes:
        name: as the paper has it.
        structures: the value is the mean over cases of each, then over these.
        metric: of the convention.
    """

    name: str
    structures: tuple[str, ...]
    metric: str = "Dice"

    @property
    def is_average(self) -> bool:
        """Whether it is over several structures."""
        return len(self.structures) > 1


@dataclass(frozen=True)
class Row:
    """A published row.

    Attributes:
        method: as the paper calls it.
        values: one a column; None: the sources don't vouch for it, and `Paper.withheld` says why.
        note: what to know of this row alone.
    """

    method: str
    values: tuple[float | None, ...]
    note: str = ""


@dataclass(frozen=True)
class Paper:
    """A table of a paper, and how it came about.

    Attributes:
        key: on the command line.
        title: of the table.
        source: paper, table and where the numbers were taken from.
        convention: by which the paper's numbers were computed; ours are computed the same way.
        structures: makes of a dataset.json the paper's structures, by the names that the columns have.
        columns: in the paper's order.
        rows: in the paper's order.
        method: of the row that ours is compared with.
        cases: which cases were evaluated, in words.
        split: file of `dataset_conversion/splits` and its list of them; None: the ids are not published.
        caveats: what makes comparison unfair.
        withheld: why values are missing; nothing if none is.
        percent: whether ratios are published in per cent.
        digits: of ratios.
    """

    key: str
    title: str
    source: str
    convention: str
    structures: Callable[[Mapping[str, Any]], Structures]
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    method: str
    cases: str
    split: tuple[str, str] | None
    caveats: tuple[str, ...]
    withheld: tuple[str, ...] = ()
    percent: bool = True
    digits: int = 2

    def case_ids(self) -> tuple[str, ...]:
        """The cases that were evaluated, sorted; none if their ids are not published."""
        if self.split is None:
            return ()
        name, part = self.split
        content = json.loads((SPLIT_FILES / f"{name}.json").read_text(encoding="utf-8"))
        return tuple(sorted(content[part]))

    def scale(self, column: Column) -> float:
        """By which our values are multiplied to have the paper's unit."""
        return 100.0 if self.percent and column.metric not in DISTANCES else 1.0

    def unit(self, column: Column) -> str:
        """Of a column's numbers: "%", "voxels", or "" for ratios."""
        if column.metric in DISTANCES:
            return "voxels"
        return "%" if self.percent else ""


def ratio_columns(names: Mapping[str, str], average: str) -> tuple[Column, ...]:
    """A Dice column a structure, and their average.

    Args:
        names: the paper's name -> the structure's.
        average: the paper's name for it.
    """
    each = tuple(Column(name, (structure,)) for name, structure in names.items())
    return (*each, Column(average, tuple(names.values())))
