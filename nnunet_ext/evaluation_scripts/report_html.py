"""An evaluation as one HTML page that needs nothing else: numbers, plots, and the worst cases to look at."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from nnunet_ext.errors import UserError
from nnunet_ext.evaluation_scripts import report_plots
from nnunet_ext.evaluation_scripts.agreement import agreement
from nnunet_ext.evaluation_scripts.overlays import Overlay, Picture, overlay
from nnunet_ext.evaluation_scripts.report_numbers import cases_to_draw, title_of, volume_metrics
from nnunet_ext.evaluation_scripts.report_plots import Theme
from nnunet_ext.evaluation_scripts.results import CaseResult, Evaluation, mean
from nnunet_ext.evaluation_scripts.summarising import summarise
from nnunet_ext.evaluation_scripts.tables import extras, rules_fired, shown
from nnunet_ext.whole_files import write_whole

NAME = "report.html"
WORST = 4
_PATIENT = "<figcaption>axial"
TEMPLATE = Path(__file__).parent / "templates" / "report.html"


@dataclass(frozen=True)
class ReportOptions:
    """What a report shows.

    Attributes:
        title: at its head.
        images: folder of nnU-Net's images CASE_0000.*, shown under the contours; None: label maps alone.
        worst: so many cases are drawn.
        patients: case -> patient, whose cases are resampled together; None: each case is its own.
        resampled: what is resampled, in words.
        ignore: label of the reference where nothing is evaluated.
    """

    title: str = "Evaluation"
    images: Path | None = None
    worst: int = WORST
    patients: Mapping[str, str] | None = None
    resampled: str = "cases"
    ignore: int | None = None


def write_report(
    evaluation: Evaluation, folder: Path, images: Path | None = None, options: ReportOptions | None = None
) -> Path:
    """Write report.html.

    Args:
        evaluation: what was found.
        folder: where to; it is made.
        images: folder of nnU-Net's images CASE_0000.*; None: the options' one.
        options: what the report shows.

    Returns:
        The file.

    Raises:
        UserError: there is no case, or the file cannot be written.
    """
    given = options or ReportOptions()
    if images is not None:
        given = replace(given, images=images)
    path = folder / NAME
    write_whole(path, report(evaluation, given))
    return path


def report(evaluation: Evaluation, options: ReportOptions) -> str:
    """The page.

    Raises:
        UserError: there is no case.
    """
    if not evaluation.cases:
        raise UserError("the evaluation has no cases, so there is nothing to report")
    summary = summarise(evaluation, options.patients, options.resampled)
    parts = [
        _head(evaluation, options),
        _warnings(evaluation, summary),
        _summary_table(evaluation, summary),
        _extras(evaluation),
        _distributions(evaluation, summary),
        _volumes(evaluation),
        _worst(evaluation, options),
        _all_values(evaluation),
        _foot(evaluation, summary),
    ]
    return page(options.title, parts)


def page(title: str, parts: Iterable[str]) -> str:
    """A whole page of parts that are HTML already."""
    body = "\n".join(part for part in parts if part)
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(title=escape(title), body=body)


def picture(png: bytes, alt: str, size: str = "") -> str:
    """An image that is part of the page."""
    return f'<img src="{_data(png)}" alt="{escape(alt)}"{size}>'


def themed_picture(draw: Callable[[Theme], bytes], alt: str) -> str:
    """A plot in the colours of a light and of a dark page; light on paper."""
    dark = f'<source media="screen and (prefers-color-scheme: dark)" srcset="{_data(draw(report_plots.DARK))}">'
    return f"<picture>{dark}{picture(draw(report_plots.LIGHT), alt)}</picture>"


def _data(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"


def _head(evaluation: Evaluation, options: ReportOptions) -> str:
    predicted = sum(case.predicted is not None for case in evaluation.cases)
    count = len(evaluation.cases)
    cases = f"{count} case{'s' if count > 1 else ''}" + (f", {count - predicted} not predicted" * (count > predicted))
    return (
        f'<h1>{escape(options.title)}</h1>\n<p class="soft">{cases}; {len(evaluation.structures)} structures: '
        f"{escape(', '.join(evaluation.structures))}</p>\n"
        f'<div class="convention"><strong>Convention: {escape(evaluation.convention)}</strong><br>'
        f"{escape(evaluation.definition)}<br><small>Numbers of other conventions cannot be compared with these.</small>"
        "</div>"
    )


def _warnings(evaluation: Evaluation, summary: Mapping[str, Any]) -> str:
    missing, notices = evaluation.missing(), [*evaluation.notices, *rules_fired(evaluation, summary)]
    if not missing and not notices:
        return ""
    items = [f"<li>{escape(notice)}</li>" for notice in notices]
    listed = ", ".join(missing)
    if missing and not any(listed in notice for notice in notices):
        items.insert(0, f"<li>{len(missing)} cases have no prediction: {escape(listed)}</li>")
    return f'<section class="warn"><strong>Notices</strong><ul>{"".join(items)}</ul></section>'


def _summary_table(evaluation: Evaluation, summary: Mapping[str, Any]) -> str:
    heads = "".join(
        f'<th scope="col">{escape(title_of(metric, about))}<br><small>{_better(about)}</small></th>'
        for metric, about in evaluation.metrics.items()
    )
    rows = []
    for structure in evaluation.structures:
        cells = [_cell(summary["structures"][metric][structure], about) for metric, about in evaluation.metrics.items()]
        rows.append(f'<tr><th scope="row">{escape(structure)}</th>{"".join(cells)}</tr>')
    if len(evaluation.structures) > 1 or evaluation.averaging == "cases":
        cells = [_cell(summary["overall"][metric], about) for metric, about in evaluation.metrics.items()]
        rows.append(f'<tr class="all"><th scope="row">all structures</th>{"".join(cells)}</tr>')
    caption = (
        f"Mean, {summary['bootstrap']['level']:.0%} bootstrap interval of the mean, number of values; “excluded”: "
        "values that the convention leaves undefined."
    )
    return (
        f'<h2>Summary</h2>\n<div class="wide"><table><caption>{caption}</caption><thead><tr><th scope="col">Structure'
        f"</th>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _better(about: Mapping[str, Any]) -> str:
    if not about.get("has_better", about["quantity"] not in ("reference_ml", "predicted_ml")):
        return ""
    return "higher is better" if about["higher_is_better"] else "lower is better"


def _cell(entry: Mapping[str, Any], about: Mapping[str, Any]) -> str:
    """Mean, interval and, of a structure, counts."""
    unit = str(about["unit"])
    lower, upper = (shown(bound, unit) for bound in entry["interval"])
    interval = "no interval" if np.isnan(entry["interval"][0]) else f"{lower} to {upper}"
    excluded = f", {entry['n_excluded']} excluded" if entry.get("n_excluded") else ""
    counts = f"<small>n {entry['n']}{excluded}</small>" if "n" in entry else ""
    return f"<td>{shown(entry['mean'], unit)}<small>{interval}</small>{counts}</td>"


def _extras(evaluation: Evaluation) -> str:
    """The challenge's own numbers of the whole set."""
    items = "".join(f"<li>{escape(line)}</li>" for line in extras(evaluation))
    return f"<h2>Of the whole set</h2>\n<ul>{items}</ul>" if items else ""


