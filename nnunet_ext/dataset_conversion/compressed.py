"""Compressed tars, decompressed once a conversion: each of their members can then be read without all before it."""

from __future__ import annotations

import os
import shutil
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import IO, cast

from nnunet_ext.dataset_conversion.sources import DAMAGED, SourceFile, ending_of, open_archive
from nnunet_ext.errors import UserError


def plain_tars(files: Iterable[SourceFile], scratch: Path) -> dict[Path, Path]:
    """Decompress the compressed tars that files lie in, each once, so that their members can be read in any order.

    Reading one member of a compressed tar decompresses everything before it: N members of it cost N / 2 times the
    whole. What is made here is as large as the members together, and `scratch` is the caller's to remove.

    Args:
        files: those that will be read.
        scratch: an existing folder.

    Returns:
        Compressed tar -> plain tar in `scratch`, for `read_from`; nothing for other archives.

    Raises:
        UserError: the disk is too small, or the archive is damaged.
    """
    made: dict[Path, Path] = {}
    for file in files:
        if file.member is not None and file.container not in made and _is_compressed_tar(file.container):
            made[file.container] = scratch / f"{len(made):03d}.tar"
            _decompress(file, made[file.container])
    return made


def read_from(file: SourceFile, tars: Mapping[Path, Path]) -> SourceFile:
    """The same file, read from what `plain_tars` made of its container."""
    return replace(file, plain=tars[file.container]) if file.container in tars else file


def _is_compressed_tar(path: Path) -> bool:
    if ending_of(path.name) == ".zip":
        return False
    with path.open("rb") as stream:
        return stream.read(6).startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ"))


def _decompress(file: SourceFile, target: Path) -> None:
    """Write the tar that `file` is a member of without its compression."""
    archive = file.container
    try:
        opened = open_archive(str(archive), file.mtime_ns, os.getpid())
        if not isinstance(opened, tarfile.TarFile) or opened.fileobj is None:
            raise UserError(f"{archive}: no tar")
        needed = max(item.offset_data + item.size for item in opened.getmembers())
        free = shutil.disk_usage(target.parent).free
        if free < needed:
            raise UserError(
                f"{archive}: decompressing it for the time of the conversion needs {needed / 1e9:.1f} GB in "
                f"{target.parent}, where {free / 1e9:.1f} GB are free: make room, or unpack it elsewhere and name the "
                "folder."
            )
        opened.fileobj.seek(0)
        with target.open("wb") as stream:
            shutil.copyfileobj(cast(IO[bytes], opened.fileobj), stream, 1 << 22)
    except DAMAGED as error:
        target.unlink(missing_ok=True)
        raise UserError(f"{archive}: cannot be decompressed into {target}: {error}") from error
