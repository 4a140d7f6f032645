"""What the years of BraTS have in common: four MR sequences and a segmentation a case, in a folder of the case.

Files are paired by the case id in their names, never by their order in the folder.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, ClassVar

from nnunet_ext.dataset_conversion.base import Converter, one_file_each, pair
from nnunet_ext.dataset_conversion.cases import Case, Fault, Found, Layout, Part, Rules
from nnunet_ext.dataset_conversion.sources import Download, SourceFile
from nnunet_ext.errors import UserError

NAMES: dict[str, str] = {
    "brats2020": r"(?P<id>BraTS20_(Training|Validation)_\d{3})",
    "brats2021": r"(?P<id>BraTS2021_\d{5})",
    "brats2023gli": r"(?P<id>BraTS-GLI-\d{5}-\d{3})",
    "brats2024gli": r"(?P<id>BraTS-GLI-\d{5}-\d{3})",
}
"""Key -> regular expression of its case ids."""
CHANNELS = ("T1", "T1ce", "T2", "Flair")
NESTED_LABELS: dict[str, int | tuple[int, ...]] = {
    "background": 0,
    "edema": 1,
    "necrosis and non-enhancing tumor": 2,
    "enhancing tumor": 3,
}
NESTED_REGIONS: dict[str, int | tuple[int, ...]] = {
    "background": 0,
    "whole tumor": (1, 2, 3),
    "tumor core": (2, 3),
    "enhancing tumor": 3,
}
"""nnU-Net's own convention: edema 1, necrosis 2, enhancing tumour 3, so that regions nest by value."""
_STRAY = re.compile(r".*segm?\.nii(\.gz)?", re.I)
_Complete = Mapping[str, tuple[tuple[SourceFile, ...], SourceFile | None]]
"""Case id -> one file a sequence, and the segmentation."""


@dataclass
class _Files:
    """Files by case id, and what is wrong with some cases."""

    images: dict[str, list[SourceFile | None]]
    labels: dict[str, SourceFile]
    faults: dict[str, Fault]
    notices: dict[str, str]


class BraTS(Converter):
    """One year of BraTS.

    Attributes:
        suffixes: what follows the case id in the files' names, in the order of `CHANNELS`.
        segmentation: the same of the segmentation.
        label_map: the download's value -> nnU-Net's; None: the same.
        value_hints: see `Rules`.
        plain, nested: labels without and with regions.
        order: regions_class_order.
        about: licence, reference, release and description for dataset.json.
    """

    suffixes: ClassVar[tuple[str, ...]]
    segmentation: ClassVar[str]
    label_map: ClassVar[Mapping[int, int] | None]
    value_hints: ClassVar[Mapping[int, str]] = {}
    plain: ClassVar[Mapping[str, int | tuple[int, ...]]] = NESTED_LABELS
    nested: ClassVar[Mapping[str, int | tuple[int, ...]]] = NESTED_REGIONS
    order: ClassVar[tuple[int, ...]] = (1, 2, 3)
    about: ClassVar[Mapping[str, str]]

    def __init__(self, regions: bool = True) -> None:
        """Make it.

        Args:
            regions: the labels are nnU-Net's regions (whole tumour, tumour core, ...) instead of plain labels.
        """
        self.regions = regions

    @classmethod
    def add_arguments(cls, parser: argparse._ArgumentGroup) -> None:
        """Add ``--no-regions``."""
        parser.add_argument(
            "--no-regions",
            dest="regions",
            action="store_false",
            help="plain labels instead of the regions that the challenge evaluates",
        )

    def find(self, download: Download) -> Found:
        """Find the cases; those of a folder without any segmentation, or called validation, are test cases.

        Raises:
            UserError: there is no file of this year's names.
        """
        files = self._files(download)
        complete, faults = pair(files.images, files.labels, channels=self.suffixes)
        for fault in faults:
            files.faults.setdefault(fault.case, fault)
        parts = _parts(download, complete)
        cases = []
        for case_id, (images, label) in complete.items():
            if label is None and parts[case_id] == "training":
                wanted = f"{case_id}{self.segmentation}.nii.gz"
                reason = f"no segmentation (expected {wanted} beside {images[0].where}): the download is incomplete."
                files.faults.setdefault(case_id, Fault(case_id, reason))
            if case_id not in files.faults:
                notices = (files.notices[case_id],) if case_id in files.notices else ()
                details = self.details(case_id)
                made = Case(case_id, parts[case_id], images, label, self.group(case_id), details, notices)
                cases.append(made)
        cases.sort(key=lambda case: case.id)
        faulty = tuple(files.faults[case] for case in sorted(files.faults))
        return Found(tuple(cases), faulty, self.download_notices([case.id for case in cases]))

    def layout(self, found: Found) -> Layout:
        """Four sequences; regions or plain labels."""
        return Layout(
            CHANNELS,
            self.nested if self.regions else self.plain,
            self.order if self.regions else None,
            licence=self.about["licence"],
            reference=self.about["reference"],
            release=self.about["release"],
            description=self.about["description"],
        )

    def rules(self, found: Found) -> Rules:
        """All images of a case were registered, resampled to 1 mm and segmented in the same voxels."""
        return Rules(self.label_map, self.value_hints, channels=len(CHANNELS), aligned=True, nan="zero")

    def group(self, case_id: str) -> str:
        """The patient."""
        return case_id

    def details(self, case_id: str) -> dict[str, Any]:
        """What is worth keeping of a case."""
        return {}

    def download_notices(self, cases: Sequence[str]) -> tuple[str, ...]:
        """What is odd about the cases as a whole."""
        return ()

    def nothing_found(self, download: Download) -> UserError:
        """Also tells another year's download."""
        years = [
            key
            for key, name in NAMES.items()
            if name != NAMES[self.key] and next(download.matching(name + ".*"), None) is not None
        ]
        if not years:
            return super().nothing_found(download)
        return UserError(
            f"{self.key}: no case found in {', '.join(map(str, download.roots))}, but files that are named like those "
            f"of {' or '.join(years)}: use `nnunet-ext convert {years[0]}`, or name the download of this year. "
            f"Expected: {self.looks_like}"
        )

    def _files(self, download: Download) -> _Files:
        """Sort the files by case and sequence.

        Raises:
            UserError: there is none.
        """
        kinds = (*self.suffixes, self.segmentation)
        claims: dict[str, list[tuple[str, SourceFile]]] = {kind: [] for kind in kinds}
        pattern = rf"{NAMES[self.key]}(?P<kind>{'|'.join(kinds)})\.nii(\.gz)?"
        for file, match in download.matching(pattern):
            claims[match["kind"].lower()].append((_canonical(self.key, match["id"]), file))
        if not any(claims.values()):
            raise self.nothing_found(download)
        files = _Files({}, {}, {}, {})
        strays = list(self._strays(download, pattern))
        segmented = {case for case, _ in claims[self.segmentation]}
        for case, file in strays:
            if case not in segmented:
                claims[self.segmentation].append((case, file))
                files.notices[case] = _stray_notice(case, self.segmentation, file)
        for position, kind in enumerate(kinds):
            single, faults = one_file_each(claims[kind], f"{kind} file")
            for fault in faults:
                files.faults.setdefault(fault.case, fault)
            if kind == self.segmentation:
                files.labels.update(single)
                continue
            for case, file in single.items():
                files.images.setdefault(case, [None] * len(self.suffixes))[position] = file
        return files

    def _strays(self, download: Download, pattern: str) -> Iterator[tuple[str, SourceFile]]:
        """Segmentations in a case's folder that are not named like the case."""
        regular = re.compile(pattern, re.I)
        folder = re.compile(NAMES[self.key], re.I)
        for file in download.images():
            if not _STRAY.fullmatch(file.base) or regular.fullmatch(file.base):
                continue
            for parent in reversed(PurePosixPath(file.name).parts[:-1]):
                match = folder.fullmatch(parent)
                if match:
                    yield _canonical(self.key, match["id"]), file
                    break


