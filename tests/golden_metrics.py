"""Metric fixtures: the numbers of medpy, DeepMind's surface-distance and the BraTS 2023 code, by our code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from nnunet_ext.evaluation_scripts.distances import SurfaceDistances
from nnunet_ext.evaluation_scripts.lesionwise import REGIONS, challenge_parameters, lesionwise_scores
from nnunet_ext.evaluation_scripts.metrics import CasePair

TOLERANCES = (0.5, 1.0, 2.0, 3.0, 5.0)
CHALLENGES = {"BraTS-GLI": "gli", "BraTS-MET": "met"}


def run_metrics(spec: Mapping[str, Any], gt: np.ndarray, pred: np.ndarray) -> dict[str, Any]:
    """Compute the fields of a metric fixture.

    Args:
        spec: `spacing_mm` (along the axes of the maps), `labels`, and `regions` (name -> labels) where there are any.
        gt: reference label map (z, y, x), unsigned integers.
        pred: predicted label map.

    Returns:
        `per_label` and `per_region`: name -> fields as the fixtures' README has them.
    """
    pair = CasePair(gt, pred, spec["spacing_mm"])
    regions = {name: tuple(labels) for name, labels in spec.get("regions", {}).items()}
    return {
        "per_label": {str(label): _entry(pair, (int(label),)) for label in spec["labels"]},
        "per_region": {name: {"labels": list(labels), **_entry(pair, labels)} for name, labels in regions.items()},
    }


def run_lesionwise(spec: Mapping[str, Any], gt: np.ndarray, pred: np.ndarray) -> dict[str, dict[str, Any]]:
    """The lesion-wise values of BraTS 2023: challenge -> region -> fields.

    Args:
        spec: `spacing_mm`; 1 mm where it says nothing. `regions` (name -> labels), else WT, TC and ET.
        gt: reference label map (z, y, x).
        pred: predicted label map.
    """
    spacing = spec.get("spacing_mm", (1.0, 1.0, 1.0))
    regions = {name: tuple(labels) for name, labels in (spec.get("regions") or REGIONS).items()}
    return {
        name: {
            region: scores.fields()
            for region, scores in lesionwise_scores(gt, pred, spacing, regions, challenge_parameters(key)).items()
        }
        for name, key in CHALLENGES.items()
    }


def _entry(pair: CasePair, structure: tuple[int, ...]) -> dict[str, Any]:
    overlap = pair.overlap(structure)
    return {
        "n_gt": overlap.reference,
        "n_pred": overlap.predicted,
        "tp": overlap.tp,
        "fp": overlap.fp,
        "fn": overlap.fn,
        "state": overlap.state,
        "medpy": _medpy(pair, structure),
        "surface_distance": _surface_distance(pair, structure),
    }


def _medpy(pair: CasePair, structure: tuple[int, ...]) -> dict[str, Any]:
    """Medpy 0.5: overlap 1 if both masks are empty, an error for distances if one is."""
    overlap = pair.overlap(structure)
    neither = overlap.state == "both_empty"
    found: dict[str, Any] = {"dc": 1.0 if neither else overlap.dice, "jc": 1.0 if neither else overlap.jaccard}
    for unit, spacing in (("voxel", [1.0] * len(pair.spacing)), ("mm", None)):
        if overlap.state != "both_present":
            found.update({f"{name}_{unit}": "error" for name in ("hd", "hd95", "assd")})
            continue
        distances = pair.border_distances(structure, spacing)
        found.update({f"{name}_{unit}": value for name, value in _of_borders(distances).items()})
    return found


def _of_borders(distances: SurfaceDistances) -> dict[str, float]:
    return {
        "hd": distances.hausdorff(),
        "hd95": distances.pooled_percentile(95),
        "assd": distances.mean_pooled(),
        "asd_pred_to_gt": distances.mean_to_reference(),
        "asd_gt_to_pred": distances.mean_to_prediction(),
        "assd_mean_of_directed": distances.mean_of_ways(),
    }


def _surface_distance(pair: CasePair, structure: tuple[int, ...]) -> dict[str, float]:
    distances = pair.element_distances(structure)
    assert distances.reference_sizes is not None
    assert distances.predicted_sizes is not None
    return {
        "dice_coefficient": pair.overlap(structure).dice,
        **{f"surface_dice_{tolerance:.1f}mm": distances.surface_dice(tolerance) for tolerance in TOLERANCES},
        **{f"robust_hausdorff_{share}": distances.weighted_percentile(share) for share in (50, 95, 100)},
        "average_surface_distance_gt_to_pred": distances.mean_to_prediction(),
        "average_surface_distance_pred_to_gt": distances.mean_to_reference(),
        "surface_overlap_1.0mm_gt": distances.overlap_of_reference(1.0),
        "surface_overlap_1.0mm_pred": distances.overlap_of_prediction(1.0),
        "surface_area_gt": float(distances.reference_sizes.sum()),
        "surface_area_pred": float(distances.predicted_sizes.sum()),
    }
