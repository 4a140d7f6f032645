"""Scores of the LiTS server (specification evaluation, section 3.2).

Liver is everything labelled, lesion is label 2. Where the versions of the server's code differ in how they count merged
lesions, a group of merged lesions counts as one here, for the reference and for the prediction.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from nnunet_ext.evaluation_scripts.components import Components, masks_of, region_crop, touching
from nnunet_ext.evaluation_scripts.distances import SurfaceDistances, directed
from nnunet_ext.evaluation_scripts.metrics import CasePair
from nnunet_ext.evaluation_scripts.overlap import Overlap, ratio

LIVER, LESION = (1, 2), (2,)
DETECTED = 0.5
"""A lesion is detected if its intersection over union with its partner is larger."""


@dataclass(frozen=True)
class DetectedLesion:
    """A reference lesion and the prediction's that was matched with it.

    Attributes:
        voe: volumetric overlap error, 1 - Jaccard.
        rvd: relative volume difference, (|P| - |G|) / |G|.
        assd, rmsd, msd: mm, mean, root of the mean square and maximum of both surfaces' distances. The surface voxels
            are those with a neighbour outside at a face or an edge (18 neighbours).
    """

    voe: float
    rvd: float
    assd: float
    rmsd: float
    msd: float


@dataclass(frozen=True)
class LitsCase:
    """What one case adds to the scores.

    Attributes:
        liver, lesion: voxel counts.
        detected: lesions with an overlap of more than a half.
        touched: lesions with any overlap.
        reference_lesions, predicted_lesions: how many there are after merging.
        burden_difference: predicted less reference share of the liver that is lesion; NaN where a liver is missing.
    """

    liver: Overlap
    lesion: Overlap
    detected: tuple[DetectedLesion, ...]
    touched: int
    reference_lesions: int
    predicted_lesions: int
    burden_difference: float


def lits_case(
    reference: np.ndarray, predicted: np.ndarray, spacing: Sequence[float], pair: CasePair | None = None
) -> LitsCase:
    """Score a case.

    Args:
        reference: label map (z, y, x), unsigned integers: 1 liver, 2 lesion.
        predicted: of the same shape.
        spacing: millimetres along each axis.
        pair: of the two maps, if there is one already.

    Raises:
        ValueError: maps that do not fit each other or the spacing.
    """
    pair = pair or CasePair(reference, predicted, spacing)
    liver, lesion = pair.overlap(LIVER), pair.overlap(LESION)
    ours, theirs = (Components.of(mask, corners=False) for mask in region_crop(reference, predicted, LESION))
    matches = merged_matches(touching(ours.numbers, theirs.numbers))
    detected = (_detected(masks_of(ours, ones, theirs, others), pair.spacing) for ones, others in matches if others)
    return LitsCase(
        liver,
        lesion,
        tuple(found for found in detected if found),
        sum(bool(others) for _, others in matches),
        ours.count - sum(len(ones) - 1 for ones, _ in matches),
        theirs.count - sum(len(others) - 1 for _, others in matches if others),
        ratio(lesion.predicted, liver.predicted) - ratio(lesion.reference, liver.reference),
    )


def merged_matches(common: dict[tuple[int, int], int]) -> list[tuple[list[int], list[int]]]:
    """Merge components that one partner spans, and match what results.

    Each reference component goes to the predicted one with the largest intersection; those that go to the same are
    merged. Each predicted component then goes to the merged lesion with the largest intersection, and those of the
    same lesion are merged in turn. Of equals, the first counts.

    Args:
        common: (reference component, predicted component) -> common voxels.

    Returns:
        Reference components and predicted components of each merged lesion; the latter may be none.
    """
    owners = _largest((one, other, voxels) for (one, other), voxels in common.items())
    groups: dict[int, list[int]] = {}
    for one, other in owners.items():
        groups.setdefault(other, []).append(one)
    lesions = sorted(sorted(group) for group in groups.values())
    lesion_of = {one: index for index, group in enumerate(lesions) for one in group}
    merged: dict[tuple[int, int], int] = {}
    for (one, other), voxels in common.items():
        key = other, lesion_of[one]
        merged[key] = merged.get(key, 0) + voxels
    targets = _largest((other, lesion, voxels) for (other, lesion), voxels in merged.items())
    return [
        (group, sorted(other for other, target in targets.items() if target == index))
        for index, group in enumerate(lesions)
    ]


def _largest(weighted: Iterable[tuple[int, int, int]]) -> dict[int, int]:
    """Of (one, other, weight): one -> the other of the largest weight, the first of equals."""
    best: dict[int, tuple[int, int]] = {}
    for one, other, weight in weighted:
        best[one] = min(best.get(one, (0, 0)), (-weight, other))
    return {one: other for one, (_, other) in sorted(best.items())}


def _detected(masks: tuple[np.ndarray, np.ndarray], spacing: Sequence[float]) -> DetectedLesion | None:
    """The scores of a lesion; None if no more than a half overlaps."""
    reference, predicted = (int(mask.sum()) for mask in masks)
    common = int((masks[0] & masks[1]).sum())
    jaccard = common / (reference + predicted - common)
    if jaccard <= DETECTED:
        return None
    ours, theirs = (np.flatnonzero(surface_voxels(mask)) for mask in masks)
    distances = SurfaceDistances(*directed(theirs, ours, masks[0].shape, spacing))
    pooled = np.concatenate([distances.to_reference, distances.to_prediction])
    return DetectedLesion(
        1 - jaccard,
        (predicted - reference) / reference,
        distances.mean_pooled(),
        math.sqrt(float(np.mean(pooled**2))),
        distances.hausdorff(),
    )


def surface_voxels(mask: np.ndarray) -> np.ndarray:
    """The voxels with a neighbour outside at a face or edge, outside of the image included."""
    neighbours = ndimage.generate_binary_structure(mask.ndim, min(2, mask.ndim))
    surface: np.ndarray = mask & ~ndimage.binary_erosion(mask, neighbours)
    return surface


def lits_scores(cases: Collection[LitsCase], dice_of_neither: float = 0.0) -> dict[str, float]:
    """The table over all cases.

    Args:
        cases: in any order.
        dice_of_neither: Dice of a structure that neither the reference nor the prediction of a case has: 0 as the
            server's medpy (before 0.5), 1 as newer ones, NaN to leave the case out.

    Returns:
        `liver_` and `lesion_` `dice_per_case` and `dice_global`; means `voe`, `rvd`, `assd`, `rmsd`, `msd` over all
        detected lesions (mm where a distance); `precision` and `recall` of lesions at an overlap of more than a half
        and, with `_any_overlap`, of any; `burden_rmse` and `burden_max`; numbers `cases`, `detected_lesions`,
        `reference_lesions`, `predicted_lesions`, `burden_cases`. NaN for what no case defines.
    """
    scores: dict[str, float] = {"cases": len(cases)}
    for name, overlaps in (("liver", [case.liver for case in cases]), ("lesion", [case.lesion for case in cases])):
        per_case = [dice_of_neither if found.state == "both_empty" else found.dice for found in overlaps]
        scores[f"{name}_dice_per_case"] = _mean([dice for dice in per_case if not math.isnan(dice)])
        common = sum(found.tp for found in overlaps)
        scores[f"{name}_dice_global"] = ratio(2 * common, sum(found.reference + found.predicted for found in overlaps))
    detected = [lesion for case in cases for lesion in case.detected]
    for metric in ("voe", "rvd", "assd", "rmsd", "msd"):
        scores[metric] = _mean([getattr(lesion, metric) for lesion in detected])
    reference = sum(case.reference_lesions for case in cases)
    predicted = sum(case.predicted_lesions for case in cases)
    touched = sum(case.touched for case in cases)
    differences = [case.burden_difference for case in cases if not math.isnan(case.burden_difference)]
    return scores | {
        "precision": ratio(len(detected), predicted),
        "recall": ratio(len(detected), reference),
        "precision_any_overlap": ratio(touched, predicted),
        "recall_any_overlap": ratio(touched, reference),
        "burden_rmse": math.sqrt(_mean([difference**2 for difference in differences])),
        "burden_max": max((abs(difference) for difference in differences), default=math.nan),
        "detected_lesions": len(detected),
        "reference_lesions": reference,
        "predicted_lesions": predicted,
        "burden_cases": len(differences),
    }


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan
