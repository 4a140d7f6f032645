"""A published table beside ours, as text, Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
import math
import textwrap
from collections.abc import Sequence
from typing import Any

from nnunet_ext.evaluation_scripts.papers import Column, Paper
from nnunet_ext.evaluation_scripts.reproduce import Reproduction
from nnunet_ext.evaluation_scripts.results import encoded
from nnunet_ext.evaluation_scripts.tables import aligned

_WIDTH = 110
_DIGITS_OF_DISTANCES = 2
_COLUMNS = ("paper", "method", "column", "metric", "structures", "unit", "value", "difference", "n")


def header(found: Reproduction) -> list[str]:
    """Of the table whose rows are the paper's columns."""
    return ["", *(row.method for row in found.paper.rows), "YOURS", f"vs {found.against.method}", "n"]


def body(found: Reproduction) -> list[list[str]]:
    """A row for each column of the paper."""
    paper = found.paper
    rows = []
    differences = found.differences()
    for place, column in enumerate(paper.columns):
        published = [shown(paper, column, row.values[place]) for row in paper.rows]
        own = shown(paper, column, found.values[place])
        difference = shown(paper, column, differences[place], sign=True)
        rows.append([_title(paper, column), *published, own, difference, str(found.counts[place])])
    return rows


def shown(paper: Paper, column: Column, value: float | None, sign: bool = False) -> str:
    """A number with the paper's digits; `-` where there is none."""
    if value is None or math.isnan(value):
        return "-"
    digits = _DIGITS_OF_DISTANCES if paper.unit(column) == "voxels" else paper.digits
    return f"{value:{'+' if sign else ''}.{digits}f}"


def _title(paper: Paper, column: Column) -> str:
    unit = paper.unit(column)
    return f"{column.name} ({unit})" if unit == "voxels" else column.name


def sections(found: Reproduction) -> list[tuple[str, list[str]]]:
    """What stands around the table: heading and sentences."""
    paper = found.paper
    per_cent = "in per cent" if paper.percent else "as fractions"
    evaluated = len(found.evaluation.cases) - len(found.evaluation.missing())
    number = len(paper.case_ids())
    of_paper = f"; the paper's: {number}" if number else ""
    above = [
        ("Published", [f"{paper.source}. Ratios {per_cent}."]),
        ("Cases", [f"{paper.cases}. Evaluated here: {evaluated}{of_paper}."]),
        ("Convention", [f"{paper.convention}: {found.evaluation.definition}"]),
    ]
    notes = [f"{row.method}: {row.note}." for row in paper.rows if row.note]
    below = [
        ("Values that are missing (-)", list(paper.withheld)),
        ("Of single rows", notes),
        ("To know when comparing", list(paper.caveats)),
        ("Empty masks", list(found.rules)),
        ("Notices", list(found.evaluation.notices)),
    ]
    return [*above, *((heading, lines) for heading, lines in below if lines)]


def as_text(found: Reproduction) -> str:
    """For a terminal."""
    lines = [found.paper.title, ""]
    around = sections(found)
    lines += [_filled(f"{heading}: {' '.join(sentences)}", "") for heading, sentences in around[:3]]
    lines += ["", *(f"!!! {warning}" for warning in found.warnings)]
    lines += [""] * bool(found.warnings)
    lines += [*aligned(header(found), body(found)), ""]
    for heading, sentences in around[3:]:
        lines += [heading, *(_filled(sentence, "  ") for sentence in sentences), ""]
    return "\n".join(lines).rstrip()


def _filled(text: str, indent: str) -> str:
    return textwrap.fill(text, _WIDTH, initial_indent=indent, subsequent_indent=f"{indent}  ")


def as_markdown(found: Reproduction, command: str = "") -> str:
    """The file reproduction.md."""
    around = sections(found)
    lines = [f"# {found.paper.title}", ""]
    lines += [f"**{heading}**: {' '.join(sentences)}\n" for heading, sentences in around[:3]]
    lines += [f"**Beware**: {warning}\n" for warning in found.warnings]
    lines += [_row(header(found)), _row(["---"] + ["---:"] * (len(found.paper.rows) + 3))]
    lines += [*map(_row, body(found)), ""]
    for heading, sentences in around[3:]:
        lines += [f"**{heading}**", "", *(f"- {sentence}" for sentence in sentences), ""]
    return "\n".join([*lines, *([f"    {command}"] if command else [])]).rstrip() + "\n"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def as_csv(found: Reproduction) -> str:
    """The file reproduction.csv: a line for each method and column; an empty value: none is published."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for method, values, differences, counts in _all_rows(found):
        for column, value, difference, count in zip(found.paper.columns, values, differences, counts, strict=True):
            about = (column.name, column.metric, "; ".join(column.structures), found.paper.unit(column))
            writer.writerow((found.paper.key, method, *about, *map(_cell, (value, difference)), count))
    return text.getvalue()


def _all_rows(found: Reproduction) -> list[tuple[str, Sequence[float | None], Sequence[float], Sequence[Any]]]:
    none = [math.nan] * len(found.values)
    blank = [""] * len(found.values)
    published: list[tuple[str, Sequence[float | None], Sequence[float], Sequence[Any]]] = [
        (row.method, row.values, none, blank) for row in found.paper.rows
    ]
    return [*published, ("yours", found.values, found.differences(), found.counts)]


def _cell(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else repr(float(value))


def as_json(found: Reproduction, command: Sequence[str] = ()) -> str:
    """The file reproduction.json."""
    paper = found.paper
    content = {
        "paper": paper.key,
        "title": paper.title,
        "source": paper.source,
        "convention": paper.convention,
        "definition": found.evaluation.definition,
        "cases": {"of_the_paper": list(paper.case_ids()), "evaluated": [case.case for case in found.evaluation.cases]},
        "columns": [
            {
                "name": column.name,
                "metric": column.metric,
                "structures": list(column.structures),
                "unit": paper.unit(column),
            }
            for column in paper.columns
        ],
        "published": [{"method": row.method, "values": list(row.values), "note": row.note} for row in paper.rows],
        "withheld": list(paper.withheld),
        "against": found.against.method,
        "values": list(found.values),
        "differences": found.differences(),
        "n": list(found.counts),
        "missing": found.evaluation.missing(),
        "warnings": list(found.warnings),
        "caveats": list(paper.caveats),
        "versions": dict(found.evaluation.versions),
        "command": list(command),
    }
    return json.dumps(_whole(content), indent=1, allow_nan=False) + "\n"


def _whole(value: Any) -> Any:
    """`results.encoded`, which takes no None."""
    if value is None:
        return None
    if isinstance(value, dict):
        return {key: _whole(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_whole(item) for item in value]
    return encoded(value)
