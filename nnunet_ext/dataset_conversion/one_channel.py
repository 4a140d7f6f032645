"""Data sets with one image and at most one label a case: join the files by case id and sort out who lacks what."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nnunet_ext.dataset_conversion.base import one_file_each, pair
from nnunet_ext.dataset_conversion.cases import Case, Fault, Part
from nnunet_ext.dataset_conversion.sources import SourceFile

Claims = Sequence[tuple[str, SourceFile]]


def one_channel_cases(
    images: Claims,
    labels: Claims,
    *,
    part_of: Callable[[str], Part],
    label_name: Callable[[str], str],
    details: Callable[[str], Mapping[str, Any]] = lambda case: {},
) -> tuple[tuple[Case, ...], tuple[Fault, ...]]:
    """Make cases of (case id, file) claims.

    Args:
        images: which files claim to be the image of which case.
        labels: the same of labels.
        part_of: case id -> training (a label is needed), test or unlabelled.
        label_name: case id -> what its label should be called, for the message when it is missing.
        details: case id -> the case's details.

    Returns:
        The cases with all files, and the faults: two files for one id, a label without image, a training image without
        label. Each case has one fault at most. Both are sorted by id, numbers by value.
    """
    files, image_faults = one_file_each(images, "image")
    references, label_faults = one_file_each(labels, "label")
    faults = {fault.case: fault for fault in (*label_faults, *image_faults)}
    complete, unpaired = pair(
        {case: [file] for case, file in files.items() if case not in faults},
        {case: file for case, file in references.items() if case not in faults},
    )
    faults.update({fault.case: fault for fault in unpaired})
    cases = []
    for case, (found, label) in complete.items():
        part = part_of(case)
        if part == "training" and label is None:
            faults[case] = Fault(
                case,
                f"no label for {found[0].where}: {label_name(case)} was expected. Are the labels part of the download?",
            )
        else:
            cases.append(Case(case, part, found, label, case, details(case)))
    return (
        tuple(sorted(cases, key=lambda case: by_number(case.id))),
        tuple(sorted(faults.values(), key=lambda fault: by_number(fault.case))),
    )


def by_number(case: str) -> list[tuple[bool, int, str]]:
    """A key that sorts ids by the values of the numbers in them: liver_2 before liver_10."""
    return [(bool(digits), int(digits or 0), text) for digits, text in re.findall(r"(\d+)|(\D+)", case)]


def in_folder(file: SourceFile, beginning: str) -> bool:
    """Whether some folder on the way to a file begins like this, in any case of letters."""
    return any(part.lower().startswith(beginning) for part in file.name.split("/")[:-1])


def tells(names: Sequence[str], most: int = 5) -> str:
    """A few names for a message: all if they are few, else the first ones and how many there are."""
    if len(names) <= most:
        return ", ".join(names)
    return f"{', '.join(names[:most])} and {len(names) - most} more"