def _distributions(evaluation: Evaluation, summary: Mapping[str, Any]) -> str:
    volumes = volume_metrics(evaluation) or ()
    figures = [
        _distribution(evaluation, metric, summary["structures"][metric])
        for metric in evaluation.metrics
        if metric not in volumes
    ]
    return f'<h2>Distributions</h2>\n<div class="plots">{"".join(figures)}</div>' if figures else ""


def _distribution(evaluation: Evaluation, metric: str, entries: Mapping[str, Mapping[str, Any]]) -> str:
    """A metric's box plot."""
    about, table = evaluation.metrics[metric], evaluation.table(metric)
    values = {name: table[:, place] for place, name in enumerate(evaluation.structures)}
    intervals = {
        name: (entry["mean"], *entry["interval"])
        for name, entry in entries.items()
        if np.isfinite(entry["interval"]).all()
    }
    title = title_of(metric, about)
    means = ", ".join(f"{name} {shown(entry['mean'], str(about['unit']))}" for name, entry in entries.items())
    infinite = int(np.isinf(table).sum())
    text = f"{title}: every case, median and quartiles; below each box the mean and its interval."
    text += f" {infinite} infinite values are not drawn." if infinite else ""
    plot = themed_picture(
        lambda theme: report_plots.boxes(values, title, theme, intervals),
        f"Box plot of {title} for each structure; means: {means}",
    )
    return f"<figure>{plot}<figcaption>{escape(text)}</figcaption></figure>"


