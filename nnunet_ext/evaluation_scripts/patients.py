"""Which cases are of one patient, and in which phase of the heart: from conversion.json, or from case ids."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from nnunet_ext.errors import UserError
from nnunet_ext.submission.raw_data import FILE, read_raw

_FRAME = re.compile(r"(patient\d+)_frame\d+")
"""ACDC's names of cases; the frame does not tell the phase."""


@dataclass(frozen=True)
class CaseDetails:
    """Of one case.

    Attributes:
        patient: an id.
        phase: "ED" or "ES"; None: unknown.
    """

    patient: str
    phase: str | None


def read_details(raw: str | None, references: Path) -> dict[str, CaseDetails]:
    """Of all cases of a data set that `nnunet-ext convert` made; nothing where there is none.

    Args:
        raw: its name, number or folder; None: the folder above the references, if it is one.
        references: folder of label maps.

    Raises:
        UserError: `raw` is no such data set.
    """
    if raw is None:
        if not (references.absolute().parent / FILE).is_file():
            return {}
        raw = str(references.absolute().parent)
    cases = read_raw(raw).cases
    return {name: CaseDetails(case.group, case.details.get("phase")) for name, case in cases.items()}


def patients_of(
    cases: Iterable[str], pattern: str | None, details: Mapping[str, CaseDetails]
) -> tuple[dict[str, str] | None, str]:
    """The patient of each case, where patients have several.

    Args:
        cases: ids.
        pattern: regular expression; what its first group matches in an id (without groups: all that it matches) is
            the patient. None: conversion.json's patients, or those of ids such as patient001_frame01.
        details: of conversion.json.

    Returns:
        Case -> patient, and in words where from; None: every case is its own.

    Raises:
        UserError: no regular expression, or one that does not match an id.
    """
    ids = list(cases)
    if pattern is not None:
        return _matched(ids, pattern), f"patients by --groups {pattern}"
    if details and all(case in details for case in ids):
        found, source = {case: details[case].patient for case in ids}, f"patients by {FILE}"
    elif all(_FRAME.fullmatch(case) for case in ids):
        found, source = _matched(ids, _FRAME.pattern), "patients by names such as patient001_frame01"
    else:
        return None, "cases"
    return (found, source) if len(set(found.values())) < len(ids) else (None, "cases")


def _matched(cases: Iterable[str], pattern: str) -> dict[str, str]:
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise UserError(f"--groups {pattern}: no regular expression ({error})") from error
    found = {}
    for case in cases:
        match = expression.search(case)
        if match is None or (expression.groups and match[1] is None):
            raise UserError(f"--groups {pattern}: does not match the case {case}")
        found[case] = match[1] if expression.groups else match[0]
    return found
