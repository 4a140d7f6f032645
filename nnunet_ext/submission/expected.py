"""Which files a submission must have, and which case each is."""

from __future__ import annotations

import re
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
        pattern: regular expression of further names that are allowed; "": there are none.
        problems: of kind "missing" where the raw data set lacks cases, and others.
        notices: what may matter.
    """

    section: Section
    cases: dict[str, RawCase | None]
    pattern: str = ""
    problems: list[Problem] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)

    def path(self, name: str) -> str:
        """A file's name in the submission, with its folder."""
        return f"{self.section.folder}/{name}" if self.section.folder else name

    def fits(self, name: str) -> bool:
        """Whether a file may be called so."""
        return name in self.cases or (self.pattern != "" and re.fullmatch(self.pattern, name) is not None)


def expected_files(challenge: Challenge, section: Section, raw: RawData | None, template: str | None) -> Expected:
    """The files of a section.

    Args:
        challenge: whose.
        section: one of the challenge's.
        raw: the data set with its cases; None: only official lists are used.
        template: of the names, in place of the challenge's.

    Raises:
        UserError: the data set has no case of the challenge's, or the names cannot be made.
    """
    if raw is None:
        names = challenge.official_names(section, template)
        return Expected(section, dict.fromkeys(names), challenge.name_pattern(section, template))
    expected = Expected(section, {})
    found: dict[int, RawCase] = {}
    for case in raw.cases.values():
        if section.takes(case):
            _add(expected, found, challenge, case, template)
    if not expected.cases and not expected.problems:
        raise UserError(
            f"{raw.name} has none of {challenge.key}'s cases{_example(section)}; its own are such as "
            f"{', '.join(list(raw.cases)[:2]) or '(none)'}: is it the right --raw?"
        )
    for number, fields in enumerate(section.official):
        if number not in found:
            name = challenge.file_name(fields)
            expected.cases.setdefault(name, None)
            text = f"its image is not among the cases of {raw.name}"
            expected.problems.append(Problem("missing", expected.path(name), text))
    _compare_count(expected, raw.name)
    return expected


def _example(section: Section) -> str:
    first = next(iter(section.official), None)
    return f" ({', '.join(str(value) for value in first.values())})" if first else ""


def _add(
    expected: Expected, found: dict[int, RawCase], challenge: Challenge, case: RawCase, template: str | None
) -> None:
    """Add a case if it is the challenge's: what it and an official case both state is the same, or its id fits."""
    section, fields = expected.section, name_fields(case)
    official = [
        number
        for number, known in enumerate(section.official)
        if all(fields[name] == value for name, value in known.items() if name in fields)
    ]
    if section.official and not official and not (section.pattern and re.fullmatch(section.pattern, case.id)):
        return
    try:
        name = challenge.file_name(fields, template)
    except UserError as error:
        expected.problems.append(Problem("name", case.id, str(error)))
        return
    if len(official) > 1:
        lacking = sorted(set(section.official[0]) - set(fields))
        text = f"conversion.json does not state its {' and '.join(lacking)}: convert the download again"
        expected.problems.append(Problem("name", case.id, text))
        return
    other = expected.cases.get(name)
    if other is not None:
        text = f"its file would be called {name}, as that of {other.id}: change --name-template"
        expected.problems.append(Problem("name", case.id, text))
        return
    found.update(dict.fromkeys(official, case))
    expected.cases[name] = case


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
