"""The files of a download: in folders and in zip and tar archives, which are read in place and never trusted.

An archive is seen as though it had been unpacked where it lies, unless a folder of its name lies beside it. What no
data set contains (hidden files, ``__MACOSX``, empty files) is passed over. Nothing here writes.
"""

from __future__ import annotations

import os
import re
import stat
import tarfile
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import IO, Any

from nnunet_ext.errors import UserError

IMAGE_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd", ".gipl", ".png", ".bmp", ".tif", ".tiff")
ARCHIVE_ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz")
DEPTH = 6
"""Folders below the download's root that are searched."""
_IGNORED = re.compile(r"^(\.|__MACOSX$|desktop\.ini$|thumbs\.db$)", re.IGNORECASE)


@dataclass(frozen=True)
class SourceFile:
    """One file of a download.

    Attributes:
        name: from the download's root, with slashes; members of an archive as though they had been unpacked there.
        container: the file on the disk: the file itself, or the archive that holds it.
        member: its name in the archive; None: it is a file of its own.
        size: bytes, of a member uncompressed.
        mtime_ns: when `container` was changed last, in nanoseconds.
    """

    name: str
    container: Path
    member: str | None
    size: int
    mtime_ns: int

    @property
    def base(self) -> str:
        """The last part of the name."""
        return PurePosixPath(self.name).name

    @property
    def folder(self) -> str:
        """The name of the folder that it lies in, without the way there; "" at the root."""
        return PurePosixPath(self.name).parent.name

    @property
    def ending(self) -> str:
        """One of `IMAGE_ENDINGS`, in lower case, or what follows the last dot."""
        return ending_of(self.base)

    @property
    def stem(self) -> str:
        """`base` without `ending`."""
        return self.base[: len(self.base) - len(self.ending)]

    @property
    def is_image(self) -> bool:
        """Whether its ending is one of an image."""
        return self.ending in IMAGE_ENDINGS

    @property
    def where(self) -> str:
        """Path on the disk, and the member in an archive, for people."""
        return str(self.container) if self.member is None else f"{self.container}:{self.member}"

    def open(self) -> IO[bytes]:
        """The content as a stream; seekable.

        Raises:
            UserError: the archive is damaged, encrypted or compressed in an unknown way.
        """
        if self.member is None:
            return self.container.open("rb")
        try:
            archive = _archive(str(self.container), self.mtime_ns, os.getpid())
            if isinstance(archive, zipfile.ZipFile):
                return archive.open(self.member)
            found = archive.extractfile(self.member)
        except (OSError, KeyError, RuntimeError, NotImplementedError, zipfile.BadZipFile, tarfile.TarError) as error:
            raise UserError(f"{self.where}: cannot be read: {error}") from error
        if found is None:
            raise UserError(f"{self.where}: not a file")
        return found

    def read(self) -> bytes:
        """The whole content.

        Raises:
            UserError: see `open`; or a member that is damaged.
        """
        with self.open() as stream:
            try:
                return stream.read()
            except (zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
                raise UserError(f"{self.where}: damaged: {error}") from error

    def text(self) -> str:
        """The whole content as text (UTF-8, a byte-order mark is dropped; what is not UTF-8 is replaced)."""
        return self.read().decode("utf-8-sig", "replace")


@dataclass(frozen=True)
class Download:
    """What was found in one or several places.

    Attributes:
        roots: the folders or archives that were named.
        files: sorted by name.
        notices: what was passed over and may matter.
    """

    roots: tuple[Path, ...]
    files: tuple[SourceFile, ...]
    notices: tuple[str, ...] = ()

    def images(self) -> Iterator[SourceFile]:
        """The files whose ending is one of an image."""
        return (file for file in self.files if file.is_image)

    def named(self, base: str) -> list[SourceFile]:
        """The files with this last part of the name, whatever the case of its letters."""
        return [file for file in self.files if file.base.lower() == base.lower()]

    def matching(self, pattern: str | re.Pattern[str]) -> Iterator[tuple[SourceFile, re.Match[str]]]:
        r"""The files whose name ends with what a regular expression matches from the start of one of its parts.

        ``(?P<id>patient\d{3})_gt\.nii(\.gz)?`` finds ``training/patient001_gt.nii.gz``. Upper and lower case are the
        same. The expression may contain slashes.
        """
        expression = re.compile(rf"(?:^|/)(?:{pattern if isinstance(pattern, str) else pattern.pattern})$", re.I)
        for file in self.files:
            match = expression.search(file.name)
            if match:
                yield file, match


def ending_of(name: str) -> str:
    """The ending of a file's name in lower case: one of `IMAGE_ENDINGS`, or what follows the last dot, with it."""
    lower = name.lower()
    known = next((ending for ending in (*IMAGE_ENDINGS, *ARCHIVE_ENDINGS) if lower.endswith(ending)), None)
    return known if known is not None else PurePosixPath(lower).suffix


def open_download(places: Sequence[Path | str], skip: str | None = None) -> Download:
    """List the files of a download.

    Args:
        places: folders or archives.
        skip: regular expression of base names that are not looked at, such as archives that repeat others.

    Raises:
        UserError: a place that does not exist or holds nothing; an archive that is damaged or unsafe.
    """
    roots = tuple(Path(place).expanduser().absolute() for place in places)
    listing = _Listing(re.compile(skip, re.I) if skip else None)
    for root in roots:
        if root.is_dir():
            listing.walk(root, "" if len(roots) == 1 else f"{root.name}/")
        elif root.is_file() and ending_of(root.name) in ARCHIVE_ENDINGS:
            listing.look_into(root, "")
        elif root.exists():
            raise UserError(
                f"{root} is neither a folder nor an archive ({', '.join(ARCHIVE_ENDINGS)}): name the downloaded "
                "archive or the folder that it was unpacked into."
            )
        else:
            raise UserError(f"{root} does not exist: name the downloaded archive or the folder it was unpacked into.")
    if not listing.files:
        raise UserError(f"{', '.join(map(str, roots))}: no files there" + _tail(listing.notices))
    return Download(roots, tuple(sorted(listing.files, key=lambda file: file.name)), tuple(listing.notices))


def _tail(notices: Sequence[str]) -> str:
    return f" ({'; '.join(notices)})" if notices else "."


@dataclass
class _Listing:
    skip: re.Pattern[str] | None
    files: list[SourceFile] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)

    def ignored(self, base: str) -> bool:
        return bool(_IGNORED.match(base)) or (self.skip is not None and bool(self.skip.fullmatch(base)))

    def walk(self, folder: Path, prefix: str, depth: int = 0) -> None:
        """Add the files of a folder and of those below."""
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            self.notices.append(f"{folder}: cannot be read ({error.strerror})")
            return
        names = {entry.name for entry in entries}
        for entry in entries:
            if self.ignored(entry.name):
                continue
            if entry.is_dir():
                self._folder(Path(entry.path), f"{prefix}{entry.name}", depth)
            elif not entry.is_file():
                self.notices.append(f"{entry.path}: a broken link or no file: passed over")
            elif ending_of(entry.name) in ARCHIVE_ENDINGS:
                if entry.name[: -len(ending_of(entry.name))] not in names:
                    self.look_into(Path(entry.path), prefix)
            else:
                self.add(prefix + entry.name, Path(entry.path), None, entry.stat().st_size, entry.stat().st_mtime_ns)

    def _folder(self, folder: Path, name: str, depth: int) -> None:
        """A folder; one that is called like an image and holds one file of that name stands for this file."""
        if ending_of(folder.name) in (".nii", ".nii.gz"):
            inside = [path for path in folder.iterdir() if path.is_file() and not self.ignored(path.name)]
            if len(inside) == 1 and ending_of(inside[0].name) in (".nii", ".nii.gz"):
                found = inside[0].stat()
                parent = str(PurePosixPath(name).parent)
                self.add(str(PurePosixPath(parent) / inside[0].name), inside[0], None, found.st_size, found.st_mtime_ns)
                return
        if depth < DEPTH:
            self.walk(folder, f"{name}/", depth + 1)
        else:
            self.notices.append(f"{folder}: more than {DEPTH} folders deep: not searched")

    def look_into(self, archive: Path, prefix: str) -> None:
        """Add the members of an archive, as though it had been unpacked beside itself."""
        mtime = archive.stat().st_mtime_ns
        try:
            opened = _archive(str(archive), mtime, os.getpid())
            members = list(_members(opened))
        except (OSError, EOFError, zipfile.BadZipFile, tarfile.TarError) as error:
            raise UserError(f"{archive}: a damaged archive ({error}): download it again.") from error
        for member, size, is_file in members:
            _check_member(archive, member)
            parts = PurePosixPath(member).parts
            if any(self.ignored(part) for part in parts):
                continue
            if not is_file:
                self.notices.append(f"{archive}:{member}: a link or a device: passed over")
            elif ending_of(member) in ARCHIVE_ENDINGS:
                self.notices.append(f"{archive}:{member}: an archive in an archive: unpack the outer one to use it")
            else:
                self.add(prefix + str(PurePosixPath(*parts)), archive, member, size, mtime)

    def add(self, name: str, container: Path, member: str | None, size: int, mtime_ns: int) -> None:
        if size:
            self.files.append(SourceFile(name, container, member, size, mtime_ns))
        else:
            self.notices.append(f"{container if member is None else f'{container}:{member}'}: empty: passed over")


