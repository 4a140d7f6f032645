"""Putting files into the data set: linked, copied or written, each under another name first and renamed when whole."""

from __future__ import annotations

import errno
import gzip
import hashlib
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

from nnunet_ext.dataset_conversion.sources import SourceFile, ending_of

MARK = ".unfinished-"
"""Part of the names of files that are being written: ``.NAME.unfinished-PID``."""
FIRST = 1 << 16
"""Bytes of the short checksum."""
FULL = (errno.ENOSPC, errno.EDQUOT)
"""What the system says when there is no room left on the disk or in the user's share of it."""
_CHUNK = 1 << 22
IMAGE_LEVEL, LABEL_LEVEL = 1, 6  # of gzip: higher ones make an image 5 % smaller and take several times as long


class Outputs:
    """The files of one case: they appear under their names together, when all are whole, or not at all."""

    def __init__(self, target: Path) -> None:
        """Args: target: the folder that their names start at."""
        self._target = target
        self._pending: list[tuple[Path, Path]] = []

    def unfinished(self, name: str) -> Path:
        """Where to write what will be called `name`."""
        path = self._target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{path.name}{MARK}{os.getpid()}{ending_of(path.name)}")
        unfinished.unlink(missing_ok=True)
        self._pending.append((unfinished, path))
        return unfinished

    def __enter__(self) -> Outputs:
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            if kind is None:
                for unfinished, path in self._pending:
                    os.replace(unfinished, path)
        finally:
            for unfinished, _ in self._pending:
                unfinished.unlink(missing_ok=True)


def place(file: SourceFile, path: Path, mode: str) -> str:
    """Bring a file's content to `path` as it is.

    Args:
        file: a member of an archive is copied whatever the mode.
        path: does not exist.
        mode: "symlink", "hardlink" or "copy".

    Returns:
        What was done: "link" or "copy". Where the disk can't link, files are copied.
    """
    if file.member is None and mode != "copy":
        try:
            if mode == "hardlink":
                os.link(file.container.resolve(), path)
            else:
                path.symlink_to(link_target(file.container, path.parent))
            return "link"
        except OSError as error:
            if error.errno in FULL:
                raise
    if file.member is None:
        shutil.copyfile(file.container, path)
    else:
        with file.open() as source, path.open("wb") as copy:
            shutil.copyfileobj(source, copy, _CHUNK)
    return "copy"


def link_target(source: Path, folder: Path) -> str:
    """What a symbolic link in `folder` to `source` says: relative where the two share a folder, else absolute."""
    source, folder = Path(os.path.abspath(source)), folder.resolve()
    common = os.path.commonpath([source, folder]) if source.drive == folder.drive else source.anchor
    return str(source) if common == source.anchor else os.path.relpath(source, folder)


def lies_at(file: SourceFile, path: Path) -> bool:
    """Whether a download's file is the very file of the data set, not another that is linked to it."""
    here = file.member is None and not path.is_symlink()
    return here and os.path.realpath(path) == os.path.realpath(file.container)


def untouchable(source: SourceFile, changes: Sequence[str]) -> str:
    """Why a file that lies in the data set's own folder makes its case be left out."""
    what = f"changed ({'; '.join(changes)})" if changes else "moved"
    return (
        f"{source.where}: would have to be {what}, but files that lie in the data set's own folder are not touched: "
        "choose another id with -d."
    )


def write_compressed(path: Path, write: Callable[[IO[bytes]], None], level: int) -> None:
    """Write a file, compressed if its name ends with .gz; the same content gives the same bytes."""
    with path.open("wb") as file:
        if not path.name.endswith(".gz"):
            write(file)
            return
        with gzip.GzipFile("", "wb", level, file, mtime=0) as stream:
            write(stream)  # type: ignore[arg-type]


def whole_checksum(file: SourceFile, content: bytes | None = None) -> str:
    """SHA-256 of the whole file, in hexadecimal digits.

    Args:
        file: is read unless `content` is given.
        content: of the file.
    """
    if content is not None:
        return hashlib.sha256(content).hexdigest()
    digest = hashlib.sha256()
    with file.open() as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def short_checksum(file: SourceFile) -> str:
    """SHA-256 of the first 64 KiB."""
    with file.open() as stream:
        return hashlib.sha256(stream.read(FIRST)).hexdigest()


def entry(
    file: SourceFile, name: str, action: str, changes: Sequence[str], *, short: bool, checksum: str | None = None
) -> dict[str, Any]:
    """What conversion.json says of one file.

    Args:
        file: where it comes from.
        name: in the data set's folder.
        action: "link", "copy", "write", or "keep" where it already lay there.
        changes: that made it necessary to write it.
        short: only the first 64 KiB are summed up, if no checksum is given.
        checksum: of the whole source, if it is known.
    """
    if checksum is None and short:
        summed = {"sha256_of_first_64_kib": short_checksum(file)}
    else:
        summed = {"sha256": checksum or whole_checksum(file)}
    return {
        "file": name,
        "source": str(file.container),
        "member": file.member,
        "name": file.name,
        "size": file.size,
        "mtime_ns": file.mtime_ns,
        **summed,
        "action": action,
        "changes": list(changes),
    }


def remove_unfinished(target: Path) -> int:
    """Remove what dead runs left half-written below a data set's folder; returns the number of files and folders."""
    left = list(target.glob(f"**/.*{MARK}*"))
    for path in left:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return len(left)
