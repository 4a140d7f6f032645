"""What every converter is: a description of a data set, and a function that finds its cases in a download.

Checking, linking, writing, splitting and reporting are the same for all of them (`run.convert`).
"""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from nnunet_ext.dataset_conversion.cases import Case, Fault, Found, Layout, Rules, Split
from nnunet_ext.dataset_conversion.sources import Download, SourceFile
from nnunet_ext.errors import UserError


class Converter:
    """One data set. A subclass states the attributes and writes `find`, `layout` and `rules`.

    Options of its own are keyword arguments of its constructor; `add_arguments` adds them to the command line, where
    their names are the same.

    Attributes:
        key: its name on the command line.
        number: default of nnU-Net's data set id.
        name: default of nnU-Net's data set name, without the id.
        summary: one line for the list of data sets.
        get_it: where to download it, and its licence; one or two sentences.
        looks_like: what the download must look like, for the message when nothing is found.
        published_splits: names of files in `splits/` that fit, the default first; none: cross-validation.
        skip: regular expression of base names that `find` must not see.
        expected: cases of the complete release, per part; others are noticed.
    """

    key: ClassVar[str]
    number: ClassVar[int]
    name: ClassVar[str]
    summary: ClassVar[str]
    get_it: ClassVar[str]
    looks_like: ClassVar[str]
    published_splits: ClassVar[tuple[str, ...]] = ()
    skip: ClassVar[str | None] = None
    expected: ClassVar[Mapping[str, int]] = {}

    @classmethod
    def add_arguments(cls, parser: argparse._ArgumentGroup) -> None:
        """Add the options of this data set alone."""

    @classmethod
    def from_arguments(cls, arguments: Mapping[str, Any]) -> Converter:
        """Make one of parsed arguments, of which it takes those that its constructor names."""
        return cls(**cls.own_arguments(arguments))

    @classmethod
    def own_arguments(cls, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Those of the arguments that the constructor names."""
        return {name: arguments[name] for name in inspect.signature(cls).parameters if name in arguments}

    def default_number(self, download: Download) -> int:
        """nnU-Net's id, where the user gives none."""
        return self.number

    def default_name(self, download: Download) -> str:
        """nnU-Net's name, where the user gives none."""
        return self.name

    def find(self, download: Download) -> Found:
        """Find the cases by their files' names, and pair images and labels by case id.

        Args:
            download: all files of it.

        Raises:
            UserError: the download is not this data set (see `nothing_found`).
        """
        raise NotImplementedError

    def layout(self, found: Found) -> Layout:
        """Describe the data set that is made."""
        raise NotImplementedError

    def rules(self, found: Found) -> Rules:
        """Say how its files are checked."""
        raise NotImplementedError

    def own_splits(self, cases: Sequence[Case]) -> dict[str, Callable[[], Split]]:
        """Splits that are rules instead of files: name -> what makes one for these cases.

        Args:
            cases: those with a label, sorted by id.
        """
        return {}

    def default_split(self) -> str:
        """The name of the split that is written when none is asked for."""
        return self.published_splits[0] if self.published_splits else "cv"

    def nothing_found(self, download: Download) -> UserError:
        """The error for a download that holds no case of this data set."""
        endings: dict[str, int] = {}
        for file in download.files:
            endings[file.ending or "(none)"] = endings.get(file.ending or "(none)", 0) + 1
        counted = ", ".join(f"{count} {ending}" for ending, count in sorted(endings.items(), key=lambda e: -e[1])[:4])
        seen = ", ".join(file.name for file in download.files[:3])
        notices = "".join(f"\n  {notice}" for notice in download.notices[:5])
        return UserError(
            f"{self.key}: no case found in {', '.join(map(str, download.roots))} ({counted}; such as {seen}). "
            f"Expected: {self.looks_like}{notices}"
        )


def pair(
    images: Mapping[str, Sequence[SourceFile | None]],
    labels: Mapping[str, SourceFile],
    *,
    channels: Sequence[str] = ("the image",),
) -> tuple[dict[str, tuple[tuple[SourceFile, ...], SourceFile | None]], list[Fault]]:
    """Join images and labels by case id; never by their order.

    Args:
        images: case id -> one file a channel, None where it is missing.
        labels: case id -> label.
        channels: what to call each channel in a message.

    Returns:
        The cases with all channels (their label may be None), and the faults: a channel is missing, or a label has no
        image.
    """
    complete: dict[str, tuple[tuple[SourceFile, ...], SourceFile | None]] = {}
    faults = []
    for case, files in images.items():
        missing = [name for name, file in zip(channels, files, strict=True) if file is None]
        if missing:
            near = next((file.where for file in files if file is not None), "the download")
            faults.append(Fault(case, f"{', '.join(missing)} missing (beside {near}): the download is incomplete."))
        else:
            complete[case] = (tuple(file for file in files if file is not None), labels.get(case))
    faults += [
        Fault(case, f"the label {label.where} has no image: the download is incomplete.")
        for case, label in labels.items()
        if case not in images
    ]
    return complete, faults


def one_file_each(
    claims: Sequence[tuple[str, SourceFile]], what: str = "file"
) -> tuple[dict[str, SourceFile], list[Fault]]:
    """Let each case id have one file; ids that several files claim are faults (duplicate id).

    Args:
        claims: (case id, file) as found.
        what: for the message, such as "label".

    Returns:
        Case id -> file, without those claimed twice; and the faults.
    """
    by_case: dict[str, list[SourceFile]] = {}
    for case, file in claims:
        by_case.setdefault(case, []).append(file)
    faults = [
        Fault(
            case,
            f"duplicate id: {len(files)} files claim to be its {what}: {', '.join(file.where for file in files)}. "
            "Move all but the right one out of the download.",
        )
        for case, files in by_case.items()
        if len(files) > 1
    ]
    return {case: files[0] for case, files in by_case.items() if len(files) == 1}, faults
