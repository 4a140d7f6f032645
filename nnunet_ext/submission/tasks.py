"""The ten tasks of the Medical Segmentation Decathlon (specification datasets, section 3.8)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
        folder: its name, in the download and in a submission.
        prefix: of its cases' ids.
        test_cases: how many there are.
        last_label: labels go from 0 to it.
    """

    folder: str
    prefix: str
    test_cases: int
    last_label: int


TASKS = (
    Task("Task01_BrainTumour", "BRATS", 266, 3),
    Task("Task02_Heart", "la", 10, 1),
    Task("Task03_Liver", "liver", 70, 2),
    Task("Task04_Hippocampus", "hippocampus", 130, 2),
    Task("Task05_Prostate", "prostate", 16, 2),
    Task("Task06_Lung", "lung", 32, 1),
    Task("Task07_Pancreas", "pancreas", 139, 2),
    Task("Task08_HepaticVessel", "hepaticvessel", 140, 2),
    Task("Task09_Spleen", "spleen", 20, 1),
    Task("Task10_Colon", "colon", 64, 1),
)


def task_of(cases: Iterable[str]) -> Task | None:
    """The task that case ids belong to, by their prefix; None: no task of the Decathlon, or several."""
    prefixes = {match[1] if (match := re.fullmatch(r"([A-Za-z]+)_\d+", case)) else None for case in cases}
    return next((task for task in TASKS if prefixes == {task.prefix}), None)
