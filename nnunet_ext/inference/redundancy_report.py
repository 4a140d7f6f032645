"""Channel redundancy as a table, as JSON and as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from nnunet_ext.inference.redundancy import Redundancy

COLOURS = {"encoder": "#1b6ca8", "decoder": "#d1495b", "last": "#3a7d44"}
HEADER = ("part", "stage", "module", "channels", "positions", "correlation", "over the cases")


def label(found: Redundancy) -> str:
    """The place's name on the picture's axis."""
    return "last" if found.place.part == "last" else f"{found.place.part[:3]} {found.place.stage}"


def table(found: Sequence[Redundancy]) -> str:
    """Lines in columns, one a feature point."""
    rows = [HEADER]
    for one in found:
        average = "-" if one.mean is None else f"{one.mean:.3f}"
        spread = f"{min(one.values):.3f} to {max(one.values):.3f}" if one.values else "-"
        place = (one.place.part, str(one.place.stage), one.place.point.module)
        rows.append((*place, str(one.channels), str(one.positions), average, spread))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(lines)


def as_data(found: Sequence[Redundancy], about: Mapping[str, Any]) -> dict[str, Any]:
    """Plain types: what was measured, and a list of feature points."""
    points = [
        {
            "part": one.place.part,
            "stage": one.place.stage,
            "module": one.place.point.module,
            "channels": one.channels,
            "positions": one.positions,
            "mean": one.mean,
            "cases": dict(one.cases),
        }
        for one in found
    ]
    return {**about, "quantity": "mean absolute Pearson correlation between channels", "points": points}


def draw(path: Path, found: Sequence[Redundancy], title: str) -> None:
    """Draw means as bars and cases as dots, in the order in which the network computes."""
    figure = Figure(figsize=(max(5.0, 1.5 + 0.7 * len(found)), 3.8), facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for position, one in enumerate(found):
        axes.bar(position, one.mean or 0, width=0.7, color=COLOURS[one.place.part], alpha=0.55)
        axes.plot([position] * len(one.values), one.values, ".", color=COLOURS[one.place.part], markersize=5)
    axes.set_xticks(range(len(found)), [label(one) for one in found], rotation=45, ha="right")
    axes.set_ylim(0, 1)
    axes.set_ylabel("mean |correlation| of channels")
    axes.grid(axis="y", alpha=0.3)
    axes.set_title(title, fontsize=10)
    figure.savefig(path, dpi=120)
