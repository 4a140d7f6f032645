"""An evaluation as text: tables for a terminal and for Markdown."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from nnunet_ext.evaluation_scripts.pairing import shortened
from nnunet_ext.evaluation_scripts.results import Evaluation

STATES = {
    "both_empty": "both masks empty",
    "gt_empty": "only the prediction has voxels",
    "pred_empty": "only the reference has voxels",
}
HEADER = ("structure", "mean", "95 % interval", "std", "median", "n", "excluded")
_NOTICES = 12
_WIDTH = 110


def title(metric: str, about: Mapping[str, Any]) -> str:
    """A metric's name with unit, tolerance and direction."""
    details = [about["unit"]] if about["unit"] else []
    tolerance = about.get("tolerance")
    if isinstance(tolerance, Mapping):
        details.append("tolerance " + ", ".join(f"{name} {value:g}" for name, value in tolerance.items()) + " mm")
    elif tolerance is not None and f"{tolerance:g}" not in metric:
        details.append(f"tolerance {tolerance:g} mm")
    if about.get("has_better", True):
        details.append("higher is better" if about["higher_is_better"] else "lower is better")
    return f"{metric} ({'; '.join(details)})" if details else metric


def shown(value: float, unit: str) -> str:
    """A number: four decimals of ratios, two of distances and volumes."""
    if math.isnan(value):
        return "-"
    return f"{value:.{2 if unit else 4}f}"


def rows(evaluation: Evaluation, summary: Mapping[str, Any], metric: str) -> list[tuple[str, ...]]:
    """The table of a metric: a row a structure, and the average over all."""
    unit = str(evaluation.metrics[metric]["unit"])
    found: list[tuple[str, ...]] = [
        (
            name,
            shown(entry["mean"], unit),
            _interval(entry["interval"], unit),
            shown(entry["std"], unit),
            shown(entry["median"], unit),
            str(entry["n"]),
            str(entry["n_excluded"]),
        )
        for name, entry in summary["structures"][metric].items()
    ]
    overall = summary["overall"][metric]
    average = "mean of cases" if evaluation.averaging == "cases" else "mean"
    if len(found) > 1 or evaluation.averaging == "cases":
        found.append((average, shown(overall["mean"], unit), _interval(overall["interval"], unit), "", "", "", ""))
    return found


def _interval(bounds: Sequence[float], unit: str) -> str:
    lower, upper = bounds
    return "-" if math.isnan(lower) else f"[{shown(lower, unit)}, {shown(upper, unit)}]"


