"""A convention for one data set: tolerances by task and organ, units of pictures, and metrics given by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from nnunet_ext.errors import UserError
from nnunet_ext.evaluation_scripts import metric_grammar, tolerances
from nnunet_ext.evaluation_scripts.conventions import Convention
from nnunet_ext.evaluation_scripts.quantities import Metric
from nnunet_ext.evaluation_scripts.structures import Structures, flare22_numbers

AVERAGING = {
    "structures": "mean over cases for each, then over structures, undefined values left out",
    "all structures": "mean over cases for each, undefined values left out, then over structures, undefined if one is",
    "cases": "mean over the structures of each case, then over cases, undefined values left out",
}
"""In words, by `Convention.averaging`."""
_OWN_RULES = ("brats2023", "flare22")


@dataclass(frozen=True)
class Adapted:
    """A convention as it is used.

    Attributes:
        convention: with the metrics that are computed.
        structures: that are evaluated.
        numbers: of FLARE22: structure -> the challenge's number of the organ.
        notices: what the user should know.
    """

    convention: Convention
    structures: Structures
    numbers: Mapping[str, int]
    notices: tuple[str, ...]


def adapted(
    convention: Convention,
    dataset_json: Mapping[str, Any],
    *,
    metrics: Sequence[Metric] = (),
    tolerance: float | None = None,
    unit: str = "mm",
    names: Sequence[str] = (),
) -> Adapted:
    """The convention for a data set.

    Args:
        convention: which.
        dataset_json: of the data set.
        metrics: instead of the convention's own; its rules for single cases (lesions, slices, rounding) go with them.
        tolerance: in mm, instead of the convention's.
        unit: "mm", or "pixels" where files know no spacing.
        names: of the data set beside that in dataset.json, such as its folder's, from which a task is told.

    Raises:
        UserError: the labels are not those that the convention is about.
    """
    notices: list[str] = []
    structures = convention.structures(dataset_json)
    if not structures:
        raise UserError("dataset.json has no label but the background: there is nothing to evaluate")
    numbers: Mapping[str, int] = {}
    if metrics:
        if convention.extra in _OWN_RULES:
            notices.append(f"{convention.name}: its own rules for each case do not apply to metrics chosen by hand")
        convention = _by_hand(convention, metrics, structures, unit)
    elif convention.extra == "flare22":
        numbers = flare22_numbers(dataset_json)
        mm = {name: tolerances.FLARE22[number] for name, number in numbers.items()}
        convention = _with_tolerance(convention, mm)
    elif convention.name == "msd" and tolerance is None:
        mm_of_task, notice = _tolerance_of_task([*names, str(dataset_json.get("name", ""))])
        notices.append(notice)
        convention = _with_tolerance(convention, mm_of_task)
    if tolerance is not None and not metrics:
        convention = _with_tolerance(convention, tolerance)
        convention = replace(convention, definition=f"{convention.definition} Here NSD is within {tolerance:g} mm.")
    if unit == "pixels":
        notices.append("the files know no spacing: distances and tolerances are in pixels, volumes are pixels")
        if not metrics:
            convention = replace(
                convention,
                metrics=tuple(map(_in_pixels, convention.metrics)),
                definition=f"{convention.definition} HERE IN PIXELS: the files know no spacing.",
            )
    return Adapted(convention, structures, numbers, tuple(notices))


def _by_hand(convention: Convention, metrics: Sequence[Metric], structures: Structures, unit: str) -> Convention:
    """The convention with other metrics; of its definition, what still holds: structures and averaging."""
    if unit == "pixels":
        metrics = [_named_in_pixels(_in_pixels(metric)) for metric in metrics]
    extra = None if convention.extra in _OWN_RULES else convention.extra
    beside = f" Beside them {convention.name}'s numbers of the whole set." if extra else ""
    penalties = [f"{m.name} {convention.missing[m.name]:g}" for m in metrics if m.name in convention.missing]
    missing = f" A case without prediction, if not left out, counts {', '.join(penalties)}." if penalties else ""
    definition = (
        f"Metrics chosen by hand: {metric_grammar.defined(metrics)}. Structures and averaging as of {convention.name}: "
        f"{', '.join(structures)}; {AVERAGING[convention.averaging]}.{missing}{beside}"
    )
    return replace(convention, metrics=tuple(metrics), definition=definition, digits=None, extra=extra)


def _with_tolerance(convention: Convention, tolerance: float | Mapping[str, float]) -> Convention:
    metrics = tuple(
        metric if metric.tolerance is None else replace(metric, tolerance=tolerance) for metric in convention.metrics
    )
    return replace(convention, metrics=metrics)


def _tolerance_of_task(names: Sequence[str]) -> tuple[float, str]:
    """Of the Medical Segmentation Decathlon, by the first name that is one of its tasks'."""
    for name in names:
        task = name.partition("_")[2] if name.lower().startswith("dataset") else name
        try:
            found = tolerances.msd_tolerance(task)
        except UserError:
            continue
        return found, f"msd: NSD within {found:g} mm, the tolerance of {task}"
    told = ", ".join(repr(name) for name in names if name) or "a data set without a name"
    return 1.0, f"msd: NSD within 1 mm, since {told} is no task of the challenge; --tolerance states another"


def _in_pixels(metric: Metric) -> Metric:
    if metric.unit not in ("mm", "ml", "voxels"):
        return metric
    return replace(metric, unit="pixels")


def _named_in_pixels(metric: Metric) -> Metric:
    """Its tolerance in the name, too."""
    return metric if metric.tolerance is None else replace(metric, name=f"{metric.name.removesuffix(' mm')} pixels")
