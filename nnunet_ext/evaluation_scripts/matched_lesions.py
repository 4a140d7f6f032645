"""Lesions matched one to one, as the BraTS package of 2026 scores them (specification evaluation, section 3.1).

That package builds on panoptica; this is an own computation of what its GLI configuration reports.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment

from nnunet_ext.evaluation_scripts.components import Components, pair_of, region_crop, touching
from nnunet_ext.evaluation_scripts.distances import SurfaceDistances
from nnunet_ext.evaluation_scripts.metrics import CasePair

REGIONS_2026: dict[str, tuple[int, ...]] = {
    "et": (3,),
    "netc": (1,),
    "snfh": (2,),
    "rc": (4,),
    "tc": (1, 3),
    "wt": (1, 2, 3),
}
SMALLEST_DICE = 1e-6
WHOLE_TOLERANCE = 0.5
"""Of the smallest spacing, for the whole region: with less than one voxel, only exactly equal border voxels count."""


def matched_lesions(
    reference: np.ndarray,
    predicted: np.ndarray,
    spacing: Sequence[float],
    regions: Mapping[str, Collection[int]] | None = None,
) -> dict[str, dict[str, float]]:
    """Match the components of each region one to one so that their Dice values add up to most.

    Args:
        reference: label map (z, y, x) or (y, x), unsigned integers.
        predicted: of the same shape.
        spacing: millimetres along each axis.
        regions: name -> labels; those of BraTS 2026 if None.

    Returns:
        Name of the region -> numbers of components (`n_ref_instances`, `n_pred_instances`, `tp`, `fp`, `fn`), `prec`,
        `rec`, `rq` (F1), mean and standard deviation over the matched pairs (`sq_dsc`, `sq_hd95`, `sq_nsd`; NSD on
        border voxels at the smallest spacing), `pq_dsc` (rq times sq_dsc), values of the whole region
        (`global_bin_dsc`, `global_bin_hd95`, `global_bin_nsd`). Distances in mm. NaN where neither has the region;
        Dice and NSD 0 and an infinite distance where nothing is matched; the challenge replaces infinite by 373.

    Raises:
        ValueError: maps that do not fit each other or the spacing.
    """
    pair = CasePair(reference, predicted, spacing)
    chosen = REGIONS_2026 if regions is None else regions
    return {name: _region_values(reference, predicted, pair, tuple(labels)) for name, labels in chosen.items()}


def _region_values(
    reference: np.ndarray, predicted: np.ndarray, pair: CasePair, labels: tuple[int, ...]
) -> dict[str, float]:
    ours, theirs = (Components.of(mask, corners=True) for mask in region_crop(reference, predicted, labels))
    matched = [pair_of(ours, [one], theirs, [other], pair.spacing) for one, other in _best_matches(ours, theirs)]
    tp, fp, fn = len(matched), theirs.count - len(matched), ours.count - len(matched)
    present = tp + fp + fn > 0
    rq = 2 * tp / (2 * tp + fp + fn) if present else math.nan
    tolerance = min(pair.spacing)
    distances = [found.border_distances([1]) for found in matched]
    dice = [found.overlap([1]).dice for found in matched]
    values = {
        "n_ref_instances": ours.count,
        "n_pred_instances": theirs.count,
        "tp": tp,
        "fp": fp,
        "fn": fn,
        "prec": tp / theirs.count if theirs.count else math.nan,
        "rec": tp / ours.count if ours.count else math.nan,
        "rq": rq,
        **_mean_and_deviation("dsc", dice, 0.0 if present else math.nan),
        **_mean_and_deviation(
            "hd95", [found.pooled_percentile(95) for found in distances], math.inf if present else math.nan
        ),
        **_mean_and_deviation(
            "nsd", [_mean_of_shares(found, tolerance) for found in distances], 0.0 if present else math.nan
        ),
        **_whole(pair, labels, tolerance * WHOLE_TOLERANCE),
    }
    values["pq_dsc"] = rq * values["sq_dsc"]
    return values


def _best_matches(ours: Components, theirs: Components) -> list[tuple[int, int]]:
    dice = np.zeros((ours.count, theirs.count))
    for (one, other), common in touching(ours.numbers, theirs.numbers).items():
        dice[one - 1, other - 1] = 2 * common / (ours.sizes[one - 1] + theirs.sizes[other - 1])
    rows, columns = linear_sum_assignment(dice, maximize=True)
    return [
        (int(row) + 1, int(column) + 1)
        for row, column in zip(rows, columns, strict=True)
        if dice[row, column] >= SMALLEST_DICE
    ]


def _mean_and_deviation(name: str, values: Sequence[float], otherwise: float) -> dict[str, float]:
    if not values:
        return {f"sq_{name}": otherwise, f"sq_{name}_std": math.nan}
    return {f"sq_{name}": float(np.mean(values)), f"sq_{name}_std": float(np.std(values))}


def _mean_of_shares(distances: SurfaceDistances, tolerance: float) -> float:
    """NSD in panoptica's form: the mean of the two surfaces' shares within the tolerance, not the share of both."""
    return (distances.overlap_of_reference(tolerance) + distances.overlap_of_prediction(tolerance)) / 2


def _whole(pair: CasePair, labels: tuple[int, ...], tolerance: float) -> dict[str, float]:
    overlap = pair.overlap(labels)
    if overlap.state == "both_present":
        distances = pair.border_distances(labels)
        hd95, nsd = distances.pooled_percentile(95), _mean_of_shares(distances, tolerance)
    else:
        both_empty = overlap.state == "both_empty"
        hd95, nsd = (math.nan, math.nan) if both_empty else (math.inf, 0.0)
    return {"global_bin_dsc": overlap.dice, "global_bin_hd95": hd95, "global_bin_nsd": nsd}
