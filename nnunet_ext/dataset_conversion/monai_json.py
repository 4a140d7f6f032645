"""MONAI's JSON lists of images and labels: SSH-UNet's ``btcv_dataset.json``, Alice's ``pretrain_all.json``."""

from __future__ import annotations

import argparse
import json
import posixpath
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from nnunet_ext.dataset_conversion.cases import Case, Fault, Found, Part, Split
from nnunet_ext.dataset_conversion.class_names import channels_of_json
from nnunet_ext.dataset_conversion.from_files import UNNAMED, FromFiles
from nnunet_ext.dataset_conversion.list_files import ListedFiles, place_of
from nnunet_ext.dataset_conversion.one_channel import by_number
from nnunet_ext.dataset_conversion.sources import Download, SourceFile, open_download
from nnunet_ext.errors import UserError

_KEYS = {"training": "training", "validation": "validation", "test": "test", "testing": "test"}
SPLIT = "list"


@dataclass
class _Entry:
    """One case of a list: paths as the list has them, and the number of the fold that it validates."""

    where: str
    images: list[str]
    label: str | None = None
    fold: int | None = None
    channels: list[SourceFile] = field(default_factory=list)


class MonaiList(FromFiles):
    """The cases of a JSON list; files are looked up beside the list, in `--root`, or in the archive that holds it."""

    key = "monai_json"
    number = 702
    name = "List"
    summary = "a JSON list of images and labels as MONAI uses (btcv_dataset.json, Auto3DSeg, pretrain_all.json)"
    get_it = "lists come with the code of a paper, such as SSH-UNet's; the images are under their data set's licence."
    looks_like = (
        'a file such as {"training": [{"image": "imagesTr/a.nii.gz", "label": "labelsTr/a.nii.gz"}], "validation": '
        '[...], "test": ["imagesTs/b.nii.gz"]}; name the .json file, or the folder or archive that it lies in.'
    )

    def __init__(
        self,
        root: str | Path | None = None,
        channels: Sequence[str] | None = None,
        label_names: Sequence[str] | None = None,
        group: str | None = None,
        unlabelled: bool = False,
    ) -> None:
        """As the options."""
        super().__init__(channels, label_names, group, unlabelled)
        self.root = root

    @classmethod
    def add_arguments(cls, parser: argparse._ArgumentGroup) -> None:
        """Add `--root` and what is common to converters of this kind."""
        parser.add_argument(
            "--root", metavar="DIR", help="where the list's paths start (default: the list's own folder)"
        )
        super().add_arguments(parser)

    def find(self, download: Download) -> Found:
        """See `Converter.find`."""
        where, base, content = self._list(download)
        self.description = content
        self.classes_from(content, where)
        entries = list(_entries(content, where))
        if not entries:
            raise self.nothing_found(download)
        files = ListedFiles(download, base) if self.root is None else ListedFiles(open_download([self.root]), "")
        faults, found = _looked_up(entries, files)
        if not found:
            example = faults[0].reason if faults else ""
            raise UserError(f"{where}: none of its {len(entries)} cases is there. {example} --root DIR says where.")
        ids = _case_ids([entry for entry, _ in found])
        most = Counter(len(entry.images) for entry, _ in found).most_common(1)[0][0]
        stated = channels_of_json(content)
        unnamed = () if self.names or stated else (UNNAMED,)
        self.names = self.names or stated or tuple(f"channel_{index}" for index in range(most))
        cases, more = self._cases(found, ids)
        grouped, notices = self.grouped(cases)
        in_list = {case.details["list"] for case in cases if case.part == "training"}
        folds = any("fold" in case.details for case in cases)
        self.best_split = SPLIT if {"training", "validation"} <= in_list or folds else "cv"
        return Found(grouped, (*faults, *more), (*files.notices, *unnamed, *notices))

    def _list(self, download: Download) -> tuple[str, str, dict[str, Any]]:
        """The list: where it is, the folder in the download that its paths start at, and its content.

        Raises:
            UserError: there is none, or there are several.
        """
        named = {root for root in download.roots if root.suffix.lower() == ".json"}
        lists = []
        for file in download.files:
            if file.ending == ".json" and (not named or file.container in named):
                content = _content(file, strict=bool(named))
                if content is not None:
                    lists.append((file, content))
        if not lists:
            raise self.nothing_found(download)
        if len(lists) > 1:
            seen = ", ".join(file.where for file, _ in lists)
            raise UserError(f"{self.key}: several lists are there: {seen}. Name one of them instead of the folder.")
        file, content = lists[0]
        return file.where, str(PurePosixPath(file.name).parent), content

    def _cases(
        self, found: Sequence[tuple[_Entry, SourceFile | None]], ids: Sequence[str]
    ) -> tuple[list[Case], list[Fault]]:
        cases: list[Case] = []
        faults: list[Fault] = []
        seen: dict[str, str] = {}
        for (entry, label), case in zip(found, ids, strict=True):
            if case in seen:
                faults.append(Fault(case, f"duplicate id: {entry.where} and {seen[case]} of the list."))
            elif len(entry.images) not in (1, len(self.names)):
                listed = f"{len(entry.images)} images for {len(self.names)} channels ({', '.join(self.names)})"
                faults.append(Fault(case, f"{entry.where}: {listed}. --channels names the channels in order."))
            else:
                kind = entry.where.split(" ")[0]
                details = {"list": kind, **({} if entry.fold is None else {"fold": entry.fold})}
                unlabelled = label is None and kind != "test"
                part: Part = "unlabelled" if unlabelled else "test" if kind == "test" else "training"
                cases.append(Case(case, part, tuple(entry.channels), label, details=details))
            seen.setdefault(case, entry.where)
        twice = {fault.case for fault in faults if fault.reason.startswith("duplicate")}
        return sorted((c for c in cases if c.id not in twice), key=lambda case: by_number(case.id)), faults

    def own_splits(self, cases: Sequence[Case]) -> dict[str, Callable[[], Split]]:
        """`list`: what the list calls training and validation as fold 0, or its folds."""
        return {SPLIT: lambda: _list_split(cases)}


