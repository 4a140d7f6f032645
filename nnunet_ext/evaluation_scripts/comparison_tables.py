"""A comparison as text, Markdown, CSV and HTML: the same rows."""

from __future__ import annotations

import csv
import io
import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from nnunet_ext.evaluation_scripts.compared_models import Models
from nnunet_ext.evaluation_scripts.comparing import OVERALL, RANKINGS, Pair, Ranked
from nnunet_ext.evaluation_scripts.ranking import METHODS
from nnunet_ext.evaluation_scripts.tables import aligned, shown, title

Section = tuple[str, tuple[str, ...], list[tuple[str, ...]], list[str]]
"""Heading, header, rows, remarks."""
Pairs = Mapping[str, Mapping[str, Pair]]
Rankings = Mapping[str, Mapping[str, Mapping[str, Ranked]]]


def sections(models: Models, pairs: Pairs, rankings: Rankings) -> list[Section]:
    """The tables of a comparison.

    Args:
        models: that were compared.
        pairs: of two models; else empty.
        rankings: of several; else empty.
    """
    found = [_paired(models, metric, rows) for metric, rows in pairs.items()]
    for metric, by_structure in rankings.items():
        found += _ranked(models, metric, by_structure)
    return found


def _paired(models: Models, metric: str, rows: Mapping[str, Pair]) -> Section:
    about = models.first.metrics[metric]
    unit = str(about["unit"])
    one, other = models.evaluations
    header = (
        "structure",
        one,
        other,
        "difference",
        "95 % interval",
        "n",
        "dropped",
        "p",
        "p Holm",
        "p perm.",
        "effect",
    )
    body = [
        (
            name,
            *(shown(mean, unit) for mean in pair.means),
            _signed(pair.found.mean.estimate, unit),
            _interval((pair.found.mean.lower, pair.found.mean.upper), unit),
            str(pair.found.n),
            str(pair.found.dropped),
            _p(pair.found.wilcoxon_p),
            _p(pair.found.wilcoxon_holm) if name != OVERALL else "",
            _p(pair.found.permutation_p),
            _signed(pair.found.effect, "x"),
            pair.better or "-",
        )
        for name, pair in rows.items()
    ]
    return title(metric, about), (*header, "better"), body, list(_remarks(models, rows))


def _remarks(models: Models, rows: Mapping[str, Pair]) -> Iterator[str]:
    for name, pair in rows.items():
        if pair.found.remark:
            yield f"{name}: {pair.found.remark}"
        for model, number in zip(models.evaluations, (pair.only_first, pair.only_second), strict=True):
            if number and name != OVERALL:
                yield f"{name}: {number} dropped cases have a value of {model} alone, which no difference shows"


def _ranked(models: Models, metric: str, by_structure: Mapping[str, Mapping[str, Ranked]]) -> list[Section]:
    about = models.first.metrics[metric]
    unit = str(about["unit"])
    name, methods = next(iter(by_structure.items()))
    columns = [_columns(ranked, unit) for ranked in methods.values()]
    models_in_order = [model for model, _, _ in next(iter(methods.values())).ranking.order()]
    header = ["model"]
    for method in methods:
        header += [{"mean": "mean", "rank-mean": "mean rank", "test": "wins"}.get(method, method), "rank", "95 %"]
    body = [(model, *(cell for column in columns for cell in column[model])) for model in models_in_order]
    taus = ", ".join(f"{method} {_signed(ranked.stability.mean_tau(), 'x')}" for method, ranked in methods.items())
    number = len(next(iter(methods.values())).stability.ranks)
    remarks = [f"Kendall's tau with the rankings of {number} resamples, on average: {taus}"]
    used = next(iter(methods.values())).ranking
    if used.dropped:
        remarks.append(
            f"{used.dropped} cases without a finite value of every model are dropped, {used.cases} are ranked"
        )
    found: list[Section] = [(f"{title(metric, about)}, {name}", tuple(header), body, remarks)]
    if len(by_structure) > 1:
        found.append(_by_structure(metric, models_in_order, by_structure))
    return found


def _columns(ranked: Ranked, unit: str) -> dict[str, tuple[str, str, str]]:
    """Model -> score, rank, interval of the rank."""
    intervals = dict(zip(ranked.ranking.models, ranked.stability.rank_interval().tolist(), strict=True))
    kind = {"mean": unit, "median": unit, "test": "whole"}.get(ranked.ranking.method, "x")
    return {
        model: (
            f"{score:.0f}" if kind == "whole" else shown(score, kind),
            f"{rank:g}",
            f"{intervals[model][0]:g} to {intervals[model][1]:g}",
        )
        for model, score, rank in ranked.ranking.order()
    }


def _by_structure(metric: str, models: Sequence[str], found: Mapping[str, Mapping[str, Ranked]]) -> Section:
    body = []
    for name, methods in found.items():
        if name != OVERALL:
            ranked = methods["mean"]
            ranks = {model: f"{rank:g}" for model, _, rank in ranked.ranking.order()}
            tau = _signed(ranked.stability.mean_tau(), "x")
            body.append((name, *(ranks[model] for model in models), str(ranked.ranking.cases), tau))
    return f"{metric}, ranks of the mean by structure", ("structure", *models, "n", "Kendall's tau"), body, []


def as_text(models: Models, found: Sequence[Section], resampled: str) -> str:
    """For a terminal."""
    lines = [*textwrap.wrap(_head(models, resampled), 110), ""]
    for heading, header, body, remarks in found:
        lines += [heading, *(f"  {line}" for line in aligned(header, body)), *(f"  * {text}" for text in remarks), ""]
    return "\n".join(lines).rstrip()


