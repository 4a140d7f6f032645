"""The ten tasks of the Medical Segmentation Decathlon, for downloads whose dataset.json is incomplete."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
        number: 1 to 10.
        name: without the number.
        prefix: of case ids, before the number.
        training: cases of the release with a label.
        test: cases of the release without one.
        channels: names, in the order of the fourth axis where there are several.
        labels: names of 1, 2, ...
    """

    number: int
    name: str
    prefix: str
    training: int
    test: int
    channels: tuple[str, ...]
    labels: tuple[str, ...]

    @property
    def folder(self) -> str:
        """Name of the download's folder, and of the folder in a submission."""
        return f"Task{self.number:02d}_{self.name}"


_CT, _MRI, _BRAIN = ("CT",), ("MRI",), ("FLAIR", "T1w", "t1gd", "T2w")
TASKS: tuple[Task, ...] = (
    Task(1, "BrainTumour", "BRATS", 484, 266, _BRAIN, ("edema", "non-enhancing tumor", "enhancing tumour")),
    Task(2, "Heart", "la", 20, 10, _MRI, ("left atrium",)),
    Task(3, "Liver", "liver", 131, 70, _CT, ("liver", "cancer")),
    Task(4, "Hippocampus", "hippocampus", 260, 130, _MRI, ("Anterior", "Posterior")),
    Task(5, "Prostate", "prostate", 32, 16, ("T2", "ADC"), ("PZ", "TZ")),
    Task(6, "Lung", "lung", 63, 32, _CT, ("cancer",)),
    Task(7, "Pancreas", "pancreas", 281, 139, _CT, ("pancreas", "cancer")),
    Task(8, "HepaticVessel", "hepaticvessel", 303, 140, _CT, ("Vessel", "Tumour")),
    Task(9, "Spleen", "spleen", 41, 20, _CT, ("spleen",)),
    Task(10, "Colon", "colon", 126, 64, _CT, ("colon cancer primaries",)),
)


def task_of(folder: str, case_id: str) -> Task | None:
    """The task that a folder's files belong to: as its cases are called, else as the folder is.

    Args:
        folder: such as Task04_Hippocampus.
        case_id: of any case, such as hippocampus_001.
    """
    prefix = case_id.rpartition("_")[0].lower()
    for task in TASKS:
        if task.prefix.lower() == prefix:
            return task
    return next((task for task in TASKS if folder.lower() == task.folder.lower()), None)
