"""The files of a download: in folders and in zip and tar archives, which are read in place and never trusted.

An archive is seen as though it had been unpacked where it lies, unless a folder of its name lies beside it. What no
data set contains (hidden files, ``__MACOSX``, empty files) is passed over. Nothing here writes.
"""

from __future__ import annotations

import lzma
import os
import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import IO, Any

from nnunet_ext.errors import UserError

IMAGE_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd", ".gipl", ".png", ".bmp", ".tif", ".tiff")
PLAIN_ARCHIVES = (".zip", ".tar")
COMPRESSED_TARS = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
ARCHIVE_ENDINGS = (*PLAIN_ARCHIVES, *COMPRESSED_TARS)
_UNREADABLE = re.compile(r"\.(7z|rar|zst|z\d\d|zip\.\d+|r\d\d)$", re.IGNORECASE)
"""Archives, and parts of archives, that are not looked into."""
_PART = re.compile(r"(images|labels)(tr|ts|va|val|un)?", re.IGNORECASE)
NNUNET_FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
"""Environment variables that name nnU-Net's folders."""
DEPTH = 6
"""Folders below the download's root that are searched."""
DAMAGED = (OSError, EOFError, zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, NotImplementedError)
"""What the readers of archives raise for a damaged one, or for a compression that they lack."""
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
        plain: what is read instead of a compressed `container` (see `compressed`).
    """

    name: str
    container: Path
    member: str | None
    size: int
    mtime_ns: int
    plain: Path | None = None

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
            UserError: it is gone or may not be read; the archive is damaged, encrypted or compressed in an unknown way.
        """
        try:
            if self.member is None:
                return self.container.open("rb")
            archive = open_archive(str(self.plain or self.container), self.mtime_ns, os.getpid())
            if isinstance(archive, zipfile.ZipFile):
                return archive.open(self.member)
            found = archive.extractfile(self.member)
        except (*DAMAGED, KeyError, RuntimeError) as error:
            raise UserError(f"{self.where}: cannot be read: {error}") from error
        if found is None:
            raise UserError(f"{self.where}: not a file")
        return found

    def read(self) -> bytes:
        """The whole content.

        Raises:
            UserError: see `open`; or a member that is damaged.
        """
        try:
            with self.open() as stream:
                content = stream.read()
        except DAMAGED as error:
            raise UserError(f"{self.where}: damaged: {error}") from error
        if len(content) != self.size:
            raise UserError(f"{self.where}: damaged: {len(content)} bytes instead of {self.size}")
        return content

    def text(self) -> str:
        """The whole content as text (UTF-8, a byte-order mark is dropped; what is not UTF-8 is replaced)."""
        return self.read().decode("utf-8-sig", "replace")


@dataclass(frozen=True)
class Download:
    """What was found in one or several places.

    Attributes:
        roots: the folders, archives or JSON lists that were named.
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
        places: folders or archives; or a JSON list of files, which stands for the folder that it lies in.
        skip: regular expression of base names that are not looked at, such as archives that repeat others.

    Raises:
        UserError: a place that does not exist or holds nothing; an archive that is damaged or unsafe.
    """
    roots = tuple(dict.fromkeys(Path(place).expanduser().absolute() for place in places))
    listing = _Listing(re.compile(skip, re.I) if skip else None, _own_folders())
    for root in roots:
        if root.is_dir():
            listing.walk(root, "" if len(roots) == 1 else f"{root.name}/")
        elif root.is_file() and ending_of(root.name) in ARCHIVE_ENDINGS:
            listing.look_into(root, "")
        elif root.is_file() and ending_of(root.name) == ".json":
            listing.walk(root.parent, "")
        elif root.exists():
            raise UserError(
                f"{root} is neither a folder nor an archive ({', '.join(ARCHIVE_ENDINGS)}): name the downloaded "
                "archive or the folder that it was unpacked into."
            )
        else:
            raise UserError(f"{root} does not exist: name the downloaded archive or the folder it was unpacked into.")
    if not listing.files:
        raise UserError(f"{', '.join(map(str, roots))}: no files there" + _tail(listing.notices))
    return Download(roots, tuple(sorted(listing.found(), key=lambda file: file.name)), tuple(listing.notices))


def _own_folders() -> dict[str, str]:
    """nnU-Net's folders, each with the environment variable that names it: what lies in them is no download."""
    named = {variable: os.environ.get(variable) for variable in NNUNET_FOLDERS}
    return {os.path.realpath(os.path.expanduser(path)): variable for variable, path in named.items() if path}


def _tail(notices: Sequence[str]) -> str:
    return f" ({'; '.join(notices)})" if notices else "."


