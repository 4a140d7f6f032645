"""The plots of a report: boxes with all cases' points, and the agreement of volumes."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from nnunet_ext.evaluation_scripts.agreement import Agreement

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DPI = 170
WIDTH = 4.8
"""Inches: as wide as a telephone, so that letters stay as large as those of the text."""


@dataclass(frozen=True)
class Theme:
    """Colours."""

    text: str
    lines: str
    ground: str
    points: str


LIGHT = Theme("#1d2733", "#c9d1da", "#ffffff", "#1b6ca8")
DARK = Theme("#dde4ec", "#44505e", "#171c22", "#6cb8f0")


def boxes(
    values: Mapping[str, np.ndarray],
    label: str,
    theme: Theme = LIGHT,
    intervals: Mapping[str, tuple[float, float, float]] | None = None,
) -> bytes:
    """A box for each structure with a point for each case; whiskers reach to 1.5 times the box's length.

    Args:
        values: structure -> a value of each case; those that are not finite are left out.
        label: of the axis.
        theme: colours.
        intervals: structure -> mean and its confidence interval, drawn under the box.

    Returns:
        A PNG.
    """
    figure = Figure(figsize=(WIDTH, 0.75 + 0.42 * len(values)), facecolor=theme.ground, layout="constrained")
    axes = _axes(figure, theme)
    generator = np.random.default_rng(0)
    names = []
    for row, (name, given) in enumerate(values.items()):
        finite = given[np.isfinite(given)]
        names.append(f"{shortened(name)} ({len(finite)})")
        if len(finite):
            _box(axes, row, finite, theme)
        jitter = row + generator.uniform(-0.17, 0.17, len(finite))
        axes.plot(finite, jitter, "o", color=theme.points, markersize=3.2, alpha=0.6, markeredgewidth=0, zorder=3)
        if intervals is not None and name in intervals:
            mean, lower, upper = intervals[name]
            axes.plot([lower, upper], [row + 0.36] * 2, color=theme.points, linewidth=2, solid_capstyle="butt")
            axes.plot([mean], [row + 0.36], "D", color=theme.points, markersize=4)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlabel(label)
    axes.grid(axis="x", color=theme.lines, linewidth=0.6, alpha=0.7)
    return png(figure)


def bland_altman(
    reference: Mapping[str, np.ndarray], predicted: Mapping[str, np.ndarray], found: Agreement, theme: Theme = LIGHT
) -> bytes:
    """Differences of volumes over their means, with bias and limits of agreement.

    Args:
        reference: structure -> ml of each case.
        predicted: likewise.
        found: of all of them.
        theme: colours.

    Returns:
        A PNG.
    """
    figure = Figure(figsize=(WIDTH, 3.4), facecolor=theme.ground, layout="constrained")
    axes = _axes(figure, theme)
    for place, (name, ours) in enumerate(reference.items()):
        theirs = predicted[name]
        marker = "os^Dv<>Pp*"[place % 10]
        axes.plot((ours + theirs) / 2, theirs - ours, marker, markersize=4, alpha=0.75, label=shortened(name))
    axes.axhline(0, color=theme.lines, linewidth=0.8)
    for height, style, word in (
        (found.bias, "-", f"bias {found.bias:.2f}"),
        (found.upper, "--", f"+1.96 SD {found.upper:.2f}"),
        (found.lower, "--", f"-1.96 SD {found.lower:.2f}"),
    ):
        if np.isfinite(height):
            axes.axhline(height, color=theme.text, linewidth=1, linestyle=style)
            beside = axes.get_yaxis_transform()
            axes.text(0.99, height, word, color=theme.text, fontsize=7.5, ha="right", va="bottom", transform=beside)
    axes.set_xlabel("mean of reference and prediction, ml")
    axes.set_ylabel("prediction less reference, ml")
    legend = axes.legend(fontsize=7.5, frameon=False, labelcolor=theme.text, loc="best")
    legend.set_visible(len(reference) > 1)
    return png(figure)


def png(figure: Figure) -> bytes:
    """A figure as a file's content; the same figure always makes the same bytes."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=DPI, metadata={"Software": None})
    return content.getvalue()


def themed(figure: Figure, axes: Sequence[Axes], theme: Theme = LIGHT) -> None:
    """Give axes a theme's colours and thin lines.

    Args:
        figure: gets a canvas that needs no screen.
        axes: all of them.
        theme: colours.
    """
    FigureCanvasAgg(figure)
    for one in axes:
        one.set_facecolor(theme.ground)
        one.tick_params(colors=theme.text, labelsize=8.5, length=2.5)
        one.xaxis.label.set(color=theme.text, fontsize=8.5)
        one.yaxis.label.set(color=theme.text, fontsize=8.5)
        one.title.set(color=theme.text, fontsize=9.5)
        one.spines[["top", "right"]].set_visible(False)
        one.spines[["left", "bottom"]].set_color(theme.lines)
        one.set_axisbelow(True)


def _box(axes: Axes, row: int, values: np.ndarray, theme: Theme) -> None:
    """Quartiles and median, whiskers to the last value within 1.5 times the box's length."""
    lower, median, upper = np.percentile(values, (25, 50, 75))
    reach = 1.5 * (upper - lower)
    ends = values[values >= lower - reach].min(), values[values <= upper + reach].max()
    axes.barh(row, upper - lower, 0.5, lower, facecolor="none", edgecolor=theme.text, linewidth=0.9)
    axes.plot([median] * 2, [row - 0.25, row + 0.25], color=theme.text, linewidth=1.8)
    for start, end in ((lower, ends[0]), (upper, ends[1])):
        axes.plot([start, end], [row] * 2, color=theme.text, linewidth=0.9)
        axes.plot([end] * 2, [row - 0.12, row + 0.12], color=theme.text, linewidth=0.9)


def _axes(figure: Figure, theme: Theme) -> Axes:
    axes = figure.add_subplot()
    themed(figure, [axes], theme)
    return axes


def shortened(name: str) -> str:
    """A name that fits beside a plot; a leading underscore would hide it from legends, a $ would be mathematics."""
    short = name if len(name) <= 22 else f"{name[:20]}…"
    return short.replace("$", r"\$")
