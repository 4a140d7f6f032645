"""Plots of a comparison: one model against the other, differences with intervals, and how often each rank occurs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from nnunet_ext.evaluation_scripts.compared_models import Models
from nnunet_ext.evaluation_scripts.comparing import OVERALL, Pair, Ranked
from nnunet_ext.evaluation_scripts.report_numbers import title_of
from nnunet_ext.evaluation_scripts.report_plots import LIGHT, png, shortened, themed

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MARKERS = "os^Dv<>Pp*"
WORDS = {"mean": "mean, then rank", "rank-mean": "rank, then mean", "test": "by tests"}


def differences(models: Models, pairs: Mapping[str, Mapping[str, Pair]]) -> bytes:
    """A row a metric: every case and structure, first model against second; mean differences with intervals.

    Returns:
        A PNG.
    """
    rows = max(len(found) for found in pairs.values())
    height = max(3.3, 1.1 + 0.32 * rows)
    figure = Figure(figsize=(9.6, height * len(pairs)), facecolor=LIGHT.ground, layout="constrained")
    grid = figure.subplots(len(pairs), 2, squeeze=False)
    themed(figure, list(grid.ravel()))
    for (against, differing), (metric, found) in zip(grid, pairs.items(), strict=True):
        _scatter(against, models, metric)
        _forest(differing, models, metric, found)
    return png(figure)


def _scatter(axes: Axes, models: Models, metric: str) -> None:
    one, other = models.evaluations
    values = models.values(metric)
    for place, name in enumerate(models.first.structures):
        marker = MARKERS[place % len(MARKERS)]
        axes.plot(values[1, :, place], values[0, :, place], marker, markersize=4, alpha=0.7, label=shortened(name))
    finite = values[:, np.isfinite(values).all(axis=0)]
    if finite.size:
        low, high = float(finite.min()), float(finite.max())
        reach = 0.05 * (high - low) or 0.05
        axes.set(xlim=(low - reach, high + reach), ylim=(low - reach, high + reach))
        axes.axline((low, low), slope=1, color=LIGHT.text, linewidth=0.8)
    axes.set_aspect("equal", adjustable="box")
    title = title_of(metric, models.first.metrics[metric])
    axes.set_xlabel(f"{shortened(other)}: {title}")
    axes.set_ylabel(f"{shortened(one)}: {title}")
    if len(models.first.structures) > 1:
        axes.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _forest(axes: Axes, models: Models, metric: str, found: Mapping[str, Pair]) -> None:
    one, other = models.evaluations
    about = models.first.metrics[metric]
    for row, (name, pair) in enumerate(found.items()):
        mean = pair.found.mean
        colour = LIGHT.points if name != OVERALL else LIGHT.text
        axes.plot([mean.lower, mean.upper], [row, row], color=colour, linewidth=2, solid_capstyle="butt")
        axes.plot([mean.estimate], [row], "D" if name == OVERALL else "o", color=colour, markersize=5)
    axes.axvline(0, color=LIGHT.text, linewidth=0.8)
    axes.set_yticks(range(len(found)), [f"{shortened(name)}{' *' * bool(pair.better)}" for name, pair in found.items()])
    axes.set_ylim(len(found) - 0.4, -0.6)
    axes.grid(axis="x", color=LIGHT.lines, linewidth=0.6)
    better = one if about["higher_is_better"] else other
    axes.set_xlabel(
        f"{title_of(metric, about)}: {shortened(one)} less {shortened(other)}\n"
        f"right of 0: {shortened(better)} is better; 95 % interval; *: p < 0.05 (Holm)"
    )


def rank_frequencies(models: Models, rankings: Mapping[str, Mapping[str, Mapping[str, Ranked]]]) -> bytes:
    """A row a metric, a column a method: the area of a blob is the share of resamples in which a model has a rank.

    Returns:
        A PNG.
    """
    count = len(models.evaluations)
    methods = list(next(iter(next(iter(rankings.values())).values())))
    size = max(2.6, 1.1 + 0.42 * count)
    figure = Figure(
        figsize=(1.2 + size * len(methods), (0.8 + size) * len(rankings)), facecolor=LIGHT.ground, layout="constrained"
    )
    grid = figure.subplots(len(rankings), len(methods), squeeze=False)
    themed(figure, list(grid.ravel()))
    for line, (metric, by_structure) in zip(grid, rankings.items(), strict=True):
        name, found = next(iter(by_structure.items()))
        for axes, (method, ranked) in zip(line, found.items(), strict=True):
            _blobs(axes, ranked)
            axes.set_title(
                f"{title_of(metric, models.first.metrics[metric])}, {shortened(name)}\n{WORDS[method]}", fontsize=8.5
            )
    return png(figure)


def _blobs(axes: Axes, ranked: Ranked) -> None:
    """Models from the best to the worst, their ranks in resamples; a cross at the rank of all cases."""
    order = ranked.ranking.order()
    place = {model: number for number, model in enumerate(ranked.ranking.models)}
    ranks, shares = ranked.stability.frequencies()
    for column, (model, _, rank) in enumerate(order):
        share = shares[place[model]]
        areas = 520 * share / max(1.0, len(order) / 6)
        axes.scatter(np.full(len(ranks), column), ranks, s=areas, color=LIGHT.points, alpha=0.7, linewidths=0)
        axes.plot([column], [rank], "x", color=LIGHT.text, markersize=5)
    axes.set_xticks(range(len(order)), [shortened(model) for model, _, _ in order], rotation=35, ha="right")
    axes.set_yticks(range(1, len(order) + 1))
    axes.set_xlim(-0.6, len(order) - 0.4)
    axes.set_ylim(len(order) + 0.6, 0.4)
    axes.grid(color=LIGHT.lines, linewidth=0.5)
    axes.set_ylabel("rank")
    axes.set_xlabel(f"Kendall's tau {ranked.stability.mean_tau():.2f}")
