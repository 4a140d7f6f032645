"""A published table beside our predictions, computed by the paper's convention on the paper's cases."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_ext.errors import UserError
from nnunet_ext.evaluation_scripts.conventions import convention_named
from nnunet_ext.evaluation_scripts.evaluating import evaluate
from nnunet_ext.evaluation_scripts.pairing import Pairs, label_maps, shortened, validation_folders
from nnunet_ext.evaluation_scripts.papers import Column, Paper, Row
from nnunet_ext.evaluation_scripts.results import Evaluation, mean
from nnunet_ext.evaluation_scripts.summarising import summarise
from nnunet_ext.evaluation_scripts.tables import rules_fired

MISSING = "skip"


@dataclass(frozen=True)
class Chosen:
    """Which cases are evaluated, and how they differ from the paper's.

    Attributes:
        pairs: references and predictions.
        without_reference: cases of the paper that are not among the references.
        foreign: evaluated cases that are not the paper's.
        passed_over: predictions that are not evaluated.
    """

    pairs: Pairs
    without_reference: tuple[str, ...]
    foreign: tuple[str, ...]
    passed_over: tuple[str, ...]


@dataclass(frozen=True)
class Reproduction:
    """The paper's table and ours.

    Attributes:
        paper: the published table.
        against: the row that ours is compared with.
        values: ours, one a column, in the paper's unit; NaN where undefined.
        counts: of each column, how many cases have a value.
        evaluation: of every case.
        warnings: how the cases differ from the paper's.
        rules: how often an empty mask decided a value.
    """

    paper: Paper
    against: Row
    values: tuple[float, ...]
    counts: tuple[int, ...]
    evaluation: Evaluation
    warnings: tuple[str, ...]
    rules: tuple[str, ...]

    def differences(self) -> list[float]:
        """Ours less the published value; NaN where either is missing."""
        return [
            math.nan if published is None else own - published
            for own, published in zip(self.values, self.against.values, strict=True)
        ]


def reproduce(
    paper: Paper,
    predictions: Sequence[Path],
    references: Sequence[Path],
    dataset_json: Mapping[str, Any],
    *,
    against: str | None = None,
    all_cases: bool = False,
    missing: str = MISSING,
    **options: Any,
) -> Reproduction:
    """Evaluate as the paper did.

    Args:
        paper: which table.
        predictions: folders of label maps, folds or trained models, taken together.
        references: folders of reference label maps, taken together.
        dataset_json: of the data set.
        against: method of the row to compare with; None: the paper's own.
        all_cases: evaluate all that was predicted, not only the paper's cases.
        missing: what a case of the paper without prediction is, as of `evaluating.evaluate`.
        options: further ones of `evaluating.evaluate`: processes, cache, progress.

    Raises:
        UserError: none of the paper's cases is predicted, labels that are not the paper's, an unknown row, or what
            `evaluating.evaluate` cannot evaluate.
    """
    row = _row(paper, against)
    chosen = choose(paper, predictions, references, all_cases)
    convention = replace(convention_named(paper.convention), structures=paper.structures)
    evaluation = evaluate(chosen.pairs, dataset_json, convention, missing=missing, **options)
    values = tuple(paper.scale(column) * value_of(evaluation, column) for column in paper.columns)
    counts = tuple(_count(evaluation, column) for column in paper.columns)
    warnings = _warnings(paper, chosen, missing, all_cases)
    rules = tuple(rules_fired(evaluation, summarise(evaluation)))
    return Reproduction(paper, row, values, counts, evaluation, warnings, rules)


def _row(paper: Paper, method: str | None) -> Row:
    rows = {row.method.lower(): row for row in paper.rows}
    wanted = paper.method if method is None else method
    if wanted.lower() not in rows:
        raise UserError(f"{paper.key} has no row {wanted!r}; there are: {', '.join(row.method for row in paper.rows)}")
    return rows[wanted.lower()]


def choose(paper: Paper, predictions: Sequence[Path], references: Sequence[Path], all_cases: bool = False) -> Chosen:
    """Pair the paper's cases by id.

    Raises:
        UserError: an empty folder, a case twice, or none of the paper's cases is predicted.
    """
    known = _together([(folder, label_maps(folder, "references")) for folder in references], "has two references")
    folders = [folder for place in predictions for folder in validation_folders(place)]
    found = _together([(folder, label_maps(folder, "predictions")) for folder in folders], "is predicted twice")
    published = set(paper.case_ids())
    wanted = set(found) & set(known) if all_cases or not published else published & set(known)
    used = {case: path for case, path in found.items() if case in wanted}
    if not used:
        raise UserError(_nothing(paper, known, found))
    return Chosen(
        Pairs({case: known[case] for case in sorted(wanted)}, used),
        tuple(sorted(published - set(known))),
        tuple(sorted(wanted - published)) if published else (),
        tuple(sorted(set(found) - wanted)),
    )


def _together(folders: Sequence[tuple[Path, Mapping[str, Path]]], twice: str) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for _, files in folders:
        for case, path in files.items():
            if case in found:
                raise UserError(f"{case} {twice}: {found[case]} and {path}")
            found[case] = path
    return found


def _nothing(paper: Paper, known: Mapping[str, Path], found: Mapping[str, Path]) -> str:
    there = (
        f"{len(known)} references ({shortened(sorted(known))}), {len(found)} predictions ({shortened(sorted(found))})"
    )
    ids = paper.case_ids()
    if not set(known) & set(found) or not ids:
        return f"no case is in both folders: {there}."
    return (
        f"{paper.key} is about {paper.cases} ({shortened(ids)}), and none of them has both a reference and a "
        f"prediction: {there}. --all-cases evaluates those that there are."
    )


def value_of(evaluation: Evaluation, column: Column) -> float:
    """Of a column: mean over cases for each structure, then over structures; NaN where none is defined."""
    means = evaluation.mean_of_structures(column.metric)
    return mean([means[name] for name in column.structures])


def _count(evaluation: Evaluation, column: Column) -> int:
    places = [list(evaluation.structures).index(name) for name in column.structures]
    return int((~np.isnan(evaluation.table(column.metric)[:, places])).any(axis=1).sum())


def _warnings(paper: Paper, chosen: Chosen, missing: str, all_cases: bool) -> tuple[str, ...]:
    """How the evaluated cases differ from the paper's, most important first."""
    ids = paper.case_ids()
    found = []
    if not ids:
        found.append(f"the paper's cases are not known ({paper.cases}): all that were predicted are evaluated")
    if chosen.foreign:
        found.append(f"NOT the paper's {_listed(chosen.foreign)}")
    if chosen.pairs.missing:
        what = "left out of the means" if missing == "skip" else "counted as empty predictions"
        found.append(f"NO PREDICTION, {what}, of the paper's {len(ids)} cases {_listed(chosen.pairs.missing)}")
    if chosen.without_reference and not all_cases:
        found.append(f"NO REFERENCE of the paper's {len(ids)} cases {_listed(chosen.without_reference)}")
    if chosen.passed_over:
        found.append(f"passed over, being of other cases, predictions {_listed(chosen.passed_over)}")
    return tuple(found)


def _listed(cases: Sequence[str]) -> str:
    return f"({len(cases)}): {shortened(cases)}"