def _canonical(key: str, case_id: str) -> str:
    """The id in the distributor's capitals, whatever a copy made of them."""
    spelt = {"brats2020": ("BraTS20", "Training", "Validation"), "brats2021": ("BraTS2021",)}.get(key, ("BraTS", "GLI"))
    for part in spelt:
        case_id = re.sub(rf"(?<![a-z0-9]){part}(?![a-z0-9])", part, case_id, flags=re.I)
    return case_id


def _stray_notice(case: str, segmentation: str, file: SourceFile) -> str:
    if case == "BraTS20_Training_355":
        return (
            f"no *{segmentation} file, but found {file.base}, which is the known misnamed segmentation of this case: "
            "used."
        )
    return f"no *{segmentation} file; the only segmentation in the case's folder, {file.base}, was used."


def _parts(
    download: Download, cases: Mapping[str, tuple[tuple[SourceFile, ...], SourceFile | None]]
) -> dict[str, Part]:
    """Training or test: as the nearest folder is called, else as the folder of the cases has segmentations or not."""
    ways = {case: _way(download, images[0], case) for case, (images, _) in cases.items()}
    segmented = {ways[case] for case, (_, label) in cases.items() if label is not None}
    parts: dict[str, Part] = {}
    for case, way in ways.items():
        said = _said((*way, case))
        parts[case] = said if said is not None else "training" if way in segmented else "test"
    return parts


def _said(folders: Sequence[str]) -> Part | None:
    for folder in reversed(folders):
        if "valid" in folder.lower():
            return "test"
        if "train" in folder.lower():
            return "training"
    return None


def _way(download: Download, file: SourceFile, case: str) -> tuple[str, ...]:
    """Names of the root, folders and archives that a case lies in, from the outside, without its own folder."""
    above = (root for root in download.roots if file.container == root or root in file.container.parents)
    outer = next(above, file.container.parent)  # a list of files stands for the folder that it lies in
    parts = file.container.relative_to(outer.parent).parts
    parts = parts[:-1] if file.member is None else (*parts, *PurePosixPath(file.member).parts[:-1])
    own = next((place for place, part in enumerate(parts) if part.lower() == case.lower()), len(parts))
    return tuple(parts[:own])
