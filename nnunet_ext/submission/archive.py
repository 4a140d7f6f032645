"""The zip that is uploaded, and putting a submission in its place as a whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import uuid
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nnunet_ext.errors import UserError

RECORD_ENDING = ".report.json"
"""Of the file beside a submission that says how it was made."""
_DATE = (1980, 1, 1, 0, 0, 0)
_CHUNK = 1 << 22


def sha256_of(path: Path) -> str:
    """Hexadecimal digest of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def write_zip(path: Path, folder: Path, names: Sequence[str]) -> None:
    """Zip files of a folder; the same files always make the same bytes.

    Args:
        path: of the zip.
        folder: that names start at.
        names: with slashes.
    """
    with zipfile.ZipFile(path, "w") as archive:
        for name in sorted(names):
            entry = zipfile.ZipInfo(name, _DATE)
            entry.create_system = 3  # Unix, wherever it is made
            entry.external_attr = 0o100644 << 16
            entry.compress_type = zipfile.ZIP_STORED if name.endswith(".gz") else zipfile.ZIP_DEFLATED
            entry.file_size = (folder / name).stat().st_size
            with (folder / name).open("rb") as source, archive.open(entry, "w") as target:
                shutil.copyfileobj(source, target, _CHUNK)


class Output:
    """Where a submission goes: a folder with its zip beside it, or the zip alone.

    Attributes:
        folder: None: the zip alone.
        zip: the upload.
        record: says how it was made.
    """

    def __init__(self, output: Path | str) -> None:
        """Args: output: a folder, or a file that ends with .zip."""
        path = Path(output).expanduser().absolute()
        alone = path.name.lower().endswith(".zip")
        self.folder = None if alone else path
        self.zip = path if alone else path.with_name(f"{path.name}.zip")
        stem = path.name[:-4] if alone else path.name
        self.record = path.with_name(f"{stem}{RECORD_ENDING}")

    @property
    def places(self) -> tuple[Path, ...]:
        """All that is written."""
        return (self.record, self.zip) if self.folder is None else (self.record, self.zip, self.folder)

    def check(self, overwrite: bool) -> None:
        """See that nothing is lost.

        Raises:
            UserError: something is there that may not be replaced.
        """
        there = [path for path in self.places if path.exists() and not _is_empty(path)]
        if not there:
            return
        if not overwrite:
            raise UserError(
                f"{' and '.join(map(str, there))} {'exist' if len(there) > 1 else 'exists'}: choose another -o, or add "
                "--overwrite to replace an earlier submission"
            )
        foreign = self._foreign()
        if foreign is not None:
            raise UserError(f"{foreign}: it is not replaced, as no earlier `nnunet-ext submit` wrote it as it is")

    def _foreign(self) -> Path | None:
        """Something that the record does not tell of."""
        try:
            content = json.loads(self.record.read_text(encoding="utf-8"))
            written, zipped = {name: file["sha256"] for name, file in content["files"].items()}, content["zip"]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return next(path for path in reversed(self.places) if path.exists())
        if self.zip.exists() and (not self.zip.is_file() or sha256_of(self.zip) != zipped["sha256"]):
            return self.zip
        if self.folder is None or not self.folder.exists():
            return None
        if not self.folder.is_dir():
            return self.folder
        for path in sorted(self.folder.rglob("*")):
            name = path.relative_to(self.folder).as_posix()
            if path.is_symlink() or (not path.is_dir() and (name not in written or sha256_of(path) != written[name])):
                return path
        return None

    @contextmanager
    def unfinished(self) -> Iterator[Path]:
        """A folder beside the output to work in, on the same disk; it is removed whatever happens.

        Raises:
            UserError: it cannot be made.
        """
        parent = self.record.parent
        folder = parent / f".{self.record.name}.{platform.node()}.{os.getpid()}-{uuid.uuid4().hex[:8]}"
        try:
            parent.mkdir(parents=True, exist_ok=True)
            _remove_leftovers(parent, f".{self.record.name}.{platform.node()}.")
            folder.mkdir()
        except FileExistsError as error:
            raise UserError(f"{parent} is a file; choose another -o") from error
        except PermissionError as error:
            raise UserError(f"{parent} cannot be written to; choose another -o") from error
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def move_in(self, made: Mapping[Path, Path], aside: Path) -> None:
        """Rename all that was made into its place; what was there is set aside first and comes back on failure.

        Args:
            made: place -> what is to be there.
            aside: an empty folder on the same disk.
        """
        done: list[Path] = []
        kept: list[tuple[Path, Path]] = []
        try:
            for place in made:
                if place.exists():
                    old = aside / f"{len(kept)}"
                    os.rename(place, old)
                    kept.append((old, place))
            for place, new in made.items():
                os.rename(new, place)
                done.append(place)
        except BaseException:
            for place in done:
                os.rename(place, aside / f"undone{done.index(place)}")
            for old, place in kept:
                os.rename(old, place)
            raise


def _remove_leftovers(parent: Path, start: str) -> None:
    """Remove what killed runs on this machine left, unless an earlier submission was set aside in it."""
    for path in parent.iterdir():
        number = path.name.removeprefix(start).partition("-")[0]
        if not path.name.startswith(start) or not number.isdecimal() or _lives(int(number)):
            continue
        if not (path / "aside").is_dir() or _is_empty(path / "aside"):
            shutil.rmtree(path, ignore_errors=True)


def _lives(process: int) -> bool:
    if os.name != "posix":
        return True  # there, the question would end it
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _is_empty(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON beside `path` and rename.

    Raises:
        UserError: there is no such folder, or it cannot be written to.
    """
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        unfinished.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        os.replace(unfinished, path)
    except (FileNotFoundError, NotADirectoryError, PermissionError, IsADirectoryError) as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error
    finally:
        unfinished.unlink(missing_ok=True)
