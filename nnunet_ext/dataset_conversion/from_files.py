"""What converters share that know nothing of their data set but what its files and the user's options say."""

from __future__ import annotations

import argparse
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nnunet_ext.dataset_conversion.base import Converter
from nnunet_ext.dataset_conversion.cases import SPLIT_FILES, Case, Found, Layout, Rules, Split
from nnunet_ext.dataset_conversion.class_names import (
    Classes,
    classes_of_json,
    classes_of_words,
    names_missing,
    read_json,
)
from nnunet_ext.dataset_conversion.one_channel import tells
from nnunet_ext.dataset_conversion.raw_tree import place_name
from nnunet_ext.dataset_conversion.sources import Download, SourceFile
from nnunet_ext.errors import UserError

NIFTI = (".nii", ".nii.gz")
UNNAMED = "nobody named the channels: intensities will be z-scored; --channels CT chooses nnU-Net's CT normalisation"
"""A notice."""
_PATIENTS = re.compile(r"(?P<acdc>patient\d{3})_frame\d+|(?P<brats>BraTS-GLI-\d{5})-\d{3}")


class FromFiles(Converter):
    """Base of the converters whose classes and channels come from files or options.

    `find` of a subclass sets `classes` (None where nothing is known), `names` (of the channels), `description` (of
    dataset.json) and `given` (a split that lies beside the data).
    """

    def __init__(
        self,
        channels: Sequence[str] | None = None,
        label_names: Sequence[str] | None = None,
        group: str | None = None,
        unlabelled: bool = False,
    ) -> None:
        """As the options of `add_arguments`.

        Raises:
            UserError: label names or the group's expression are not understood.
        """
        self.channels = tuple(channels or ())
        self.classes: Classes | None = classes_of_words(label_names) if label_names else None
        self.names: tuple[str, ...] = tuple(word.partition("=")[0] for word in self.channels)
        self.unlabelled = unlabelled
        self.description: Mapping[str, Any] = {}
        self.given: Split | None = None
        self.best_split = "cv"
        try:
            self.group = re.compile(group) if group else None
        except re.error as error:
            raise UserError(f"--group {group!r} is no regular expression: {error}") from error

    @classmethod
    def add_arguments(cls, parser: argparse._ArgumentGroup) -> None:
        """Add what is common to these converters."""
        parser.add_argument(
            "--channels", nargs="+", metavar="NAME[=TOKEN]", help="the channels, in order; CT chooses CT normalisation"
        )
        parser.add_argument(
            "--label-names",
            nargs="+",
            metavar="NAME=VALUE",
            help="liver=1 tumour=2; kidneys=2+3 merges; whole=1,2,3 is a region; or a JSON file with such labels",
        )
        parser.add_argument(
            "--group", metavar="REGEX", help="finds the patient in a case id: its first group, or all that it matches"
        )
        parser.add_argument(
            "--unlabelled", action="store_true", help="keep images without a label, as unlabelled cases"
        )

    def layout(self, found: Found) -> Layout:
        """What was read and given; see `Converter.layout`.

        Raises:
            UserError: nobody named the labels, or files have several endings.
        """
        classes = self._classes(found)
        return Layout(
            self.names,
            classes.labels,
            classes.regions_class_order,
            file_ending(found.cases),
            reader=self._text("overwrite_image_reader_writer") or None,
            **{key: self._text(key) for key in ("licence", "reference", "release", "description")},
        )

    def _text(self, key: str) -> str:
        value = self.description.get(key, self.description.get("license") if key == "licence" else None)
        return "" if value is None else str(value)

    def _classes(self, found: Found) -> Classes:
        if self.classes is not None:
            return self.classes
        label = next((case.label for case in found.cases if case.label is not None), None)
        if label is not None:
            raise names_missing(self.key, label)
        return Classes({"background": 0})

    def rules(self, found: Found) -> Rules:
        """See `Converter.rules`. A picture (.png) has its colours in one file, which is not split."""
        nifti = file_ending(found.cases) in NIFTI
        return Rules(
            label_map=self._classes(found).label_map,
            channels=len(self.names) if nifti or not found.cases else len(found.cases[0].images),
            ct=len(self.names) == 1 and self.names[0].upper() == "CT",
            nan="minimum" if "CT" in (name.upper() for name in self.names) else "zero",
        )

    def own_splits(self, cases: Sequence[Case]) -> dict[str, Callable[[], Split]]:
        """The split that lies beside the data, if any."""
        given = self.given
        return {} if given is None else {given.name: lambda: given}

    def default_split(self) -> str:
        """What `find` saw fit."""
        return self.best_split

    def default_name(self, download: Download) -> str:
        """The folder's or file's name, without what nnU-Net does not take."""
        return self.clean_name(place_name(download))

    def clean_name(self, text: str) -> str:
        """Letters, digits, dash and underscore of a text; the class's name without any."""
        text = re.sub(r"^(Task|Dataset)\d+_", "", text, flags=re.IGNORECASE)
        return re.sub(r"[^A-Za-z0-9_-]+", "_", text).strip("_-") or self.name

    def grouped(self, cases: Sequence[Case]) -> tuple[tuple[Case, ...], tuple[str, ...]]:
        """The cases with the patients that `--group` finds; without it, with those of ids known to tell them.

        Returns:
            The cases, and notices.

        Raises:
            UserError: the expression fits no id.
        """
        matches = {case.id: (self.group or _PATIENTS).search(case.id) for case in cases}
        unknown = [case for case, match in matches.items() if match is None]
        if self.group is not None and cases and len(unknown) == len(cases):
            raise UserError(f"--group {self.group.pattern!r} fits none of the case ids, such as {tells(unknown, 3)}")
        made = []
        for case in cases:
            match = matches[case.id]
            found = next(filter(None, match.groups()), match[0]) if match is not None else ""
            made.append(replace(case, group=found or case.group or case.id))
        notices = (f"--group fits not: {tells(unknown)}; each is a group of its own",) if self.group and unknown else ()
        return tuple(made), notices

    def classes_from(self, description: Mapping[str, Any], where: str) -> None:
        """Take the classes of a dataset.json, unless the user named them."""
        if self.classes is None and description.get("labels"):
            self.classes = classes_of_json(description, where)

    def published_that_fits(self, cases: Sequence[Case]) -> str | None:
        """The first of `published_splits` all of whose cases are there with a label."""
        labelled = {case.id for case in cases if case.label is not None}
        for name in self.published_splits:
            split = read_json(SPLIT_FILES / f"{name}.json")
            if labelled.issuperset([*split["train"], *split.get("val", ()), *split.get("test", ())]):
                return name
        return None


