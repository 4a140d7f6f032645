"""The models that are compared: read from their evaluations, and refused where their numbers do not go together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_ext.errors import UserError
from nnunet_ext.evaluation_scripts.pairing import shortened
from nnunet_ext.evaluation_scripts.results import Evaluation, encoded, read

FILE = "evaluation.json"
_TOGETHER = ("quantity", "unit", "tolerance", "empty", "higher_is_better")
"""What must be the same of a metric of two evaluations."""


@dataclass(frozen=True)
class Models:
    """Evaluations of the same cases under the same convention.

    Attributes:
        evaluations: model -> evaluation.
        metrics: names of those that are compared.
        notices: what a reader must know.
    """

    evaluations: Mapping[str, Evaluation]
    metrics: tuple[str, ...]
    notices: tuple[str, ...] = ()

    @property
    def first(self) -> Evaluation:
        """The first of them: for what all have in common."""
        return next(iter(self.evaluations.values()))

    @property
    def cases(self) -> list[str]:
        """Their ids, sorted."""
        return [case.case for case in self.first.cases]

    def values(self, metric: str) -> np.ndarray:
        """(models, cases, structures), NaN where undefined."""
        return np.stack([evaluation.table(metric) for evaluation in self.evaluations.values()])


def read_models(places: Sequence[Path], names: Sequence[str] | None = None) -> dict[str, Evaluation]:
    """Read evaluations.

    Args:
        places: files, folders that `nnunet-ext evaluate` wrote, or folders of predictions that hold one such.
        names: of the models; None: what differs between the places.

    Raises:
        UserError: no evaluation there, the same twice, or not as many names as places.
    """
    files = [find_file(place) for place in places]
    if len({file.resolve() for file in files}) < len(files):
        raise UserError(f"the same evaluation is given twice: {', '.join(map(str, files))}")
    if names is not None and (len(names) != len(files) or len(set(names)) < len(names)):
        raise UserError(f"--names: {len(files)} different names are needed, one for each evaluation; got {list(names)}")
    return dict(zip(names or distinct_names(files), map(read, files), strict=True))


def find_file(place: Path) -> Path:
    """The evaluation.json of a place.

    Raises:
        UserError: there is none, or there are several.
    """
    if place.is_file():
        return place
    found = [place / FILE] if (place / FILE).is_file() else sorted(place.glob(f"*/{FILE}"))
    if not found:
        raise UserError(f"{place}: no {FILE} there; make one by nnunet-ext evaluate REFERENCE {place}")
    if len(found) > 1:
        raise UserError(f"{place} holds {len(found)} evaluations: state one of {', '.join(map(str, found))}")
    return found[0]


def distinct_names(files: Sequence[Path]) -> list[str]:
    """The shortest part of each path that tells them apart: a file's name, or a folder's."""
    parts = [file.absolute().with_suffix("").parts for file in files]
    while all(len(part) > 1 for part in parts) and len({part[-1] for part in parts}) == 1:
        parts = [part[:-1] for part in parts]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            break
    return names


def matched(evaluations: Mapping[str, Evaluation], metrics: Sequence[str] = (), common: bool = False) -> Models:
    """Check that models can be compared.

    Args:
        evaluations: model -> evaluation.
        metrics: to compare; none: all that every model has.
        common: take the cases that all models have, instead of refusing.

    Raises:
        UserError: fewer than two models; another convention, other structures, metrics or cases of one.
    """
    if len(evaluations) < 2:
        raise UserError("at least two evaluations are needed for a comparison")
    (first, reference), *others = evaluations.items()
    for name, evaluation in others:
        _require_same_convention((first, reference), (name, evaluation))
    chosen = _metrics(evaluations, metrics)
    same, notices = _same_cases(evaluations, common)
    if any(evaluation.definition != reference.definition for _, evaluation in others):
        notices.append("the definitions of the convention differ in words; what is compared is computed alike")
    for name, evaluation in same.items():
        missing = evaluation.missing()
        if missing:
            counted = "their values are those of the evaluation (--missing)"
            notices.append(f"{name} has no prediction of {len(missing)} cases: {shortened(missing)}; {counted}")
    return Models(same, chosen, tuple(notices))


def _require_same_convention(one: tuple[str, Evaluation], other: tuple[str, Evaluation]) -> None:
    (first, ours), (second, theirs) = one, other
    if ours.convention != theirs.convention:
        raise UserError(
            f"{first} was evaluated by the convention {ours.convention!r}, {second} by {theirs.convention!r}: their "
            "numbers cannot be compared. Evaluate both by one (nnunet-ext evaluate --convention)."
        )
    if ours.averaging != theirs.averaging:
        raise UserError(f"{first} averages over {ours.averaging}, {second} over {theirs.averaging}: evaluate both anew")
    structures = [{name: sorted(values) for name, values in each.structures.items()} for each in (ours, theirs)]
    if structures[0] != structures[1]:
        raise UserError(
            f"not the same structures: {first} has {_listed(structures[0])}; {second} has {_listed(structures[1])}"
        )


def _listed(structures: Mapping[str, Sequence[int]]) -> str:
    return ", ".join(f"{name} ({'+'.join(map(str, values))})" for name, values in structures.items())


def _metrics(evaluations: Mapping[str, Evaluation], wanted: Sequence[str]) -> tuple[str, ...]:
    """Names of metrics that all models have, computed alike."""
    (first, reference), *others = evaluations.items()
    shared = [name for name in reference.metrics if all(name in evaluation.metrics for _, evaluation in others)]
    if not shared:
        listed = "; ".join(f"{model}: {', '.join(found.metrics)}" for model, found in evaluations.items())
        raise UserError(f"no metric that all of them have: {listed}")
    unknown = [name for name in wanted if name not in shared]
    if unknown:
        raise UserError(f"--metric {', '.join(unknown)}: not in every evaluation; there are {', '.join(shared)}")
    chosen = tuple(wanted) or tuple(name for name in shared if reference.metrics[name].get("has_better", True))
    for name in chosen:
        for model, evaluation in others:
            ours, theirs = _essence(reference.metrics[name]), _essence(evaluation.metrics[name])
            if ours != theirs:
                differ = [key for key in _TOGETHER if ours[key] != theirs[key]]
                told = "; ".join(f"{key} {ours[key]} of {first}, {theirs[key]} of {model}" for key in differ)
                raise UserError(f"{name} is not computed alike: {told}. Evaluate both in the same way.")
    return chosen


def _essence(about: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = encoded({key: about.get(key) for key in _TOGETHER})
    return found


def _same_cases(evaluations: Mapping[str, Evaluation], common: bool) -> tuple[dict[str, Evaluation], list[str]]:
    """Evaluations of the same cases in the same order of structures, and what was left out."""
    ids = {name: {case.case for case in evaluation.cases} for name, evaluation in evaluations.items()}
    shared = set.intersection(*ids.values())
    union = set.union(*ids.values())
    differences = [f"{name} lacks {len(union - own)}: {shortened(sorted(union - own))}" for name, own in ids.items()]
    differences = [text for text, own in zip(differences, ids.values(), strict=True) if union - own]
    if differences and not common:
        raise UserError(
            f"not the same cases: {'; '.join(differences)}. Evaluate all models on the same cases, or compare them on "
            f"the {len(shared)} that all have by --common."
        )
    if not shared:
        raise UserError(f"no case that all of them have: {'; '.join(differences)}")
    structures = next(iter(evaluations.values())).structures
    same = {
        name: replace(
            evaluation,
            structures=structures,
            cases=tuple(sorted((case for case in evaluation.cases if case.case in shared), key=lambda case: case.case)),
        )
        for name, evaluation in evaluations.items()
    }
    left_out = f"ONLY {len(shared)} OF {len(union)} CASES ARE COMPARED, those that all models have"
    return same, [f"{left_out}: {'; '.join(differences)}"] if differences else []
