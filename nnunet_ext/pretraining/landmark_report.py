"""A landmark table as numbers and as a picture of some matched points."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from nnunet_ext.pretraining.cases import Case, Pool
from nnunet_ext.pretraining.coarse import Coarse
from nnunet_ext.pretraining.frames import Array
from nnunet_ext.pretraining.landmark_assembly import Correspondences

PAIRS = 6
FEW_ACCEPTED = 0.5
COLOUR = "#ffb000"
_FROM = {
    "given": "",
    "default": "",
    "embedding": ": 80 % of the embedding's scores of known correspondences reach it",
}

Place = tuple[str, Array]


def as_data(found: Correspondences) -> dict[str, Any]:
    """Plain types: of the table, and of each case its share of accepted points, median score and metric."""
    table = found.table
    cases = {}
    for name, scores, accepted in zip(table.cases, table.scores, table.accepted, strict=True):
        known = scores[np.isfinite(scores)]
        cases[name] = {
            "accepted": int(accepted.sum()),
            "median_score": round(float(np.median(known)), 4) if known.size else None,
            "metric": found.metrics.get(name),
            "restricted": found.restricted.get(name),
        }
    return {
        "kind": table.kind,
        "points": int(table.points.shape[1]),
        "acceptance": _number(table.acceptance()),
        "median_score": _number(table.median_score()),
        "restricted_to_overlap": len(found.restricted),
        "failed": found.failed,
        "definition": table.definition,
        "cases": cases,
    }


def lines(found: Correspondences) -> list[str]:
    """What the command prints."""
    table = found.table
    told = [f"kind       {table.kind}, {table.points.shape[1]} points in each of {len(table.cases)} cases"]
    if not table.same_volume:
        least = f"threshold {table.definition['threshold']:.3g}{_FROM[table.definition['threshold_from']]}"
        told += [
            f"reference  {table.definition['reference']}",
            f"accepted   {100 * table.acceptance():.1f} % of the points ({least})",
            f"score      {table.median_score():.3f} in the median",
        ]
    if found.restricted:
        told.append(f"overlap    only for {len(found.restricted)} case(s):")
        told += [f"             {name}: {reason}" for name, reason in sorted(found.restricted.items())]
    return told


def advice(found: Correspondences) -> str | None:
    """A sentence where too few points were accepted to pre-train with them."""
    if found.table.same_volume or not found.table.acceptance() < FEW_ACCEPTED:
        return None
    way_out = "or train an embedding (--train-embedding)"
    if found.table.kind == "embedding":
        way_out = "train an embedding for longer or on more images, or, if the picture is good, lower --threshold"
    return (
        f"only {100 * found.table.acceptance():.0f} % of the points were accepted: these volumes do not correspond "
        f"well enough by this kind. Use --kind overlap (two views of one volume), {way_out}."
    )


def draw(path: Path, pool: Pool, found: Correspondences, seed: int) -> bool:
    """Draw some matched points: an axial and a coronal slice through the point in each case of a pair.

    Args:
        path: .png.
        pool: the table's cases.
        found: the table.
        seed: which pairs.

    Returns:
        Whether there was any pair to draw.
    """
    pairs = _pairs(found, np.random.default_rng(seed))
    if not pairs:
        return False
    by_name = {case.name: case for case in pool.cases}
    needed = {name for pair in pairs for name, _ in pair[:2]}
    volumes = {name: _volume(by_name[name], found) for name in sorted(needed)}
    figure = Figure(figsize=(11, 2.9 * len(pairs)), facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(pairs), 4, squeeze=False)
    for row, (first, second, score) in zip(axes, pairs, strict=True):
        for side, (name, point) in enumerate((first, second)):
            words = name if side == 0 else f"{name}, score {score:.2f}"
            _slices(row[2 * side : 2 * side + 2], volumes[name], point, words)
    figure.suptitle(f"{found.table.kind}: the same points, left and right (axial, coronal; patient's right is left)")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)
    return True


def _pairs(found: Correspondences, rng: np.random.Generator) -> list[tuple[Place, Place, float]]:
    """The reference's points in other cases, or drawn ones of "overlap" in their own."""
    table = found.table
    name = table.definition["reference"]
    rows = [i for i, accepted in enumerate(table.accepted) if accepted.any() and table.cases[i] != name]
    order = rng.permutation(rows)
    pairs = []
    for row in [int(order[i % len(order)]) for i in range(PAIRS)] if len(order) else []:
        point = int(rng.choice(np.flatnonzero(table.accepted[row])))
        first = row if table.same_volume else table.cases.index(name)
        here, there = ((table.cases[i], table.points[i, point]) for i in (first, row))
        pairs.append((here, there, float(table.scores[row, point])))
    return pairs


def _volume(case: Case, found: Correspondences) -> Coarse:
    return found.looking.volume(case, found.looking.scale.grid / 2)


def _slices(axes: Any, volume: Coarse, point: Array, title: str) -> None:
    z, y, x = np.clip(np.round(volume.frame.to_index(point)), 0, np.asarray(volume.frame.shape) - 1).astype(int)
    shown: Mapping[str, tuple[Any, int, int, str]] = {
        "axial": (volume.values[z], x, y, "upper"),
        "coronal": (volume.values[:, y], x, z, "lower"),
    }
    inside = volume.values[volume.inside]
    low, high = np.percentile(inside, (1, 99)) if inside.size else (0.0, 1.0)
    for place, (plane, (image, across, down, origin)) in zip(axes, shown.items(), strict=True):
        axis: Axes = place
        axis.imshow(image, cmap="gray", vmin=low, vmax=high, origin=origin, interpolation="nearest")  # type: ignore[arg-type]
        axis.axhline(down, color=COLOUR, linewidth=0.5, alpha=0.6)
        axis.axvline(across, color=COLOUR, linewidth=0.5, alpha=0.6)
        axis.plot(across, down, "o", markersize=6, markerfacecolor="none", markeredgecolor=COLOUR)
        axis.set_axis_off()
        axis.set_title(title if plane == "axial" else "", fontsize=8)


def _number(value: float) -> float | None:
    return round(value, 4) if np.isfinite(value) else None
