"""What an evaluation found: values of every case, averages with what was left out of them, and their files."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_ext.errors import UserError

FORMAT = 1


@dataclass(frozen=True)
class CaseResult:
    """One case.

    Attributes:
        case: its id.
        reference: path of the reference label map.
        predicted: path of the prediction; None: it is missing.
        values: structure -> metric -> value; NaN where undefined.
        states: structure -> "both_present", "both_empty", "gt_empty" or "pred_empty".
        extra: further JSON values: "counts" (structure -> TP, FP, FN, TN) and those of the convention.
        notices: such as a geometry that differs slightly.
    """

    case: str
    reference: str
    predicted: str | None
    values: Mapping[str, Mapping[str, float]]
    states: Mapping[str, str] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
    notices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Evaluation:
    """All cases under one convention.

    Attributes:
        convention: its name.
        definition: in words.
        metrics: metric -> {"unit", "quantity", "higher_is_better", "tolerance"}, in the order of tables.
        structures: name -> label values, in the order of tables.
        averaging: "structures", "all structures" or "cases" (`conventions.Convention.averaging`).
        cases: sorted by id.
        extra: numbers of the whole set, as JSON.
        versions: of the packages.
        notices: of the whole set.
    """

    convention: str
    definition: str
    metrics: Mapping[str, Mapping[str, Any]]
    structures: Mapping[str, Sequence[int]]
    averaging: str
    cases: tuple[CaseResult, ...]
    extra: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    notices: tuple[str, ...] = ()

    def table(self, metric: str) -> np.ndarray:
        """The values of a metric (cases, structures), float64; NaN where undefined."""
        return np.array(
            [[case.values[structure][metric] for structure in self.structures] for case in self.cases], float
        ).reshape(len(self.cases), len(self.structures))

    def mean_of_structures(self, metric: str) -> dict[str, float]:
        """Structure -> mean over the cases where the metric is defined; NaN where it never is."""
        table = self.table(metric)
        return {name: mean(table[:, place]) for place, name in enumerate(self.structures)}

    def mean(self, metric: str) -> float:
        """The convention's average over everything."""
        if self.averaging == "cases":
            return mean([mean(row) for row in self.table(metric)])
        means = list(self.mean_of_structures(metric).values())
        if self.averaging == "all structures" and any(map(math.isnan, means)):
            return math.nan
        return mean(means)

    def missing(self) -> list[str]:
        """Cases without a prediction."""
        return [case.case for case in self.cases if case.predicted is None]


def mean(values: Sequence[float] | np.ndarray) -> float:
    """Mean of the values that are defined; NaN if none is. An infinite value makes it infinite."""
    defined = [float(value) for value in values if not math.isnan(value)]
    return sum(defined) / len(defined) if defined else math.nan


def as_json(evaluation: Evaluation) -> dict[str, Any]:
    """The evaluation as JSON values: NaN becomes null, infinity "inf"."""
    found: dict[str, Any] = encoded({"format": FORMAT, **asdict(evaluation)})
    return found


def from_json(content: Mapping[str, Any], where: Path | str) -> Evaluation:
    """What `as_json` made.

    Raises:
        UserError: it is something else.
    """
    try:
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']!r}, expected {FORMAT}")
        cases = tuple(
            CaseResult(**{**case, "values": _decoded(case["values"]), "notices": tuple(case["notices"])})
            for case in content["cases"]
        )
        names = [entry.name for entry in fields(Evaluation) if entry.name not in ("cases", "notices")]
        others = {name: content[name] for name in names}
        return Evaluation(**others, cases=cases, notices=tuple(content["notices"]))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{where}: not a result of nnunet-ext evaluate ({error}).") from error


def read(path: Path) -> Evaluation:
    """Read the JSON file of an evaluation.

    Raises:
        UserError: it can't be read, or is something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error}).") from error
    return from_json(content, path)


def encoded(value: Any) -> Any:
    """A value of mappings, sequences and numbers as JSON has them: NaN becomes null, infinity "inf"."""
    if isinstance(value, Mapping):
        return {str(key): encoded(item) for key, item in value.items()}
    if isinstance(value, str):
        return value
    if isinstance(value, Iterable):
        return [encoded(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else ("inf" if value > 0 else "-inf")
    return value.item() if isinstance(value, np.generic) else value


def _decoded(value: Any) -> Any:
    """Numbers of a nested mapping: null is NaN, "inf" infinity."""
    if isinstance(value, Mapping):
        return {key: _decoded(item) for key, item in value.items()}
    return math.nan if value is None else float(value)
