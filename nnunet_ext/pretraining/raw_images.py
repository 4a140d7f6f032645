"""The images that can be pre-trained on: a data set's own, and folders of images without labels."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_ext.errors import UserError

_CHANNEL = re.compile(r"^(?P<case>.+)_(?P<channel>\d{4})$")


@dataclass(frozen=True)
class RawCase:
    """A case's image files.

    Attributes:
        name: unique among all cases that are pre-trained on.
        source: the data set's name or the folder, for people and for the leakage guard.
        files: one a channel, in the channels' order.
        own: whether it is a training case of the data set, which nnU-Net may have preprocessed already.
    """

    name: str
    source: str
    files: tuple[Path, ...]
    own: bool


def dataset_cases(dataset: Path, dataset_json: Mapping[str, Any]) -> list[RawCase]:
    """The training images of a data set's raw folder, by name; labels are not asked for.

    Raises:
        UserError: a case's channels are incomplete.
    """
    if "dataset" in dataset_json:  # files that lie elsewhere; relative paths start at the data set's folder
        listed = {
            name: [dataset / os.path.expandvars(path) for path in entry["images"]]
            for name, entry in dataset_json["dataset"].items()
        }
    else:
        listed = _by_case(dataset / "imagesTr", dataset_json["file_ending"])
    cases = [RawCase(name, dataset.name, tuple(files), own=True) for name, files in sorted(listed.items())]
    return [_checked(case, dataset_json) for case in cases]


def folder_cases(folder: Path, dataset_json: Mapping[str, Any], readable: Sequence[str]) -> list[RawCase]:
    """The images of a folder: ``CASE_0000.nii.gz``, or, where the data set has one channel, files of any name.

    Args:
        folder: such as ``imagesTs`` of a data set, FLARE22's unlabelled images, or any folder of images.
        dataset_json: of the data set whose plans are used.
        readable: file endings that the plans' reader knows.

    Raises:
        UserError: the folder has no images, images with several endings, or a case's channels are incomplete.
    """
    if not folder.is_dir():
        raise UserError(f"--unlabelled {folder}: there is no such folder")
    ending = _ending(folder, [dataset_json["file_ending"], *readable])
    slug = f"{folder.resolve().name}_{hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:6]}"
    cases = [
        RawCase(f"{slug}.{name}", str(folder), tuple(files), own=False)
        for name, files in sorted(_by_case(folder, ending, plain=_channels(dataset_json) == 1).items())
    ]
    return [_checked(case, dataset_json) for case in cases]


def checksum(path: Path) -> str:
    """SHA-256 of a file's bytes.

    Raises:
        UserError: it cannot be read.
    """
    try:
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
        return digest.hexdigest()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        UserError: there is no such file, or it holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise UserError(f"{path} is no JSON file: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold a JSON object, got a {type(content).__name__}")
    return content


def _channels(dataset_json: Mapping[str, Any]) -> int:
    return len(dataset_json.get("channel_names", dataset_json.get("modality", {})))


def _ending(folder: Path, endings: Sequence[str]) -> str:
    """The ending of the folder's images; the data set's own wins."""
    names = [path.name for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")]
    # ".nii" is no ending of "x.nii.gz", so each file has one ending at most
    found = [ending for ending in dict.fromkeys(endings) if any(name.endswith(ending) for name in names)]
    if not found:
        raise UserError(f"--unlabelled {folder}: no images with the endings {', '.join(dict.fromkeys(endings))}")
    if len(found) > 1:
        raise UserError(f"--unlabelled {folder}: images with several endings ({', '.join(found)}); keep one kind")
    return found[0]


def _by_case(folder: Path, ending: str, plain: bool = False) -> dict[str, list[Path]]:
    """Case -> its files by channel; with `plain`, every file is a case of one channel."""
    cases: dict[str, list[Path]] = {}
    for path in sorted(folder.glob(f"*{ending}")):
        stem = path.name[: -len(ending)]
        if path.name.startswith(".") or not path.is_file():
            continue
        match = _CHANNEL.match(stem)
        if match and not (plain and match["channel"] != "0000"):  # "scan_2019" is a name where there is one channel
            cases.setdefault(match["case"], []).append(path)
        elif plain:
            cases.setdefault(stem, []).append(path)
    return cases


def _checked(case: RawCase, dataset_json: Mapping[str, Any]) -> RawCase:
    expected = _channels(dataset_json)
    if len(case.files) != expected:
        raise UserError(
            f"{case.source}, case {case.name}: {len(case.files)} image file(s) "
            f"({', '.join(path.name for path in case.files)}), but the data set has {expected} channel(s): "
            "add or remove files"
        )
    return case
