"""The numbers that can be asked for of a structure: each by a name that says how it is defined."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from nnunet_ext.evaluation_scripts.distances import SurfaceDistances
from nnunet_ext.evaluation_scripts.metrics import CasePair
from nnunet_ext.evaluation_scripts.overlap import Overlap

NAN = math.nan
EMPTY_STATES = ("both_empty", "gt_empty", "pred_empty")

OVERLAPS: dict[str, Callable[[Overlap], float]] = {
    "dice": lambda o: o.dice,
    "jaccard": lambda o: o.jaccard,
    "precision": lambda o: o.precision,
    "recall": lambda o: o.recall,
    "specificity": lambda o: o.specificity,
    "volume_similarity": lambda o: o.volume_similarity,
    "relative_volume_difference": lambda o: o.relative_volume_difference,
}
"""Of voxel counts; section 1 of the specification."""
BORDER: dict[str, Callable[[SurfaceDistances, float], float]] = {
    "hd": lambda d, _: d.hausdorff(),
    "hd95_pooled": lambda d, _: d.pooled_percentile(95),
    "hd95_larger": lambda d, _: d.larger_percentile(95),
    "assd_pooled": lambda d, _: d.mean_pooled(),
    "assd_of_ways": lambda d, _: d.mean_of_ways(),
    "nsd_border": lambda d, tolerance: d.surface_dice(tolerance),
}
"""Of border voxels; section 2.1."""
ELEMENTS: dict[str, Callable[[SurfaceDistances, float], float]] = {
    "hd95_area": lambda d, _: d.weighted_percentile(95),
    "nsd": lambda d, tolerance: d.surface_dice(tolerance),
}
"""Of surface elements, weighted by their area; section 2.2."""
VOLUMES = ("reference_ml", "predicted_ml")
LESIONWISE = ("lesionwise_dice", "lesionwise_hd95")
"""Of BraTS 2023's lesions; the convention adds them (`case_extras`)."""
NAMES = (*OVERLAPS, *BORDER, *ELEMENTS, *VOLUMES)
DISTANCES = ("hd", "hd95_pooled", "hd95_larger", "hd95_area", "assd_pooled", "assd_of_ways")
LOWER_IS_BETTER = (*DISTANCES, "lesionwise_hd95")
DESCRIPTIONS: dict[str, str] = {
    "dice": "2TP / (2TP + FP + FN)",
    "jaccard": "TP / (TP + FP + FN), intersection over union",
    "precision": "TP / (TP + FP)",
    "recall": "TP / (TP + FN), sensitivity",
    "specificity": "TN / (TN + FP)",
    "volume_similarity": "1 - |FN - FP| / (2TP + FP + FN)",
    "relative_volume_difference": "(|P| - |G|) / |G|",
    "hd": "Hausdorff distance of border voxels, the largest of all",
    "hd95_pooled": "95th percentile of both directions' border distances in one list (medpy)",
    "hd95_larger": "larger of the two directions' 95th percentiles of border distances (MONAI)",
    "hd95_area": "distance within which 95 % of each surface's area lies, the larger direction (DeepMind)",
    "assd_pooled": "mean of both directions' border distances in one list (medpy 0.5)",
    "assd_of_ways": "mean of the two directions' mean border distances (medpy 0.4)",
    "nsd": "share of both surfaces' area within the tolerance of the other (DeepMind)",
    "nsd_border": "share of both surfaces' border voxels within the tolerance of the other (MONAI)",
    "reference_ml": "volume of the reference",
    "predicted_ml": "volume of the prediction",
    "lesionwise_dice": "mean Dice over lesions, false ones count 0 (BraTS 2023)",
    "lesionwise_hd95": "mean hd95_area over lesions, missed and false ones count the penalty (BraTS 2023)",
}


@dataclass(frozen=True)
class Metric:
    """A quantity as a convention reports it.

    Attributes:
        name: in tables, such as "HD95".
        quantity: one of `NAMES`.
        unit: "mm", "voxels" (no spacing), "pixels" (of pictures, which have none) or "ml"; "" for ratios.
        empty: state -> value where a mask is empty. A NaN is left out of averages and counted; what has no entry is
            computed as it stands.
        tolerance: of a normalised surface distance, in mm (of pictures: pixels): one for all structures, or by the
            structure's name.
    """

    name: str
    quantity: str
    unit: str = ""
    empty: Mapping[str, float] = field(default_factory=dict)
    tolerance: float | Mapping[str, float] | None = None

    @property
    def higher_is_better(self) -> bool:
        """Whether larger values are better; volumes have no better."""
        return self.quantity not in LOWER_IS_BETTER

    @property
    def has_better(self) -> bool:
        """Whether one value can be worse than another at all."""
        return self.quantity not in (*VOLUMES, "relative_volume_difference")

    def tolerance_of(self, structure: str) -> float:
        """The tolerance for a structure in mm; NaN for metrics without one.

        Raises:
            ValueError: there is none for this structure.
        """
        if self.tolerance is None:
            return NAN
        if not isinstance(self.tolerance, Mapping):
            return float(self.tolerance)
        if structure not in self.tolerance:
            known = ", ".join(f"{name} {value:g}" for name, value in self.tolerance.items())
            raise ValueError(f"{self.name}: no tolerance for {structure!r}; there are: {known}")
        return float(self.tolerance[structure])


def needs_surface(metric: Metric) -> bool:
    """Whether it is computed of surfaces."""
    return metric.quantity in BORDER or metric.quantity in ELEMENTS


def evaluate(
    pair: CasePair, name: str, structure: tuple[int, ...], metrics: tuple[Metric, ...], thickness: float = 1.0
) -> dict[str, float]:
    """All metrics of one structure of one case.

    Args:
        pair: the case.
        name: of the structure.
        structure: its label, or the labels of the region.
        metrics: what is asked for; surfaces are searched only if one of them needs them. Those of `LESIONWISE` are
            passed over.
        thickness: of the slice in mm where the pair is the only one of a volume.

    Returns:
        The metric's name -> value; NaN where it is undefined.
    """
    overlap = pair.overlap(structure)
    distances: dict[tuple[str, str], SurfaceDistances] = {}
    return {
        metric.name: _value(metric, pair, overlap, name, structure, distances, thickness)
        for metric in metrics
        if metric.quantity not in LESIONWISE
    }


def _value(
    metric: Metric,
    pair: CasePair,
    overlap: Overlap,
    name: str,
    structure: tuple[int, ...],
    distances: dict[tuple[str, str], SurfaceDistances],
    thickness: float,
) -> float:
    """One metric; distances that were computed for another are taken."""
    if overlap.state in metric.empty:
        return float(metric.empty[overlap.state])
    quantity = metric.quantity
    if quantity in OVERLAPS:
        return OVERLAPS[quantity](overlap)
    if quantity in VOLUMES:
        voxels = overlap.reference if quantity == "reference_ml" else overlap.predicted
        return float(voxels) if metric.unit == "pixels" else voxels * math.prod(pair.spacing) * thickness / 1000
    kind = "elements" if quantity in ELEMENTS else "border"
    key = kind, metric.unit
    if key not in distances:
        if kind == "elements":
            distances[key] = pair.element_distances(structure)
        else:
            ones = [1.0] * len(pair.spacing)
            distances[key] = pair.border_distances(structure, ones if metric.unit == "voxels" else None)
    compute = ELEMENTS[quantity] if kind == "elements" else BORDER[quantity]
    return compute(distances[key], metric.tolerance_of(name))
