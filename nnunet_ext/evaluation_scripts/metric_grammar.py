"""Metrics as they are asked for on the command line: ``dice``, ``hd95``, ``hd95:voxels``, ``nsd@2``."""

from __future__ import annotations

import re
from collections.abc import Sequence

from nnunet_ext.errors import UserError
from nnunet_ext.evaluation_scripts import quantities
from nnunet_ext.evaluation_scripts.quantities import NAN, Metric

ALIASES = {
    "hd95": "hd95_pooled",
    "assd": "assd_pooled",
    "iou": "jaccard",
    "sensitivity": "recall",
    "rvd": "relative_volume_difference",
}
UNITS = ("mm", "voxels")
_GRAMMAR = re.compile(r"(?P<name>[a-z0-9_]+)(@(?P<tolerance>[0-9.]+)(mm)?)?(:(?P<unit>[a-z]+))?", re.IGNORECASE)
_UNDEFINED = dict.fromkeys(quantities.EMPTY_STATES, NAN)
_TITLES = {
    "dice": "Dice",
    "jaccard": "Jaccard",
    "precision": "Precision",
    "recall": "Recall",
    "specificity": "Specificity",
    "volume_similarity": "Volume similarity",
    "relative_volume_difference": "RVD",
    "hd": "HD",
    "hd95_pooled": "HD95",
    "hd95_larger": "HD95 larger",
    "hd95_area": "HD95 area",
    "assd_pooled": "ASSD",
    "assd_of_ways": "ASSD of ways",
    "nsd": "NSD",
    "nsd_border": "NSD border",
    "reference_ml": "Reference volume",
    "predicted_ml": "Predicted volume",
}


def parse(texts: Sequence[str], own: Sequence[Metric] = (), tolerance: float | None = None) -> tuple[Metric, ...]:
    """Metrics of their texts, ``NAME[@TOLERANCE][:UNIT]``.

    Args:
        texts: such as "dice", "hd95:voxels", "nsd@2".
        own: the convention's; where it has the quantity, what an empty mask counts is as there.
        tolerance: in mm, of those that need one and state none; None: they must.

    Raises:
        UserError: an unknown metric, a unit or tolerance that does not fit it, or one asked for twice.
    """
    found = [_parsed(text, own, tolerance) for text in texts]
    names = [metric.name for metric in found]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"--metrics: {name} is asked for twice")
    return tuple(found)


def _parsed(text: str, own: Sequence[Metric], default: float | None) -> Metric:
    match = _GRAMMAR.fullmatch(text)
    name = "" if match is None else match["name"].lower()
    quantity = ALIASES.get(name, name)
    if match is None or quantity not in quantities.NAMES:
        raise UserError(
            f"--metrics {text}: no such metric; there are {', '.join((*quantities.NAMES, *ALIASES))}; distances with a "
            "unit, as in hd95:voxels, surface Dice with a tolerance in mm, as in nsd@2"
        )
    title, unit, tolerance = _TITLES[quantity], "", None
    if quantity in quantities.DISTANCES:
        unit = _unit(text, quantity, (match["unit"] or "mm").lower())
        title += "" if unit == "mm" else f" {unit}"
    elif match["unit"] is not None:
        raise UserError(f"--metrics {text}: {quantity} has no unit to choose")
    elif quantity in quantities.VOLUMES:
        unit = "ml"
    if quantity in ("nsd", "nsd_border"):
        tolerance = _tolerance(text, match["tolerance"], default)
        title += f" {tolerance:g} mm"
    elif match["tolerance"] is not None:
        raise UserError(f"--metrics {text}: {quantity} has no tolerance")
    empty = next((metric.empty for metric in own if metric.quantity == quantity), None)
    if empty is None:
        empty = _UNDEFINED if quantity in quantities.DISTANCES else {}
    return Metric(title, quantity, unit, empty, tolerance)


def _unit(text: str, quantity: str, unit: str) -> str:
    if unit not in UNITS:
        raise UserError(f"--metrics {text}: unit {unit!r}; allowed are {', '.join(UNITS)}")
    if unit == "voxels" and quantity in quantities.ELEMENTS:
        raise UserError(
            f"--metrics {text}: surface elements have areas in mm²; in voxels there are hd95 and hd95_larger"
        )
    return unit


def _tolerance(text: str, stated: str | None, default: float | None) -> float:
    try:
        tolerance = default if stated is None else float(stated)
    except ValueError:
        tolerance = -1.0
    if tolerance is None:
        raise UserError(f"--metrics {text}: give its tolerance in mm, as in {text}@2, or --tolerance")
    if not tolerance >= 0:
        raise UserError(f"--metrics {text}: the tolerance is a number of mm, 0 or more")
    return tolerance


def defined(metrics: Sequence[Metric]) -> str:
    """The metrics in words: what they are, and what empty masks count."""
    return "; ".join(
        f"{metric.name}: {quantities.DESCRIPTIONS[metric.quantity]}{_of_empty(metric)}" for metric in metrics
    )


def _of_empty(metric: Metric) -> str:
    unit = f", in {metric.unit}" if metric.unit else ""
    if metric.quantity in quantities.VOLUMES:
        return unit
    words = {"both_empty": "both masks are empty", "gt_empty": "only the prediction has voxels"}
    words["pred_empty"] = "only the reference has voxels"
    rules = [f"{value:g} if {words[state]}".replace("nan", "left out") for state, value in metric.empty.items()]
    if set(metric.empty) != set(words):
        rules.append(f"{'otherwise' if rules else 'empty masks'} as the formula gives, left out if it divides by 0")
    return f"{unit} ({', '.join(rules)})"