def _volumes(evaluation: Evaluation) -> str:
    """Bland and Altman's plot and its numbers."""
    names = volume_metrics(evaluation)
    if names is None:
        return ""
    ours, theirs = (evaluation.table(name) for name in names)
    reference, predicted = (
        {name: table[:, place] for place, name in enumerate(evaluation.structures)} for table in (ours, theirs)
    )
    found = {name: agreement(reference[name], predicted[name]) for name in evaluation.structures}
    pooled = agreement(ours.reshape(-1), theirs.reshape(-1))
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{one.n}</td><td>{shown(one.bias, "ml")}</td>'
        f"<td>{shown(one.lower, 'ml')} to {shown(one.upper, 'ml')}</td><td>{shown(one.mean_absolute_error, 'ml')}</td>"
        f"<td>{shown(one.correlation, '')}</td></tr>"
        for name, one in found.items()
    )
    plot = themed_picture(
        lambda theme: report_plots.bland_altman(reference, predicted, pooled, theme),
        f"Bland-Altman plot of volumes: bias {shown(pooled.bias, 'ml')} ml, limits of agreement "
        f"{shown(pooled.lower, 'ml')} to {shown(pooled.upper, 'ml')} ml",
    )
    return (
        '<h2>Volumes</h2>\n<div class="plots"><figure>'
        f"{plot}<figcaption>All structures; limits of agreement: bias ± 1.96 standard deviations.</figcaption>"
        "</figure></div>"
        '<div class="wide"><table><thead><tr><th scope="col">Structure</th><th scope="col">n</th>'
        '<th scope="col">bias, ml</th><th scope="col">limits, ml</th><th scope="col">mean error, ml</th>'
        f'<th scope="col">r (Pearson)</th></tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _worst(evaluation: Evaluation, options: ReportOptions) -> str:
    places = cases_to_draw(evaluation, options.worst)
    if not places:
        return ""
    metric, about = next(iter(evaluation.metrics.items()))
    cases = "".join(_case(evaluation, evaluation.cases[place], options) for place in places)
    planes = (
        "<p>The axial slice with the largest difference; the other two planes pass through the worst place. "
        "R: the patient's right.</p>\n"
    )
    return (
        f"<h2>Worst cases by {escape(title_of(metric, about))}</h2>\n{planes if _PATIENT in cases else ''}"
        '<ul class="legend"><li><span class="line"></span>reference</li>'
        f'<li><span class="line dashed"></span>prediction</li></ul>{cases}'
    )


def _case(evaluation: Evaluation, case: CaseResult, options: ReportOptions) -> str:
    head = f"<h3>{escape(case.case)}</h3>\n<p>{escape(_case_values(evaluation, case))}</p>"
    try:
        drawn = overlay(case, evaluation.structures, options.images, options.ignore)
    except (UserError, OSError) as error:
        return f'<section class="case">{head}<p class="warn">Not drawn: {escape(str(error))}</p></section>'
    return f'<section class="case">{head}{_overlay(drawn, evaluation, case)}</section>'


def _overlay(drawn: Overlay, evaluation: Evaluation, case: CaseResult) -> str:
    figures = "".join(
        f"<figure>{picture(one.png, one.alt, _size(one))}<figcaption>{escape(one.caption)}</figcaption></figure>"
        for one in drawn.pictures
    )
    metric, about = next(iter(evaluation.metrics.items()))
    legend = "".join(
        f'<li><span class="swatch" style="background:{colour}"></span>{escape(name)} '
        f'<span class="soft">{escape(metric)} {shown(case.values[name][metric], str(about["unit"]))}</span></li>'
        for name, colour in drawn.legend.items()
    )
    notice = f'<p class="soft">{escape(drawn.notice)}</p>' if drawn.notice else ""
    return (
        f'<div class="planes">{figures}</div><ul class="legend">{legend}</ul>'
        f'<p class="soft">{escape(drawn.worst)}</p>{notice}'
    )


def _size(one: Picture) -> str:
    """Attributes: all planes of a case are shown at one scale, sharp on fine screens."""
    return f' width="{round(one.width / 1.45)}" height="{round(one.height / 1.45)}"'


def _case_values(evaluation: Evaluation, case: CaseResult) -> str:
    """Means of all metrics, over the case's structures."""
    volumes = volume_metrics(evaluation) or ()
    values = [
        f"{title_of(metric, about)}: "
        f"{shown(mean([case.values[name][metric] for name in evaluation.structures]), str(about['unit']))}"
        for metric, about in evaluation.metrics.items()
        if metric not in volumes
    ]
    return f"Mean over structures: {'; '.join(values)}"


def _all_values(evaluation: Evaluation) -> str:
    tables = []
    for metric, about in evaluation.metrics.items():
        unit = str(about["unit"])
        heads = "".join(f'<th scope="col">{escape(name)}</th>' for name in evaluation.structures)
        rows = "".join(
            f'<tr><th scope="row">{escape(case.case)}{" (not predicted)" if case.predicted is None else ""}</th>'
            + "".join(f"<td>{shown(case.values[name][metric], unit)}</td>" for name in evaluation.structures)
            + "</tr>"
            for case in evaluation.cases
        )
        tables.append(
            f"<details><summary>{escape(title_of(metric, about))}</summary>"
            f'<div class="wide"><table><thead><tr><th scope="col">Case</th>{heads}</tr></thead><tbody>{rows}</tbody>'
            "</table></div></details>"
        )
    return f"<h2>Every case</h2>\n{''.join(tables)}"


def _foot(evaluation: Evaluation, summary: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in evaluation.versions.items())
    used = summary["bootstrap"]
    text = (
        f"Intervals: {used['method']} bootstrap, {used['resamples']} resamples of {used['resampled']}, seed "
        f"{used['seed']}. {versions}"
    )
    return f'<h2>How this was made</h2>\n<p class="soft">{escape(text)}</p>'