@dataclass
class _Listing:
    skip: re.Pattern[str] | None
    own: dict[str, str] = field(default_factory=dict)
    files: list[SourceFile] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)

    def ignored(self, base: str) -> bool:
        return bool(_IGNORED.match(base)) or (self.skip is not None and bool(self.skip.fullmatch(base)))

    def found(self) -> list[SourceFile]:
        """The files, each once even if places overlap.

        A folder that is called like an image and holds one image alone, as some programs unpack, stands for this image.
        """
        once = list({(file.container, file.member): file for file in reversed(self.files)}.values())[::-1]
        inside: dict[PurePosixPath, list[SourceFile]] = {}
        for file in once:
            parent = PurePosixPath(file.name).parent
            if ending_of(parent.name) in (".nii", ".nii.gz"):
                inside.setdefault(parent, []).append(file)
        names = {
            files[0]: str(parent)[: -len(ending_of(parent.name))] + files[0].ending
            for parent, files in inside.items()
            if len(files) == 1 and files[0].ending in (".nii", ".nii.gz")
        }
        return [replace(file, name=names.get(file, file.name)) for file in once]

    def walk(self, folder: Path, prefix: str, above: tuple[str, ...] = ()) -> None:
        """Add the files of a folder and of those below."""
        real = os.path.realpath(folder)
        if real in above:
            self.notices.append(f"{folder}: a link to a folder above itself: passed over")
            return
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            self.notices.append(f"{folder}: cannot be read ({error.strerror})")
            return
        entries = [entry for entry in entries if not self.ignored(entry.name)]
        folders = {entry.name for entry in entries if entry.is_dir()}
        for entry in entries:
            path = Path(entry.path)
            if entry.is_dir() and os.path.realpath(path) in self.own:
                variable = self.own[os.path.realpath(path)]
                self.notices.append(
                    f"{path}: the folder that {variable} names: passed over; name it, to convert from it"
                )
            elif entry.is_dir() and len(above) < DEPTH:
                self.walk(path, f"{prefix}{entry.name}/", (*above, real))
            elif entry.is_dir():
                self.notices.append(f"{path}: more than {DEPTH} folders deep: not searched")
            elif not entry.is_file():
                self.notices.append(f"{path}: a broken link or no file: passed over")
            elif ending_of(entry.name) in ARCHIVE_ENDINGS:
                self._archive_in(path, prefix, folders)
            elif _UNREADABLE.search(entry.name):
                self.notices.append(f"{path}: this kind of archive is not read: unpack it first")
            else:
                self.add(prefix + entry.name, path, None, entry.stat().st_size, entry.stat().st_mtime_ns)

    def _archive_in(self, archive: Path, prefix: str, folders: set[str]) -> None:
        """An archive in a folder, unless it lies unpacked beside itself."""
        unpacked = archive.name[: -len(ending_of(archive.name))]
        if unpacked not in folders or not any(os.scandir(archive.parent / unpacked)):
            self.look_into(archive, prefix)
        else:
            self.notices.append(f"{archive}: passed over for the folder {unpacked} beside it")

    def look_into(self, archive: Path, prefix: str) -> None:
        """Add the members of an archive, as though it had been unpacked beside itself."""
        mtime = archive.stat().st_mtime_ns
        try:
            members = list(_members(open_archive(str(archive), mtime, os.getpid())))
        except DAMAGED as error:
            raise UserError(
                f"{archive}: a damaged archive ({error}): download it again, or move it away if it is not needed."
            ) from error
        last = {member.replace("\\", "/"): (member, size, kind) for member, size, kind in members}
        stem = archive.name[: -len(ending_of(archive.name))]
        if _PART.fullmatch(stem) and not any("/" in name.removeprefix("./") for name in last):
            prefix += f"{stem}/"  # imagesTr.zip with files alone
        for name, (member, size, kind) in last.items():  # of members of one name the last is what unpacking leaves
            _check_member(archive, member)
            parts = PurePosixPath(name).parts
            if any(self.ignored(part) for part in parts):
                continue
            if kind == "encrypted":
                raise UserError(f"{archive}: encrypted ({member}): unpack it with its password, and name the folder.")
            if kind == "other":
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


def _members(archive: zipfile.ZipFile | tarfile.TarFile) -> Iterator[tuple[str, int, str]]:
    """Name, size and kind ("file", "encrypted" or "other") of everything but folders."""
    if isinstance(archive, zipfile.ZipFile):
        for entry in archive.infolist():
            if not entry.is_dir():
                plain = stat.S_IFMT(entry.external_attr >> 16) in (0, stat.S_IFREG)
                yield (
                    entry.filename,
                    entry.file_size,
                    "encrypted" if entry.flag_bits & 1 else "file" if plain else "other",
                )
        return
    for item in archive.getmembers():
        if not item.isdir():
            yield item.name, item.size, "file" if item.isfile() else "other"


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
def open_archive(path: str, mtime_ns: int, process: int) -> zipfile.ZipFile | tarfile.TarFile:
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