def _list_split(cases: Sequence[Case]) -> Split:
    """The split of a list.

    Raises:
        UserError: it has none.
    """
    listed = [case for case in cases if case.part == "training"]
    validation = tuple(case.id for case in listed if case.details.get("list") == "validation")
    folds = sorted({int(case.details["fold"]) for case in listed if "fold" in case.details})
    training = [case for case in listed if case.details.get("list") == "training"]
    if folds:
        made = []
        for fold in folds:
            val = tuple(case.id for case in training if case.details.get("fold") == fold)
            made.append((tuple(case.id for case in training if case.id not in val), val))
        return Split(SPLIT, tuple(made), validation, "the list's folds")
    if not validation or not training:
        raise UserError(
            "the list has no split: it needs training and validation cases with labels; --split cv makes one"
        )
    return Split(SPLIT, ((tuple(case.id for case in training), validation),), (), "the list's training and validation")


def _content(file: SourceFile, strict: bool) -> dict[str, Any] | None:
    """What a JSON file holds, if it is a list of cases; a plain list is one of training cases.

    Raises:
        UserError: with `strict`, it isn't.
    """
    try:
        content = json.loads(file.text())
    except (ValueError, RecursionError) as error:
        if strict:
            raise UserError(f"{file.where}: not a readable JSON file ({error})") from error
        return None
    if isinstance(content, list):
        content = {"training": content}
    lists = isinstance(content, dict) and any(isinstance(content.get(key), list) for key in _KEYS)
    if not lists and strict:
        raise UserError(f"{file.where}: no list of cases: it needs one under {', '.join(map(repr, _KEYS))}.")
    return content if lists else None


def _entries(content: Mapping[str, Any], where: str) -> Iterator[_Entry]:
    """The cases of a list.

    Raises:
        UserError: one is not understood.
    """
    for key, kind in _KEYS.items():
        for index, item in enumerate(content.get(key) or ()):
            entry = item if isinstance(item, Mapping) else {"image": item}
            images: Any = entry.get("image", entry.get("img"))
            images = [images] if isinstance(images, str) else images
            label, fold = entry.get("label", entry.get("seg")), entry.get("fold")
            label = label[0] if isinstance(label, list) and len(label) == 1 else label
            texts = isinstance(images, list) and images and all(isinstance(image, str) for image in images)
            if not texts or not isinstance(label, str | None) or not isinstance(fold, int | None):
                raise UserError(
                    f"{where}: entry {index} of {key!r} is not understood: {json.dumps(item)[:200]}; expected "
                    '{"image": PATH or [PATH, ...], "label": PATH}.'
                )
            yield _Entry(f"{kind} {index}", list(images), label or None, fold)


def _looked_up(
    entries: Sequence[_Entry], files: ListedFiles
) -> tuple[list[Fault], list[tuple[_Entry, SourceFile | None]]]:
    """The files of each entry; entries without all of theirs are faults."""
    faults, found = [], []
    for entry in entries:
        missing = []
        for path in entry.images:
            file = files.get(path)
            if file is None:
                missing.append(path)
            else:
                entry.channels.append(file)
        label = None if entry.label is None else files.get(entry.label)
        if entry.label is not None and label is None:
            missing.append(entry.label)
        if missing:
            name = place_of(entry.images[0]).name
            reason = f"the list's {entry.where} names {', '.join(missing)}, not found below {files.start}."
            faults.append(Fault(name.split(".")[0] or entry.where, reason))
        else:
            found.append((entry, label))
    return faults, found


def _case_ids(entries: Sequence[_Entry]) -> list[str]:
    """The case id of each entry.

    The stem of its image, or what its channels' stems begin with; where cases share these, as with ``ct.nii.gz``, the
    name of the folder, or of folders above it.
    """
    stems = [_common([file.stem for file in entry.channels]) for entry in entries]
    parents = [PurePosixPath(entry.channels[0].name).parent for entry in entries]
    if len(set(stems)) == len(stems) and all(stems):
        return stems
    candidates = [[parent.name for parent in parents]]
    candidates.append([f"{parent.parent.name}_{parent.name}" for parent in parents])
    candidates.append([f"{parent.name}_{stem}" for parent, stem in zip(parents, stems, strict=True)])
    for ids in candidates:
        if len(set(ids)) == len(ids) and all(ids):
            return ids
    return stems if all(stems) else candidates[-1]


def _common(stems: Sequence[str]) -> str:
    """What several stems begin with, up to a separator; the stem itself if it is one, without nnU-Net's _0000."""
    if len(stems) == 1:
        return stems[0].removesuffix("_0000")
    return posixpath.commonprefix(list(stems)).rstrip("_-. ")
