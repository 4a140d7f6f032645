"""A submission as it lies there: a folder or a zip; nothing is unpacked, and names are never trusted."""

from __future__ import annotations

import lzma
import os
import stat
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from nnunet_ext.errors import UserError
from nnunet_ext.submission.nifti import LabelMap, UnreadableError, read
from nnunet_ext.submission.problems import Problem


@dataclass
class Place:
    """A folder or zip.

    Attributes:
        path: which.
        names: of its files, with slashes, sorted; hidden ones, too.
        problems: what is wrong with it as a whole.
        archive: the open zip; None: a folder.
    """

    path: Path
    names: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    archive: zipfile.ZipFile | None = None

    def label_map(self, name: str) -> LabelMap:
        """One of `names`, read.

        Raises:
            UnreadableError: it is damaged, encrypted or no label map.
        """
        try:
            with (self.path / name).open("rb") if self.archive is None else self.archive.open(name) as stream:
                return read(stream)
        except (OSError, RuntimeError, NotImplementedError, zipfile.BadZipFile, lzma.LZMAError) as error:
            raise UnreadableError(f"cannot be read ({error})") from error

    def size(self, name: str) -> int:
        """Bytes of one of `names`."""
        return (self.path / name).stat().st_size if self.archive is None else self.archive.getinfo(name).file_size


@contextmanager
def opened(path: Path | str) -> Iterator[Place]:
    """Look into a folder or zip.

    Raises:
        UserError: there is none, or it is damaged.
    """
    path = Path(path).expanduser().absolute()
    if path.is_dir():
        yield _folder(path)
        return
    if not path.is_file():
        raise UserError(f"{path} does not exist: give a folder or a zip")
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is neither a folder nor a readable zip ({error})") from error
    with archive:
        yield _zip(path, archive)


def _folder(path: Path) -> Place:
    place = Place(path)
    for parent, folders, files in os.walk(path):
        folders.sort()
        inside = Path(parent).relative_to(path)
        for name in files:
            if stat.S_ISREG((Path(parent) / name).stat().st_mode if (Path(parent) / name).exists() else 0):
                place.names.append((inside / name).as_posix())
            else:
                place.problems.append(Problem("unreadable", (inside / name).as_posix(), "a broken link or no file"))
        if not files and not folders and inside != Path("."):
            place.problems.append(Problem("layout", f"{inside.as_posix()}/", "an empty folder"))
    place.names.sort()
    return place


def _zip(path: Path, archive: zipfile.ZipFile) -> Place:
    place = Place(path, archive=archive)
    seen: set[str] = set()
    for entry in archive.infolist():
        name = entry.filename
        if name in seen:
            place.problems.append(Problem("layout", name, "twice in the zip"))
        elif name.startswith(("/", "\\")) or ".." in name.replace("\\", "/").split("/") or "\\" in name or ":" in name:
            place.problems.append(Problem("layout", name, "a name that leads out of the zip's folder, or a backslash"))
        elif stat.S_IFMT(entry.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
            place.problems.append(Problem("layout", name, "a link: put the file itself into the zip"))
        elif entry.is_dir():
            if not any(other != name and other.startswith(name) for other in archive.namelist()):
                place.problems.append(Problem("layout", name, "an empty folder"))
        else:
            place.names.append(name)
            if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                place.problems.append(Problem("compression", name, "packed otherwise than by deflate: zip it anew"))
        seen.add(name)
    place.names.sort()
    return place
