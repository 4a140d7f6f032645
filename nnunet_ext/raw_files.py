"""Which files of a data set can't be read: nnU-Net fails far from the file, or reads half of it without a word."""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nnunet_ext.errors import UserError

_CHUNK = 1 << 24


def training_files(dataset: Path) -> tuple[list[str], list[str]]:
    """The images and the labels of the training cases of a folder ``nnUNet_raw/DatasetXXX_NAME``."""
    content = _dataset_json(dataset)
    if "dataset" in content:  # files that lie elsewhere; relative paths start at the data set's folder
        cases = content["dataset"].values()
        images = [str(dataset / os.path.expandvars(path)) for case in cases for path in case["images"]]
        return images, [str(dataset / os.path.expandvars(case["label"])) for case in cases]
    images, labels = (
        sorted(str(path) for path in (dataset / folder).glob(f"*{content['file_ending']}"))
        for folder in ("imagesTr", "labelsTr")
    )
    return images, labels


def incomplete_files(dataset: Path) -> list[tuple[str, str]]:
    """The NIfTI files that hold less than their header promises, as after a broken download, each with the reason.

    Readers fill up what is missing without a word. Only the ends of a file are read, so this takes no time.
    """
    images, labels = training_files(dataset)
    checked = ((path, _shortfall(path)) for path in (*images, *labels) if path.endswith((".nii", ".nii.gz")))
    return [(path, reason) for path, reason in checked if reason]


def _shortfall(path: str) -> str | None:
    """What is missing in a NIfTI file, if anything; None, too, where it is no NIfTI file at all."""
    import nibabel

    try:
        image: Any = nibabel.load(path)
        voxels = 1
        for edge in image.shape:
            voxels *= int(edge)
        expected = int(image.dataobj.offset) + voxels * int(image.get_data_dtype().itemsize)
    except Exception:
        return None  # its reader will say so
    size = os.path.getsize(path)
    if path.endswith(".gz"):
        with open(path, "rb") as file:
            file.seek(-4, os.SEEK_END)
            stated = int.from_bytes(file.read(), "little")  # the uncompressed length, modulo 2**32
        if stated == expected % (1 << 32):
            return None
        size = _uncompressed_size(path)
    return None if size >= expected else f"{size} bytes of {expected}: the file is cut off"


def _uncompressed_size(path: str) -> int:
    """Number of bytes that can be uncompressed, whatever comes then."""
    size = 0
    try:
        with gzip.open(path) as file:
            while chunk := file.read1(_CHUNK):
                size += len(chunk)
    except (EOFError, OSError, zlib.error):
        pass
    return size


def unreadable_files(dataset: Path) -> list[tuple[str, str]]:
    """The training images and labels of a data set that nnU-Net's reader can't read, each with the reason."""
    images, labels = training_files(dataset)
    reader = _reader(_dataset_json(dataset), images)
    bad = []
    reads = [(path, reader.read_images, [path]) for path in images] + [(p, reader.read_seg, p) for p in labels]
    for path, read, argument in reads:
        try:
            read(argument)
        except Exception as error:
            bad.append((path, _first_line(error)))
    return bad


def _reader(dataset_json: dict[str, Any], images: Sequence[str]) -> Any:
    """The reader that nnU-Net would take: as stated, else the first one that reads an image of the set."""
    from nnunetv2.imageio.reader_writer_registry import LIST_OF_IO_CLASSES, recursive_find_reader_writer_by_name

    stated = dataset_json.get("overwrite_image_reader_writer")
    if stated and stated != "None":
        return recursive_find_reader_writer_by_name(stated)()
    ending = dataset_json["file_ending"].lower()
    fitting = [reader() for reader in LIST_OF_IO_CLASSES if ending in reader.supported_file_endings]
    for reader in fitting:
        for image in images:
            try:
                reader.read_images([image])
            except Exception:
                continue
            return reader
    if not fitting:
        raise UserError(f"nnU-Net has no reader for files that end with {ending!r} (file_ending in dataset.json)")
    return fitting[0]


def _first_line(error: Exception) -> str:
    """What is wrong, in one line; ITK hides it in the last line of a long message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _dataset_json(dataset: Path) -> dict[str, Any]:
    path = dataset / "dataset.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("file_ending"), str):
        raise UserError(f'{path} has no file_ending (such as ".nii.gz"): nnU-Net needs it to find the images')
    return content