def as_markdown(models: Models, found: Sequence[Section], resampled: str, command: str = "") -> str:
    """comparison.md."""
    lines = [f"# {_title(models)}", "", models.first.definition, "", _head(models, resampled), ""]
    lines += [f"- **{_plain(notice)}**" for notice in models.notices] + [""] * bool(models.notices)
    for heading, header, body, remarks in found:
        lines += [f"## {_plain(heading)}", "", _row(header), _row(["---"] + ["---:"] * (len(header) - 1))]
        lines += [_row(row) for row in body] + [""] + [f"- {_plain(text)}" for text in remarks] + [""] * bool(remarks)
    lines += ["![comparison](comparison.png)", *(["", f"    {command}"] if command else [])]
    return "\n".join(lines) + "\n"


def as_html(models: Models, found: Sequence[Section], resampled: str, plot: str) -> list[str]:
    """Parts of a page (`report_html.page`).

    Args:
        models: that were compared.
        found: the tables.
        resampled: what is resampled and tested, in words.
        plot: the picture, as HTML.
    """
    first = models.first
    parts = [
        f'<h1>{escape(_title(models))}</h1><p class="soft">{escape(_head(models, resampled))}</p>',
        f'<div class="convention"><strong>Convention: {escape(first.convention)}</strong><br>'
        f"{escape(first.definition)}</div>",
    ]
    if models.notices:
        parts.append(f'<section class="warn"><ul>{_items(models.notices)}</ul></section>')
    for heading, header, body, remarks in found:
        heads = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header)
        rows = "".join(
            f'<tr><th scope="row">{escape(row[0])}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in row[1:])}</tr>'
            for row in body
        )
        parts.append(
            f'<h2>{escape(heading)}</h2><div class="wide"><table class="dense"><thead><tr>{heads}</tr></thead>'
            f"<tbody>{rows}</tbody></table></div>{f'<ul>{_items(remarks)}</ul>' if remarks else ''}"
        )
    return [*parts, f"<h2>Plot</h2><figure>{plot}</figure>"]


def _items(texts: Sequence[str]) -> str:
    return "".join(f"<li>{escape(text)}</li>" for text in texts)


def as_csv(models: Models, pairs: Pairs, rankings: Rankings) -> str:
    """comparison.csv: a row a metric and structure, or a metric, structure, method and model; full precision."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if pairs:
        names = ("mean_first", "mean_second", "difference", "lower", "upper", "median", "n", "dropped", "units")
        tests = ("wilcoxon_p", "wilcoxon_holm", "permutation_p", "permutation_holm", "effect", "better", "remark")
        writer.writerow(("metric", "structure", "first", "second", *names, *tests))
        for metric, rows in pairs.items():
            for name, pair in rows.items():
                found = pair.found
                numbers = [*pair.means, found.mean.estimate, found.mean.lower, found.mean.upper, found.median]
                p = [found.wilcoxon_p, found.wilcoxon_holm, found.permutation_p, found.permutation_holm, found.effect]
                counts = [found.n, found.dropped, found.units]
                start = [metric, name, *models.evaluations, *map(_exact, numbers), *counts]
                writer.writerow([*start, *map(_exact, p), pair.better, found.remark])
        return text.getvalue()
    columns = (
        "metric",
        "structure",
        "method",
        "model",
        "score",
        "rank",
        "rank_lower",
        "rank_upper",
        "kendall_tau_mean",
    )
    writer.writerow((*columns, "n", "dropped"))
    for metric, by_structure in rankings.items():
        for name, methods in by_structure.items():
            for method, ranked in methods.items():
                intervals = dict(zip(ranked.ranking.models, ranked.stability.rank_interval().tolist(), strict=True))
                tau, counts = ranked.stability.mean_tau(), [ranked.ranking.cases, ranked.ranking.dropped]
                for model, score, rank in ranked.ranking.order():
                    numbers = [score, rank, *intervals[model], tau]
                    writer.writerow([metric, name, method, model, *map(_exact, numbers), *counts])
    return text.getvalue()


def _title(models: Models) -> str:
    return f"Comparison: {', '.join(models.evaluations)}"


def _head(models: Models, resampled: str) -> str:
    names = list(models.evaluations)
    convention = f"convention {models.first.convention}, {len(models.cases)} cases"
    if len(names) == 2:
        return (
            f"Differences: {names[0]} less {names[1]}, {convention}. p: Wilcoxon's signed ranks, two-sided; Holm: "
            "corrected over structures; p perm.: random signs of the differences; effect: rank-biserial correlation; "
            "better: where Holm's p is below 0.05. "
            f"Intervals: bootstrap, {resampled} resampled."
        )
    methods = "; ".join(f"{method}: {METHODS[method]}" for method in RANKINGS)
    return f"Ranking of {len(names)} models, {convention}. {methods}. 95 %: of the ranks, {resampled} resampled."


def _signed(value: float, unit: str) -> str:
    text = shown(value, unit)
    return f"+{text}" if value > 0 else text


def _interval(bounds: tuple[float, float], unit: str) -> str:
    return "-" if math.isnan(bounds[0]) else f"[{_signed(bounds[0], unit)}, {_signed(bounds[1], unit)}]"


def _p(value: float) -> str:
    if math.isnan(value):
        return "-"
    return "<0.0001" if value < 0.0001 else f"{value:.4f}"


def _exact(value: Any) -> str:
    return repr(float(value))


def _plain(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(_plain(cell) for cell in cells)} |"
