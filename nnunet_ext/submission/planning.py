"""Pairing predictions with the files that a server expects, before any of them is read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nnunet_ext.errors import UserError
from nnunet_ext.submission.challenges import Challenge, Section
from nnunet_ext.submission.empty_tasks import empty_task
from nnunet_ext.submission.expected import Expected, expected_files, section_of
from nnunet_ext.submission.label_values import inverse_map, names_of
from nnunet_ext.submission.predictions import Predictions, find_predictions
from nnunet_ext.submission.problems import Problem
from nnunet_ext.submission.raw_data import RawCase, RawData, read_raw


@dataclass(frozen=True)
class Item:
    """One file to write.

    Attributes:
        path: in the submission.
        case: whose prediction it is.
        prediction: the label map; None: all background.
        known: values that the prediction may have.
        inverse: value in the prediction -> in the submission.
        allowed: values that the server takes.
    """

    path: str
    case: RawCase
    prediction: Path | None
    known: frozenset[int]
    inverse: dict[int, int]
    allowed: frozenset[int]


@dataclass
class Plan:
    """What will be written.

    Attributes:
        challenge: for which server.
        expected: all files, section by section.
        items: those that can be written.
        problems: found so far.
        notices: what may matter.
        names: section's folder -> value in the submission -> name of the label.
    """

    challenge: Challenge
    expected: list[Expected] = field(default_factory=list)
    items: list[Item] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    names: dict[str, dict[int, str]] = field(default_factory=dict)


def make_plan(
    challenge: Challenge,
    pairs: Sequence[tuple[Path | str, Path | str]],
    *,
    name_template: str | None = None,
    labels: Iterable[int] | None = None,
    fill_empty: Sequence[Path | str] = (),
) -> Plan:
    """Pair predictions with expected files.

    Args:
        challenge: for which server.
        pairs: predictions and raw data set, for MSD one a task.
        name_template: see `Challenge.template`.
        labels: values that the server takes, in place of the challenge's.
        fill_empty: folders of MSD tasks that get label maps of background only.

    Raises:
        UserError: a folder cannot be read or is of no use; the same task twice.
    """
    plan = Plan(challenge)
    allowed = None if labels is None else frozenset(labels)
    sections: dict[str, Section] = {}
    for folder, place in pairs:
        raw = read_raw(place)
        section = _claim(sections, section_of(challenge, raw), raw.name)
        if raw.dataset not in challenge.datasets:
            plan.notices.append(
                f"{raw.name} was converted by `{raw.dataset}`, not by {' or '.join(challenge.datasets)}."
            )
        expected = expected_files(challenge, section, raw, name_template)
        _add_predictions(plan, expected, raw, find_predictions(folder), allowed)
    for place in fill_empty:
        task, cases, notice = empty_task(place)
        section = next(section for section in challenge.sections if section.folder == task.folder)
        _claim(sections, section, str(place))
        _add_empty(plan, section, cases, name_template, notice)
    for section in challenge.sections:
        if section.folder not in sections:
            text = "no predictions given; the server wants all ten tasks. Add predictions and --raw, or --fill-empty"
            plan.expected.append(Expected(section, {}))
            plan.problems.append(Problem("missing", f"{section.folder}/", text))
    return plan


def _claim(sections: dict[str, Section], section: Section, who: str) -> Section:
    if section.folder in sections:
        raise UserError(f"{who}: {section.folder or 'these cases'} were given already; give each task once")
    sections[section.folder] = section
    return section


def _add_predictions(
    plan: Plan, expected: Expected, raw: RawData, predictions: Predictions, allowed: frozenset[int] | None
) -> None:
    inverse, problems = inverse_map(raw)
    plan.problems += problems + expected.problems + predictions.problems
    plan.notices += expected.notices + predictions.notices
    plan.expected.append(expected)
    plan.names[expected.section.folder] = names_of(raw, inverse)
    values = expected.section.values if allowed is None else allowed
    cases = {name: case for name, case in expected.cases.items() if case is not None}
    for name, case in sorted(cases.items()):
        prediction = predictions.files.get(case.id)
        if prediction is None:
            text = f"no prediction {case.id}.nii.gz in {predictions.folder}"
            plan.problems.append(Problem("missing", expected.path(name), text))
        else:
            plan.items.append(Item(expected.path(name), case, prediction, raw.values, inverse, values))
    wanted = {case.id for case in cases.values()}
    _sort_out_others(plan, raw, {case: path for case, path in predictions.files.items() if case not in wanted})


def _sort_out_others(plan: Plan, raw: RawData, files: dict[str, Path]) -> None:
    """Predictions of no expected case: test cases that a split made are passed over, others are wrong."""
    made_by_split = [case for case in files if case in raw.cases and raw.cases[case].part == "test"]
    if made_by_split:
        shown = ", ".join(made_by_split[:3])
        plan.notices.append(
            f"{len(made_by_split)} predictions of test cases that {plan.challenge.key} does not score, such as "
            f"{shown}: passed over."
        )
    for case in sorted(files.keys() - set(made_by_split)):
        plan.problems.append(Problem("extra", str(files[case]), _why_extra(case, raw, plan.challenge)))


def _why_extra(case: str, raw: RawData, challenge: Challenge) -> str:
    if case in raw.cases:
        return f"{case} is a {raw.cases[case].part} case of {raw.name}, none that {challenge.key} scores: move it away"
    return f"{raw.name} has no case {case!r}: move it away, or give the --raw that it was predicted from"


def _add_empty(plan: Plan, section: Section, cases: dict[str, RawCase], template: str | None, notice: str) -> None:
    raw = RawData(Path(), section.folder, plan.challenge.key, None, {}, frozenset({0}), cases)
    expected = expected_files(plan.challenge, section, raw, template)
    plan.expected.append(expected)
    plan.problems += expected.problems
    plan.notices.append(notice)
    plan.names[section.folder] = {}
    for name, case in sorted(expected.cases.items()):
        if case is not None:
            plan.items.append(Item(expected.path(name), case, None, frozenset({0}), {0: 0}, section.values))
