"""What a challenge computes of each case beside the metrics of every structure: lesions, slices, volumes.

All results are JSON values, so that they can be kept between runs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from nnunet_ext.evaluation_scripts.flare22_slices import flare22_scores
from nnunet_ext.evaluation_scripts.lesionwise import challenge_parameters, lesionwise_scores
from nnunet_ext.evaluation_scripts.lits_scores import DetectedLesion, LitsCase, lits_case
from nnunet_ext.evaluation_scripts.metrics import CasePair
from nnunet_ext.evaluation_scripts.overlap import Overlap
from nnunet_ext.evaluation_scripts.quantities import Metric
from nnunet_ext.evaluation_scripts.structures import Structures

Values = dict[str, dict[str, float]]
"""Structure -> metric -> value."""


@dataclass(frozen=True)
class Rules:
    """What a case needs beside its metrics.

    Attributes:
        extra: `conventions.Convention.extra`.
        challenge: of "brats2023": whose parameters.
        numbers: of "flare22": structure -> the challenge's number.
    """

    extra: str | None = None
    challenge: str = "BraTS-GLI"
    numbers: Mapping[str, int] = field(default_factory=dict)


def add(
    rules: Rules,
    maps: tuple[np.ndarray, np.ndarray],
    pair: CasePair,
    structures: Structures,
    metrics: tuple[Metric, ...],
    values: Values,
) -> dict[str, Any]:
    """Compute the challenge's own numbers of a case.

    Args:
        rules: what.
        maps: reference and prediction (z, y, x).
        pair: of them.
        structures: that are evaluated.
        metrics: the convention's.
        values: of the metrics so far; those that the challenge computes otherwise are put in.

    Returns:
        For `results.CaseResult.extra`.
    """
    if rules.extra == "brats2023":
        return _lesions(rules, maps, pair, structures, metrics, values)
    if rules.extra == "lits":
        return {"lits": asdict(lits_case(*maps, pair.spacing, pair))}
    if rules.extra == "flare22":
        _slices(rules, maps, pair, structures, metrics, values)
    if rules.extra == "acdc":
        return {"volumes_ml": _volumes(pair, structures)}
    return {}


def _lesions(
    rules: Rules,
    maps: tuple[np.ndarray, np.ndarray],
    pair: CasePair,
    structures: Structures,
    metrics: tuple[Metric, ...],
    values: Values,
) -> dict[str, Any]:
    """Lesion-wise scores; a table of each region's lesions and false positives."""
    parameters = challenge_parameters(rules.challenge)
    found = lesionwise_scores(*maps, pair.spacing, structures, parameters, pair)
    for name, scores in found.items():
        own = {"lesionwise_dice": scores.dice_score, "lesionwise_hd95": scores.hd95_score}
        added = {metric.name: own[metric.quantity] for metric in metrics if metric.quantity in own}
        values[name] = {metric.name: {**values[name], **added}[metric.name] for metric in metrics}
    tables = {
        name: {
            "fields": scores.fields(),
            "lesions": [asdict(lesion) for lesion in scores.lesions],
            "false_positives_mm3": list(scores.false_positives),
        }
        for name, scores in found.items()
    }
    return {"lesionwise": {"challenge": rules.challenge, "regions": tables}}


def _slices(
    rules: Rules,
    maps: tuple[np.ndarray, np.ndarray],
    pair: CasePair,
    structures: Structures,
    metrics: tuple[Metric, ...],
    values: Values,
) -> None:
    """FLARE22's DSC and NSD, three organs in the reference's slices alone."""
    dice, nsd = (next(m for m in metrics if m.quantity == quantity) for quantity in ("dice", "nsd"))
    tolerances = {number: nsd.tolerance_of(name) for name, number in rules.numbers.items()}
    renumbered = {values[0]: rules.numbers[name] for name, values in structures.items()}
    if any(value != number for value, number in renumbered.items()):
        table = np.zeros(max(int(labels.max(initial=0)) for labels in maps) + 1, np.uint8)
        for value, number in renumbered.items():
            table[value : value + 1] = number
        maps = table[maps[0]], table[maps[1]]
        pair = CasePair(*maps, pair.spacing)
    found = flare22_scores(*maps, pair.spacing, tolerances, pair=pair)
    for name, number in rules.numbers.items():
        values[name] = {dice.name: found[number][0], nsd.name: found[number][1]}


def _volumes(pair: CasePair, structures: Structures) -> dict[str, dict[str, float]]:
    """Of "reference" and "predicted" -> structure -> ml."""
    voxel = math.prod(pair.spacing) / 1000
    overlaps = {name: pair.overlap(structure) for name, structure in structures.items()}
    return {
        "reference": {name: overlap.reference * voxel for name, overlap in overlaps.items()},
        "predicted": {name: overlap.predicted * voxel for name, overlap in overlaps.items()},
    }


def lits_case_of(content: Mapping[str, Any]) -> LitsCase:
    """The case that `add` made JSON of."""
    return LitsCase(
        Overlap(**content["liver"]),
        Overlap(**content["lesion"]),
        tuple(DetectedLesion(**lesion) for lesion in content["detected"]),
        content["touched"],
        content["reference_lesions"],
        content["predicted_lesions"],
        content["burden_difference"],
    )
