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
NAMES = (*OVERLAPS, *BORDER, *ELEMENTS, *VOLUMES)
LOWER_IS_BETTER = ("hd", "hd95_pooled", "hd95_larger", "hd95_area", "assd_pooled", "assd_of_ways")


@dataclass(frozen=True)
class Metric:
    """A quantity as a convention reports it.

    Attributes:
        name: in tables, such as "HD95".
        quantity: one of `NAMES`.
        unit: "mm", "voxels" or "ml"; "" for ratios.
        empty: state -> value where a mask is empty. A NaN is left out of averages and counted; what has no entry is
            computed as it stands.
        tolerance: of a normalised surface distance, in mm: one for all structures, or by the structure's name.
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


def evaluate(pair: CasePair, name: str, structure: tuple[int, ...], metrics: tuple[Metric, ...]) -> dict[str, float]:
    """All metrics of one structure of one case.

    Args:
        pair: the case.
        name: of the structure.
        structure: its label, or the labels of the region.
        metrics: what is asked for; surfaces are searched only if one of them needs them.

    Returns:
        The metric's name -> value; NaN where it is undefined.
    """
    overlap = pair.overlap(structure)
    distances: dict[tuple[str, str], SurfaceDistances] = {}
    return {metric.name: _value(metric, pair, overlap, name, structure, distances) for metric in metrics}


def _value(
    metric: Metric,
    pair: CasePair,
    overlap: Overlap,
    name: str,
    structure: tuple[int, ...],
    distances: dict[tuple[str, str], SurfaceDistances],
) -> float:
    """One metric; distances that were computed for another are taken."""
    if overlap.state in metric.empty:
        return float(metric.empty[overlap.state])
    quantity = metric.quantity
    if quantity in OVERLAPS:
        return OVERLAPS[quantity](overlap)
    if quantity in VOLUMES:
        voxels = overlap.reference if quantity == "reference_ml" else overlap.predicted
        return voxels * math.prod(pair.spacing) / 1000
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
