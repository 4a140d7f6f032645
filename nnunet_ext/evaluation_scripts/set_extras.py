"""What a challenge computes of all cases together: LiTS' lesions, ACDC's phases and clinical indices."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

from nnunet_ext.evaluation_scripts.case_extras import lits_case_of
from nnunet_ext.evaluation_scripts.clinical import LV, MYO, RV, CardiacIndices, cardiac_agreement, cardiac_indices
from nnunet_ext.evaluation_scripts.lits_scores import lits_scores
from nnunet_ext.evaluation_scripts.patients import CaseDetails
from nnunet_ext.evaluation_scripts.results import CaseResult, Evaluation

PHASES = ("ED", "ES")
Found = tuple[dict[str, Any], tuple[str, ...]]
"""JSON for `results.Evaluation.extra`, and notices."""


def of_all(extra: str | None, evaluation: Evaluation, details: Mapping[str, CaseDetails]) -> Found:
    """The challenge's numbers over all cases.

    Args:
        extra: `conventions.Convention.extra`.
        evaluation: of the cases.
        details: their patients and phases.
    """
    known: dict[str, Callable[[], Found]] = {
        "lits": lambda: _lits(evaluation),
        "acdc": lambda: _acdc(evaluation, details),
    }
    return known[extra]() if extra in known else ({}, ())


def _lits(evaluation: Evaluation) -> Found:
    """Dice per case and global, detected lesions, tumour burden; a missing prediction is an empty one."""
    cases = [lits_case_of(case.extra["lits"]) for case in evaluation.cases]
    return {"lits": lits_scores(cases)}, ()


def _acdc(evaluation: Evaluation, details: Mapping[str, CaseDetails]) -> Found:
    """Means of each phase, indices of each patient, and how well these agree."""
    phases = {case.case: details[case.case].phase for case in evaluation.cases if case.case in details}
    unknown = [case.case for case in evaluation.cases if phases.get(case.case) not in PHASES]
    if len(unknown) == len(evaluation.cases):
        return {}, (
            "acdc: phases are unknown, so there are no clinical indices, and no tables of ED and ES; --raw DATASET "
            "names a data set that `nnunet-ext convert acdc` made, whose conversion.json knows them",
        )
    notices = [f"acdc: the phase of {', '.join(unknown)} is unknown"] if unknown else []
    tables = {}
    for phase in PHASES:
        part = replace(evaluation, cases=tuple(c for c in evaluation.cases if phases.get(c.case) == phase))
        tables[phase] = {metric: part.mean_of_structures(metric) for metric in evaluation.metrics} | {
            "cases": len(part.cases)
        }
    labels = _labels(evaluation)
    if labels is None:
        notices.append("acdc: clinical indices need the labels 1 (RV), 2 (MYO), 3 (LV); there are others")
        return {"phases": tables}, tuple(notices)
    clinical, left_out = _clinical(evaluation, details, labels)
    if left_out:
        notices.append(f"acdc: no clinical indices of {', '.join(left_out)}: ED or ES is missing or not predicted")
    return {"phases": tables, "clinical": clinical}, tuple(notices)


def _labels(evaluation: Evaluation) -> dict[str, int] | None:
    """Structure -> ACDC's label; None if the structures are others."""
    found = {name: values[0] for name, values in evaluation.structures.items() if len(values) == 1}
    return found if sorted(found.values()) == [RV, MYO, LV] else None


def _clinical(
    evaluation: Evaluation, details: Mapping[str, CaseDetails], labels: Mapping[str, int]
) -> tuple[dict[str, Any], list[str]]:
    """Indices of the patients with both phases, their agreement; and the patients without."""
    patients: dict[str, dict[str, CaseResult]] = {}
    for case in evaluation.cases:
        known = details.get(case.case)
        if known is not None and known.phase in PHASES:
            patients.setdefault(known.patient, {})[str(known.phase)] = case
    complete = {
        patient: cases
        for patient, cases in patients.items()
        if set(cases) == set(PHASES) and all(case.predicted is not None for case in cases.values())
    }
    indices: dict[str, dict[str, CardiacIndices]] = {"reference": {}, "predicted": {}}
    for patient, cases in complete.items():
        for way, found in indices.items():
            volumes = [
                {labels[name]: ml for name, ml in cases[phase].extra["volumes_ml"][way].items()} for phase in PHASES
            ]
            found[patient] = cardiac_indices(volumes[0], volumes[1])
    agreement = cardiac_agreement(indices["reference"], indices["predicted"])
    return {
        "patients": {way: {name: asdict(found) for name, found in of.items()} for way, of in indices.items()},
        "agreement": {name: asdict(found) for name, found in agreement.items()},
    }, sorted(set(patients) - set(complete))