def _members(archive: zipfile.ZipFile | tarfile.TarFile) -> Iterator[tuple[str, int, bool]]:
    """Name, size and whether it is an ordinary file, of everything but folders."""
    if isinstance(archive, zipfile.ZipFile):
        for entry in archive.infolist():
            if not entry.is_dir():
                kind = stat.S_IFMT(entry.external_attr >> 16)
                yield entry.filename, entry.file_size, kind in (0, stat.S_IFREG)
        return
    for item in archive.getmembers():
        if not item.isdir():
            yield item.name, item.size, item.isfile()


def _check_member(archive: Path, member: str) -> None:
    """Refuse names that would leave the folder an archive is unpacked into.

    Raises:
        UserError: such a name.
    """
    parts = member.replace("\\", "/").split("/")
    if ".." in parts or member.startswith(("/", "\\")) or re.match(r"[A-Za-z]:", member) or "\0" in member:
        raise UserError(
            f"{archive}: refused: its member {member!r} would be unpacked outside of the archive's folder. That is no "
            "data set's own archive: download it again from the official place."
        )


@lru_cache(maxsize=8)
def _archive(path: str, mtime_ns: int, process: int) -> zipfile.ZipFile | tarfile.TarFile:
    """An open archive. A process that was forked from another opens it anew: the two would move one file position."""
    if ending_of(path) == ".zip":
        return zipfile.ZipFile(path)
    return tarfile.open(path)


def duplicates(files: Iterable[tuple[Any, SourceFile]]) -> dict[Any, list[SourceFile]]:
    """Keys that several files claim, each with its files."""
    found: dict[Any, list[SourceFile]] = {}
    for key, file in files:
        found.setdefault(key, []).append(file)
    return {key: claimed for key, claimed in found.items() if len(claimed) > 1}