def aligned(header: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    """Columns below each other, the first to the left."""
    widths = [max(len(row[column]) for row in (header, *body)) for column in range(len(header))]
    return [
        "  ".join(
            cell.ljust(width) if not column else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (header, *body)
    ]


def rules_fired(evaluation: Evaluation, summary: Mapping[str, Any]) -> list[str]:
    """How often an empty mask decided a value, and how many values are left out."""
    lines = []
    for metric, found in summary["empty_masks"].items():
        unit = str(evaluation.metrics[metric]["unit"])
        for state, number in found["decided"].items():
            value = shown(found["values"][state], unit) + (f" {unit}" if unit else "")
            lines.append(f"{metric}: {number} of {found['of']} values are {value} by rule ({STATES[state]})")
        if found["undefined"]:
            lines.append(f"{metric}: {found['undefined']} of {found['of']} values are undefined and left out")
    return lines


def worst(evaluation: Evaluation, summary: Mapping[str, Any]) -> list[str]:
    """A line a metric: the worst cases."""
    lines = []
    for metric, entries in summary["worst"].items():
        unit = str(evaluation.metrics[metric]["unit"])
        named = (f"{entry['case']} ({entry['structure']} {shown(entry['value'], unit)})" for entry in entries)
        if entries:
            lines.append(f"{metric}: {', '.join(named)}")
    return lines


def extras(evaluation: Evaluation) -> list[str]:
    """The challenge's numbers of the whole set."""
    lines = []
    for name, value in evaluation.extra.get("lits", {}).items():
        lines.append(f"{name}: {value:d}" if isinstance(value, int) else f"{name}: {shown(float(value), '')}")
    for phase, found in evaluation.extra.get("phases", {}).items():
        for metric, means in found.items():
            if metric in evaluation.metrics:
                unit = str(evaluation.metrics[metric]["unit"])
                listed = ", ".join(f"{name} {shown(value, unit)}" for name, value in means.items())
                lines.append(f"{phase} ({found['cases']} cases), {metric}: {listed}")
    for index, found in evaluation.extra.get("clinical", {}).get("agreement", {}).items():
        unit = "%" if index.endswith("_ef") else "g" if index.endswith("_mass") else "ml"
        bias, lower, upper = (shown(found[name], unit) for name in ("bias", "lower", "upper"))
        correlation = f"r {shown(found['correlation'], '')}"
        patients = f"{found['n']} patients"
        lines.append(f"{index}: {correlation}, bias {bias} {unit}, limits {lower} to {upper} {unit} ({patients})")
    return lines


def as_text(evaluation: Evaluation, summary: Mapping[str, Any]) -> str:
    """For a terminal."""
    about_it = f"Convention {evaluation.convention}: {evaluation.definition}"
    lines = [textwrap.fill(about_it, _WIDTH), _cases(evaluation), ""]
    for metric, about in evaluation.metrics.items():
        lines += [title(metric, about), *("  " + line for line in aligned(HEADER, rows(evaluation, summary, metric)))]
        lines.append("")
    for heading, found in _sections(evaluation, summary):
        lines += [heading, *("  " + line for line in found), ""]
    return "\n".join(lines).rstrip()


def as_markdown(evaluation: Evaluation, summary: Mapping[str, Any], command: str = "") -> str:
    """summary.md."""
    lines = [f"# Evaluation, convention {evaluation.convention}", "", evaluation.definition, "", _cases(evaluation), ""]
    for metric, about in evaluation.metrics.items():
        lines += [f"## {title(metric, about)}", "", _row(HEADER), _row(["---"] + ["---:"] * (len(HEADER) - 1))]
        lines += [_row(row) for row in rows(evaluation, summary, metric)] + [""]
    for heading, found in _sections(evaluation, summary, shorten=False):
        lines += [f"## {heading}", "", *(f"- {_escaped(line)}" for line in found), ""]
    used = summary["bootstrap"]
    lines += [
        f"Intervals: {used['level']:.0%} percentile bootstrap of the mean, {used['resamples']} resamples of "
        f"{used['resampled']}, seed {used['seed']}. Excluded: values that are undefined.",
        "",
        ", ".join(f"{name} {version}" for name, version in evaluation.versions.items()),
    ]
    return "\n".join([*lines, *(["", f"    {command}"] if command else [])]) + "\n"


def _cases(evaluation: Evaluation) -> str:
    number, missing = len(evaluation.cases), len(evaluation.missing())
    structures = ", ".join(evaluation.structures)
    without = f", {missing} without prediction" if missing else ""
    return f"{number} {'case' if number == 1 else 'cases'}{without}; structures: {structures}"


def _sections(evaluation: Evaluation, summary: Mapping[str, Any], shorten: bool = True) -> list[tuple[str, list[str]]]:
    notices = list(evaluation.notices)
    if shorten and len(notices) > _NOTICES:
        notices = [*notices[:_NOTICES], f"{len(notices) - _NOTICES} more, in evaluation.json"]
    missing = evaluation.missing()
    sections = [
        (f"Of all cases, as {evaluation.convention} has them", extras(evaluation)),
        ("Empty masks", rules_fired(evaluation, summary)),
        ("Worst cases", worst(evaluation, summary)),
        ("Without prediction", ([shortened(missing)] if shorten else missing) if missing else []),
        ("Notices", notices),
    ]
    return [(heading, found) for heading, found in sections if found]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(_escaped, cells))} |"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")
