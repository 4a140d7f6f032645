"""Tolerances of the surface Dice (NSD) that challenges set, in mm (specification evaluation, sections 3.3 and 3.4)."""

from __future__ import annotations

from nnunet_ext.errors import UserError

FLARE22: dict[int, float] = {
    1: 5.0,
    2: 3.0,
    3: 3.0,
    4: 5.0,
    5: 2.0,
    6: 2.0,
    7: 2.0,
    8: 2.0,
    9: 2.0,
    10: 3.0,
    11: 5.0,
    12: 7.0,
    13: 3.0,
}
"""Label -> tolerance."""

MSD: dict[str, float] = {
    "BrainTumour": 5.0,
    "Heart": 4.0,
    "Liver": 7.0,
    "Hippocampus": 1.0,
    "Prostate": 4.0,
    "Lung": 2.0,
    "Pancreas": 5.0,
    "HepaticVessel": 3.0,
    "Spleen": 3.0,
    "Colon": 4.0,
}
"""Task -> tolerance of each of its labels, in the order of the tasks' numbers; as the challenge's paper states them."""

AMOS = 1.0
"""The challenge states none; re-implementations use this one."""


def msd_tolerance(task: str) -> float:
    """The tolerance of a task of the Medical Segmentation Decathlon.

    Args:
        task: number, name or folder, such as "4", "Hippocampus" or "Task04_Hippocampus"; case does not matter.

    Raises:
        UserError: an unknown task.
    """
    wanted = task.lower().removeprefix("task")
    for number, name in enumerate(MSD, start=1):
        if wanted in (name.lower(), str(number), f"{number:02d}", f"{number:02d}_{name.lower()}"):
            return MSD[name]
    raise UserError(f"no tolerance for the task {task!r}; known are {', '.join(MSD)}. Give the tolerance in mm.")