def file_ending(cases: Sequence[Case]) -> str:
    """The ending that the data set's files will have: that of the download's, NIfTI files compressed.

    Raises:
        UserError: there are several, or it is one that nnU-Net doesn't read.
    """
    endings: dict[str, SourceFile] = {}
    for case in cases:
        for file in (*case.images, *([case.label] if case.label is not None else [])):
            endings.setdefault(".nii.gz" if file.ending in NIFTI else file.ending, file)
    if len(endings) > 1:
        seen = ", ".join(f"{ending} ({file.where})" for ending, file in sorted(endings.items()))
        raise UserError(f"all images and labels must be of one format, but there are {seen}: convert them first.")
    ending = next(iter(endings), ".nii.gz")
    if ending == ".mhd":
        raise UserError(".mhd keeps its voxels in a second file, which nnU-Net does not read: save as .mha or .nii.gz.")
    return ending


def split_file(download: Download, cases: Sequence[Case]) -> tuple[Split | None, tuple[str, ...]]:
    """The split of a splits_final.json or nnU-Net v1's splits_final.pkl in a download.

    Returns:
        It, or None; and notices on what cannot be used.
    """
    labelled = {case.id for case in cases if case.part == "training"}
    notices = []
    for file in (*download.named("splits_final.json"), *download.named("splits_final.pkl")):
        try:
            folds = tuple((_ids(fold, "train"), _ids(fold, "val")) for fold in _split_content(file))
        except (UserError, TypeError, KeyError, ValueError) as error:
            notices.append(f"{file.where}: not a split that can be used ({error})")
            continue
        missing = sorted({case for train, val in folds for case in (*train, *val)} - labelled)
        if folds and not missing:
            return Split("splits_final", folds, source=file.where), tuple(notices)
        notices.append(f"{file.where}: not offered as a split: it names cases that are not there: {tells(missing)}")
    return None, tuple(notices)


def _ids(fold: Any, part: str) -> tuple[str, ...]:
    return tuple(str(case) for case in fold[part])


def _split_content(file: SourceFile) -> Any:
    from nnunet_ext.weights.pickles import read_pickle

    if file.ending == ".json":
        import json

        return json.loads(file.text())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / file.base
        path.write_bytes(file.read())
        return read_pickle(path)
