"""Folders as nnU-Net (v1, v2) and the decathlon have them: ``imagesTr``, ``labelsTr``, ``imagesTs``, dataset.json."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any

from nnunet_ext.dataset_conversion.base import one_file_each, pair
from nnunet_ext.dataset_conversion.cases import Case, Fault, Part
from nnunet_ext.dataset_conversion.class_names import read_json
from nnunet_ext.dataset_conversion.one_channel import by_number, tells
from nnunet_ext.dataset_conversion.sources import ARCHIVE_ENDINGS, Download, SourceFile, ending_of
from nnunet_ext.errors import UserError

_PARTS: dict[str, Part] = {"tr": "training", "ts": "test", "va": "test", "val": "test", "un": "unlabelled"}
_PLACE = re.compile(r"(?P<base>(?:.*/)?)(?P<kind>images|labels)(?P<part>tr|ts|va|val|un)/[^/]+", re.IGNORECASE)
_CHANNEL = re.compile(r"(?P<id>.+)_(?P<channel>\d{4})")

Claim = tuple[str, SourceFile]


@dataclass(frozen=True)
class RawTree:
    """One such folder.

    Attributes:
        base: its path in the download, with a slash at its end; "" at the root.
        name: of the folder itself.
        images, labels: (part, file) of all images in its folders.
        description: its dataset.json; empty without one.
    """

    base: str
    name: str
    images: tuple[tuple[Part, SourceFile], ...]
    labels: tuple[tuple[Part, SourceFile], ...]
    description: Mapping[str, Any] = field(default_factory=dict)

    def listed(self, key: str) -> list[tuple[str, str]]:
        """Base names of image and label ("" without) of each entry of a list in dataset.json."""
        entries = self.description.get(key)
        pairs = []
        for entry in entries if isinstance(entries, list) else ():
            image, label = (entry.get("image"), entry.get("label")) if isinstance(entry, Mapping) else (entry, None)
            if isinstance(image, str):
                pairs.append((PurePosixPath(image).name, PurePosixPath(label).name if isinstance(label, str) else ""))
        return pairs

    @cached_property
    def by_channel(self) -> bool:
        """Whether image names end with a channel number, as nnU-Net's do and the decathlon's don't."""
        stems = {file.stem for _, file in self.images}
        cut = {match["id"] for match in map(_CHANNEL.fullmatch, stems) if match}
        references = {file.stem for _, file in self.labels} or {_stem(name) for name, _ in self.listed("training")}
        whole_hits, cut_hits = len(stems & references), len(cut & references)
        if whole_hits or cut_hits:
            return cut_hits > whole_hits
        return (
            len(cut) > 0 and all(_CHANNEL.fullmatch(stem) for stem in stems) and any(s.endswith("_0000") for s in stems)
        )

    def image_claims(self, part: Part) -> list[tuple[str, int, SourceFile]]:
        """Case id, channel and file of each image; channel 0 where names don't tell."""
        claims = []
        for place, file in self.images:
            match = _CHANNEL.fullmatch(file.stem) if self.by_channel else None
            if place == part:
                claims.append((match["id"], int(match["channel"]), file) if match else (file.stem, 0, file))
        return claims

    def label_claims(self, part: Part) -> list[Claim]:
        """Case id and file of each label: called like the image, or paired in dataset.json, or label1 with img1."""
        ids = {case for case, _, _ in self.image_claims(part)}
        pairs = {label: _stem(image) for image, label in self.listed("training")}
        claims = []
        for place, file in self.labels:
            number = re.fullmatch(r"label_?(\d+)", file.stem)
            listed = pairs.get(file.base, file.stem)
            guesses = [file.stem, listed, f"img{number[1]}" if number else file.stem]
            if place == part:
                claims.append((next((guess for guess in guesses if guess in ids), listed), file))
        return claims

    @property
    def channels_seen(self) -> int:
        """One more than the highest channel number."""
        parts: tuple[Part, ...] = ("training", "test", "unlabelled")
        return max((channel + 1 for part in parts for _, channel, _ in self.image_claims(part)), default=1)


def _stem(name: str) -> str:
    return name[: len(name) - len(ending_of(name))]


def find_trees(download: Download) -> list[RawTree]:
    """All such folders of a download that hold images, by path."""
    images: dict[str, list[tuple[Part, SourceFile]]] = {}
    labels: dict[str, list[tuple[Part, SourceFile]]] = {}
    for file in download.images():
        match = _PLACE.fullmatch(file.name)
        if match:
            kind = images if match["kind"].lower() == "images" else labels
            kind.setdefault(match["base"], []).append((_PARTS[match["part"].lower()], file))
    descriptions = {file.name: file for file in download.named("dataset.json")}
    return [
        RawTree(
            base,
            PurePosixPath(base).name or place_name(download),
            tuple(images[base]),
            tuple(labels.get(base, ())),
            read_json(descriptions[f"{base}dataset.json"]) if f"{base}dataset.json" in descriptions else {},
        )
        for base in sorted(images)
    ]


