"""The files of an evaluation; each is whole or as it was before."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunet_ext.errors import UserError
from nnunet_ext.evaluation_scripts import nnunet_summary, tables
from nnunet_ext.evaluation_scripts.results import Evaluation, as_json, encoded
from nnunet_ext.whole_files import write_whole

JSON, LONG, WIDE, MARKDOWN = "evaluation.json", "metrics_per_case.csv", "metrics_wide.csv", "summary.md"
NNUNET = "summary.json"
COLUMNS = ("case", "structure", "metric", "value", "unit", "state", "convention")


def write_files(
    evaluation: Evaluation,
    summary: Mapping[str, Any],
    folder: Path,
    *,
    command: Sequence[str] = (),
    for_nnunet: bool = False,
    labels: Mapping[str, Any] | None = None,
) -> list[Path]:
    """Write all files.

    Args:
        evaluation: what was found.
        summary: of `summarising.summarise`.
        folder: where to; it is made.
        command: the command line.
        for_nnunet: also a summary.json as nnU-Net writes.
        labels: of dataset.json; by them nnU-Net's keys in summary.json.

    Returns:
        The files.

    Raises:
        UserError: one cannot be written, or summary.json is there and another's.
    """
    if for_nnunet and (folder / NNUNET).exists() and not (folder / JSON).exists():
        raise UserError(f"{folder / NNUNET} is not of this command and stays: write to another folder (-o)")
    content = {
        **as_json(evaluation),
        "summary": encoded(summary),
        "command": list(command),
        "files": [LONG, WIDE, MARKDOWN, *([NNUNET] if for_nnunet else [])],
    }
    line = " ".join(command)
    texts = {
        LONG: _csv(COLUMNS, long_rows(evaluation)),
        WIDE: _csv(*wide_rows(evaluation)),
        MARKDOWN: tables.as_markdown(evaluation, summary, line),
        JSON: json.dumps(content, indent=1, allow_nan=False) + "\n",
    }
    if for_nnunet:
        texts[NNUNET] = nnunet_summary.as_text(evaluation, labels)
    for name, text in texts.items():
        write_whole(folder / name, text)
    return [folder / name for name in texts]


def long_rows(evaluation: Evaluation) -> Iterable[tuple[str, ...]]:
    """A row a case, structure and metric."""
    for case in evaluation.cases:
        for structure in evaluation.structures:
            state = case.states.get(structure, "") if case.predicted is not None else "missing"
            for metric, about in evaluation.metrics.items():
                value = repr(float(case.values[structure][metric]))
                yield case.case, structure, metric, value, str(about["unit"]), state, evaluation.convention


def wide_rows(evaluation: Evaluation) -> tuple[list[str], list[list[str]]]:
    """The header, and a row a case: a column a structure and metric."""
    pairs = [(structure, metric) for structure in evaluation.structures for metric in evaluation.metrics]
    rows = [[case.case, *(repr(float(case.values[s][m])) for s, m in pairs)] for case in evaluation.cases]
    return ["case", *(f"{structure}: {metric}" for structure, metric in pairs)], rows


def _csv(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()
