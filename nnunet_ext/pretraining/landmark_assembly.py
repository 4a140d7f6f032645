"""From what was found in each case to the landmark table: acceptance, outliers, and what there is to say about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from nnunet_ext import __version__
from nnunet_ext.pretraining.case_matching import MOST_SCALING, Reference, is_plausible
from nnunet_ext.pretraining.case_records import Arrays
from nnunet_ext.pretraining.case_volumes import Looking
from nnunet_ext.pretraining.landmarks import LandmarkTable, definition_of
from nnunet_ext.pretraining.local_ncc import Scale
from nnunet_ext.pretraining.registration import outliers

CYCLE_MM = 20.0
THRESHOLDS = {"overlap": 0.0, "bodybox": 0.3, "affine": 0.3, "embedding": 0.7}


@dataclass(frozen=True)
class Options:
    """What is wished.

    Attributes:
        kind: "overlap", "bodybox", "affine" or "embedding".
        points: K.
        reference: name of a case; None: the one of median body height.
        threshold: least score; None: `calibrated`, or else 0.3 (correlation) or 0.7 (cosine).
        seed: of all that is drawn.
        processes: that work on cases at the same time; an embedding on another device than the CPU works in one.
        weights: file of the embedding; "embedding" only.
        device: where the embedding is computed, in torch's words.
        calibrated: the embedding's own threshold, the 20th percentile of its scores for known correspondences
            (specification alice 3.3); None: it has none, as published weights.
    """

    kind: str
    points: int = 64
    reference: str | None = None
    threshold: float | None = None
    seed: int = 0
    processes: int = 1
    weights: Path | None = None
    device: str = "cpu"
    calibrated: float | None = None

    @property
    def least(self) -> float:
        """The threshold that holds."""
        known = (self.threshold, self.calibrated, THRESHOLDS[self.kind])
        return next(value for value in known if value is not None)

    @property
    def threshold_from(self) -> str:
        """Where that threshold is from: "given", "embedding" (calibrated) or "default"."""
        if self.threshold is not None:
            return "given"
        return "default" if self.calibrated is None else "embedding"

    def cycle_limit(self, scale: Scale) -> float | None:
        """How far, in mm, the match of a match may lie from the point; "embedding" only, else None.

        20 mm for bodies; less where all that is looked at shrinks with small volumes (see `Scale`).
        """
        return CYCLE_MM * scale.reach / Scale.reach if self.kind == "embedding" else None


@dataclass
class Correspondences:
    """What came out.

    Attributes:
        table: of all cases of the pool, in its order.
        restricted: case -> why it has no accepted points, so that it is for views of one volume only.
        failed: case -> reason why it could not be worked on; these are restricted, too.
        earlier: how many cases an earlier run had finished.
        metrics: case -> the registration's metric; "affine" only.
        looking: how the cases were looked at.
    """

    table: LandmarkTable
    restricted: dict[str, str]
    failed: dict[str, str]
    earlier: int
    metrics: dict[str, float]
    looking: Looking


def assemble(
    names: Sequence[str],
    options: Options,
    found: Mapping[str, Arrays],
    reference: Reference | None,
    failed: Mapping[str, str],
    looking: Looking,
    earlier: int = 0,
) -> Correspondences:
    """The table: what was found is accepted where it is good enough and its case no outlier.

    Args:
        names: of all cases, in the table's order.
        options: what was wished.
        found: case -> "points" (K, 3), "scores" (K,), and what its kind adds.
        reference: None for "overlap".
        failed: case -> reason.
        looking: how the cases were looked at.
        earlier: how many of `found` an earlier run had finished.
    """
    row = {name: place for place, name in enumerate(names)}
    number = options.points if reference is None else len(reference.points)
    points, scores = np.full((len(names), number, 3), np.nan), np.full((len(names), number), np.nan, np.float32)
    for name, arrays in found.items():
        points[row[name]], scores[row[name]] = arrays["points"], arrays["scores"]
    accepted = np.isfinite(scores) & (scores >= options.least)
    limit = options.cycle_limit(looking.scale)
    if limit is not None:
        for name, arrays in found.items():
            accepted[row[name]] &= np.nan_to_num(arrays["cycle"], nan=np.inf) <= limit
    restricted = {name: reason for name, reason in failed.items() if name not in found}
    metrics = {name: float(arrays["metric"]) for name, arrays in found.items()} if options.kind == "affine" else {}
    for name, is_outlier in zip(metrics, outliers(list(metrics.values())), strict=True):
        if is_outlier:
            accepted[row[name]] = False
            restricted[name] = f"its registration is an outlier (metric {metrics[name]:.3f})"
    for name, arrays in found.items():
        if "matrix" in arrays and not is_plausible(arrays["matrix"]):
            restricted.setdefault(name, f"by {options.kind}, one body is over {MOST_SCALING:g} times the other")
        if not accepted[row[name]].any():
            restricted.setdefault(name, "no point was accepted")
    if reference is not None:
        place = row[reference.case.name]
        points[place], scores[place], accepted[place] = reference.points, 1, True
    definition = definition_of(
        {
            "reference": None if reference is None else reference.case.name,
            "threshold": options.least,
            "threshold_from": options.threshold_from,
            "cycle_mm": limit,
            "seed": options.seed,
            "points": options.points,
            "extent": "image" if looking.whole else "body",
            "scale": asdict(looking.scale),
            "weights": None if options.weights is None else options.weights.name,
            "restricted": restricted,
            "version": __version__,
        }
    )
    table = LandmarkTable(options.kind, tuple(names), points, scores, accepted, options.kind == "overlap", definition)
    return Correspondences(table, restricted, dict(failed), earlier, metrics, looking)