def place_name(download: Download) -> str:
    """Of the place, without an archive's ending."""
    name = download.roots[0].name
    ending = ending_of(name)
    return name[: -len(ending)] if ending in (*ARCHIVE_ENDINGS, ".json") else name


def tree_cases(
    tree: RawTree, channels: Sequence[str], *, keep_unlabelled: bool = False
) -> tuple[list[Case], list[Fault], list[str]]:
    """Make cases of such a folder.

    Args:
        tree: the folder.
        channels: their names; one image file with several of them is split along its fourth axis.
        keep_unlabelled: training images without a label are unlabelled cases instead of faults.

    Returns:
        Cases, faults and notices; without the groups of the cases.

    Raises:
        UserError: files have channels that have no name.
    """
    if tree.by_channel and tree.channels_seen > len(channels):
        raise UserError(
            f"{tree.base or tree.name}: {len(channels)} channel(s) are named ({', '.join(channels)}), but files of "
            f"channel {tree.channels_seen - 1:04d} are there. Name them all, in order: --channels NAME NAME ..."
        )
    per_case = len(channels) if tree.by_channel else 1
    called = (
        [f"channel {index:04d} ({name})" for index, name in enumerate(channels)] if tree.by_channel else ["the image"]
    )
    cases: dict[str, Case] = {}
    faults: list[Fault] = []
    notices: list[str] = []
    twins = []
    parts: tuple[Part, ...] = ("training", "test", "unlabelled")
    for part in parts:
        found, wrong = _pairs(tree, part, per_case, called)
        faults += wrong
        for case, (images, label) in found.items():
            if case in cases:
                if _same(images[0], cases[case].images[0]):
                    twins.append(case)
                else:
                    faults.append(
                        Fault(case, f"duplicate id: {images[0].where} is another image of this name: rename it.")
                    )
            elif part == "training" and label is None and not keep_unlabelled and tree.labels:
                expected = f"{tree.base}labelsTr/{case}{images[0].ending}"
                faults.append(
                    Fault(
                        case,
                        f"no label for {images[0].where}: {expected} was expected. --unlabelled keeps such images.",
                    )
                )
            else:
                cases[case] = Case(case, "unlabelled" if part == "training" and label is None else part, images, label)
    if twins:
        notices.append(f"in imagesTs as well as in imagesTr, taken once, as training cases: {tells(twins)}")
    faults += _listed_but_missing(tree, {*cases, *(fault.case for fault in faults)})
    return sorted(cases.values(), key=lambda case: by_number(case.id)), faults, notices


def _pairs(
    tree: RawTree, part: Part, per_case: int, called: Sequence[str]
) -> tuple[dict[str, tuple[tuple[SourceFile, ...], SourceFile | None]], list[Fault]]:
    """Images and labels of one part by case id, and what is wrong; each case has one fault at most."""
    claims = [(f"{case}/{channel}", file) for case, channel, file in tree.image_claims(part)]
    images, image_faults = one_file_each(claims, "image")
    labels, label_faults = one_file_each(tree.label_claims(part), "label")
    faults = {fault.case.rpartition("/")[0]: fault.reason for fault in image_faults}
    faults.update({fault.case: fault.reason for fault in label_faults})
    files: dict[str, list[SourceFile | None]] = {}
    for key, file in images.items():
        case, _, channel = key.rpartition("/")
        if case not in faults:
            files.setdefault(case, [None] * per_case)[int(channel)] = file
    found, unpaired = pair(files, {case: file for case, file in labels.items() if case not in faults}, channels=called)
    return found, [Fault(case, reason) for case, reason in faults.items()] + unpaired


def _same(one: SourceFile, other: SourceFile) -> bool:
    """Whether two files begin alike for a MiB and are equally large."""
    if one.size != other.size:
        return False
    with one.open() as first, other.open() as second:
        return first.read(1 << 20) == second.read(1 << 20)


def _listed_but_missing(tree: RawTree, known: set[str]) -> list[Fault]:
    """What dataset.json lists and the folders lack altogether."""
    faults = []
    for key in ("training", "test"):
        for image, _ in tree.listed(key):
            match = _CHANNEL.fullmatch(_stem(image)) if tree.by_channel else None
            if _stem(image) not in known and (match is None or match["id"] not in known):
                faults.append(
                    Fault(_stem(image), f"listed in {tree.base}dataset.json, but not there: a partial download?")
                )
    return faults
