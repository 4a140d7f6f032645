"""How a data set is converted, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from nnunet_ext.dataset_conversion.cases import Fault

CHECKS = ("none", "fast", "full")
MODES = ("symlink", "hardlink", "copy")
REORIENT = ("default", "none", "reader", "files")


@dataclass(frozen=True)
class Options:
    """How a data set is converted, whichever it is.

    Attributes:
        number: nnU-Net's data set id; None: the data set's default.
        name: without the id; None: the data set's default.
        processes: that work at the same time.
        mode: for files that are right as they are, one of `MODES`.
        check: one of `CHECKS`; "none" leaves out nnU-Net's verification, too.
        splits: names of splits, in the order of their folds; none: the data set's default.
        with_cv, hold_out: see `partition.resolve`.
        strict: stop at the first bad case.
        dry_run: write nothing.
        force: convert finished cases again, and replace a splits_final.json that others made.
        fix_nan: replace NaN and infinities in images.
        copy_geometry: labels get the geometry of their image.
        reorient: "reader": nnU-Net reads all images in RAS; "files": they are written so; "none"; "default": what suits
            the data set.
        keep_ending: uncompressed .nii files stay so.
    """

    number: int | None = None
    name: str | None = None
    processes: int = 1
    mode: str = "symlink"
    check: str = "full"
    splits: tuple[str, ...] = ()
    with_cv: bool = False
    hold_out: bool = False
    strict: bool = False
    dry_run: bool = False
    force: bool = False
    fix_nan: bool = False
    copy_geometry: bool = False
    reorient: str = "default"
    keep_ending: bool = False


@dataclass
class Report:
    """What came of a conversion.

    Attributes:
        name: nnU-Net's name of the data set.
        folder: its raw folder.
        counts: part -> cases.
        skipped: cases that an earlier run had finished.
        faults: cases that were left out.
        notices: what a user should know.
        actions: "link", "copy", "write", "keep" -> files.
        labels: name -> (cases that have it, voxels), of the labelled cases.
        folds: what the splits are called, and their sizes.
        problem: what nnU-Net's verification says, if it is not content.
        seconds: it took.
        dry_run: nothing was written.
    """

    name: str
    folder: Path
    counts: dict[str, int] = field(default_factory=dict)
    skipped: int = 0
    faults: list[Fault] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    actions: dict[str, int] = field(default_factory=dict)
    labels: dict[str, tuple[int, int]] = field(default_factory=dict)
    folds: list[str] = field(default_factory=list)
    problem: str | None = None
    seconds: float = 0.0
    dry_run: bool = False

    @property
    def ok(self) -> bool:
        """Whether all cases are in the data set and nnU-Net is content."""
        return not self.faults and self.problem is None
