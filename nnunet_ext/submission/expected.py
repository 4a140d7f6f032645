"""Which files a submission must have, and which case each is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from nnunet_ext.dataset_conversion.msd_tasks import TASKS, task_of
from nnunet_ext.errors import UserError
from nnunet_ext.submission.challenges import Challenge, Section, name_fields
from nnunet_ext.submission.problems import Problem
from nnunet_ext.submission.raw_data import RawCase, RawData


@dataclass
class Expected:
    """The files of one section.

    Attributes:
        section: which.
        cases: file name -> its case; None: the case is not in the raw data set, or there is none given.
        closed: no other names are allowed; otherwise those that the section's pattern fits are.
        problems: of kind "missing" where the raw data set lacks cases, and others.
        notices: what may matter.
    """

    section: Section
    cases: dict[str, RawCase | None]
    closed: bool
    problems: list[Problem] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)

    def path(self, name: str) -> str:
        """A file's name in the submission, with its folder."""
        return f"{self.section.folder}/{name}" if self.section.folder else name


def expected_files(challenge: Challenge, section: Section, raw: RawData | None, template: str | None) -> Expected:
    """The files of a section.

    Args:
        challenge: whose.
        section: one of the challenge's.
        raw: the data set with its cases; None: only official lists are used.
        template: of the names, in place of the challenge's.
    """
    official = challenge.official_names(section, template)
    expected = Expected(section, dict.fromkeys(official), closed=bool(official) or raw is not None)
    if raw is None:
        return expected
    for case in raw.cases.values():
        if section.takes(case):
            _add(expected, challenge, case, official, template)
    if official:
        expected.problems += [
            Problem("missing", expected.path(name), f"its image is not among the cases of {raw.name}")
            for name, case in expected.cases.items()
            if case is None
        ]
    _compare_count(expected, raw.name)
    return expected


def _add(
    expected: Expected, challenge: Challenge, case: RawCase, official: Sequence[str], template: str | None
) -> None:
    fields = name_fields(case)
    if official and not _may_be_official(fields, expected.section):
        return
    try:
        name = challenge.file_name(fields, template)
    except UserError as error:
        expected.problems.append(Problem("name", case.id, str(error)))
        return
    if official and name not in expected.cases:
        return
    other = expected.cases.get(name)
    if other is not None:
        expected.problems.append(
            Problem("name", case.id, f"its file would be called {name}, as that of {other.id}: change --name-template")
        )
        return
    expected.cases[name] = case


def _may_be_official(fields: Mapping[str, object], section: Section) -> bool:
    """Whether what a case and the official cases both state is the same for one of these."""
    return any(
        all(fields[name] == value for name, value in official.items() if name in fields)
        for official in section.official
    )


def _compare_count(expected: Expected, name: str) -> None:
    section, found = expected.section, len(expected.cases)
    if section.count is not None and found < section.count:
        text = f"{name} has {found} of the challenge's {section.count} cases: convert the whole download"
        expected.problems.append(Problem("missing", section.folder or name, text))
    elif section.count is not None and found > section.count:
        text = f"{name} has {found} cases for the challenge, which has {section.count}"
        expected.problems.append(Problem("extra", section.folder or name, text))
    if section.stated is not None and found != section.stated:
        expected.notices.append(f"{name} has {found} cases for the challenge; {section.stated} are spoken of.")


def section_of(challenge: Challenge, raw: RawData) -> Section:
    """The section that a data set's cases belong to.

    Raises:
        UserError: they are of no task of the Decathlon.
    """
    if len(challenge.sections) == 1:
        return challenge.sections[0]
    tasks = {task_of(str(case.details.get("task", "")), case.id) for case in raw.cases.values()}
    task = tasks.pop() if len(tasks) == 1 else None
    if task is None:
        raise UserError(
            f"{raw.name}: its case ids (such as {', '.join(list(raw.cases)[:2]) or 'none'}) are of no task of the "
            f"Decathlon; expected are ids such as {', '.join(f'{task.prefix}_001' for task in TASKS[:3])}."
        )
    return next(section for section in challenge.sections if section.folder == task.folder)
