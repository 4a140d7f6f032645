"""Putting what was made in its place, as a whole or not at all, and replacing only what was made here before."""

from __future__ import annotations

import json
import os
import platform
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nnunet_ext.errors import UserError
from nnunet_ext.submission.archive import sha256_of

RECORD_ENDING = ".report.json"
"""Of the file beside a submission that says how it was made."""
_FOLDER, _ZIP, _RECORD = "folder", "zip", "record"


class Output:
    """Where a submission goes: a folder with its zip beside it, the zip alone, or a container's folder.

    Beside it is a record with the checksums of all files. The record is set aside last and comes last, so that it
    tells, whenever a run is killed, what the run had moved.

    Attributes:
        folder: None: the zip alone.
        zip: the upload; None: a container.
        record: says how it was made.
    """

    def __init__(self, output: Path | str, *, container: bool = False) -> None:
        """Where to write; nothing is touched.

        Args:
            output: a folder, or a file that ends with .zip.
            container: there is no zip.

        Raises:
            UserError: something can never be written there.
        """
        path = Path(os.path.abspath(Path(output).expanduser()))
        alone = path.name.lower().endswith(".zip")
        if alone and container:
            raise UserError(f"-o {output}: a container is a folder, no zip")
        here = Path.cwd()
        if path in (here, *here.parents):
            raise UserError(f"-o {output}: that is the folder you are in, or one around it: name a new one")
        stem = path.name[:-4] if alone else path.name
        self.folder = None if alone else path
        self.zip = None if container else path if alone else path.with_name(f"{path.name}.zip")
        self.record = path.with_name(f"{stem}{RECORD_ENDING}")
        places = {_FOLDER: self.folder, _ZIP: self.zip, _RECORD: self.record}
        self._places = {kind: place for kind, place in places.items() if place is not None}

    @property
    def places(self) -> tuple[Path, ...]:
        """All that is written, the record last."""
        return tuple(self._places.values())

    def keep_out_of(self, folders: Sequence[Path]) -> None:
        """See that nothing is written into what the submission is made from.

        Raises:
            UserError: it would be.
        """
        for folder in folders:
            for place in self.places:
                if folder.resolve() in (place.resolve(), *place.resolve().parents):
                    raise UserError(f"-o would write {place} into {folder}, which is read: choose another -o")

    def check(self, overwrite: bool) -> None:
        """See that nothing is lost.

        Raises:
            UserError: something is there that may not be replaced.
        """
        for place in self.places:
            if place.is_symlink():
                raise UserError(f"{place} is a link, which is not replaced: give what it leads to, or another -o")
        there = [place for place in self.places if os.path.lexists(place) and not _is_empty(place)]
        if not there:
            return
        if not overwrite:
            raise UserError(
                f"{' and '.join(map(str, there))} {'exist' if len(there) > 1 else 'exists'}: choose another -o, or add "
                "--overwrite to replace what an earlier `nnunet-ext submit` wrote"
            )
        foreign = self._foreign(self._places, self.record)
        if foreign is not None:
            raise UserError(
                f"{foreign}: it is not replaced, as no earlier `nnunet-ext submit` wrote it as it is: move it away, or "
                "choose another -o"
            )

    def _foreign(self, places: Mapping[str, Path], record: Path) -> Path | None:
        """Something at these places that the record does not tell of."""
        there = {kind: place for kind, place in places.items() if os.path.lexists(place) and not _is_empty(place)}
        try:
            content = json.loads(record.read_text(encoding="utf-8"))
            written = {name: file["sha256"] for name, file in content["files"].items()}
            zipped = content["zip"]["sha256"] if _ZIP in there else None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return next(iter(there.values()), None)
        if _ZIP in there and (not there[_ZIP].is_file() or sha256_of(there[_ZIP]) != zipped):
            return there[_ZIP]
        return _foreign_file(there[_FOLDER], written) if _FOLDER in there else None

    @contextmanager
    def workshop(self) -> Iterator[Path]:
        """An empty folder on the same disk, to make in it what `move_in` takes; it is removed whatever happens.

        What runs on this machine that were killed had half moved is moved back first.

        Raises:
            UserError: that is not possible, as something was changed since.
            OSError: it cannot be made.
        """
        parent = self.record.parent
        parent.mkdir(parents=True, exist_ok=True)
        workshop = parent / f"{self._start}{os.getpid()}-{uuid.uuid4().hex[:8]}"
        new = workshop / "new"
        try:
            new.mkdir(parents=True)
            (workshop / "old").mkdir()
            yield new
        finally:
            shutil.rmtree(workshop, ignore_errors=True)

    @property
    def _start(self) -> str:
        return f".{self.record.name}.{platform.node()}."

    def recover(self) -> None:
        """Undo what killed runs on this machine had moved, and remove what they left.

        Raises:
            UserError: something was changed since.
        """
        from nnunet_ext.dataset_conversion.state import is_alive

        parent = self.record.parent
        for workshop in sorted(parent.iterdir()) if parent.is_dir() else ():
            number = workshop.name.removeprefix(self._start).partition("-")[0]
            if not workshop.name.startswith(self._start) or not number.isdecimal() or is_alive(int(number)):
                continue
            if (workshop / "new" / _RECORD).exists():  # the last to be moved
                moved = {kind: place for kind, place in self._places.items() if self._is_moved(workshop, kind)}
                foreign = self._foreign(moved, workshop / "new" / _RECORD)
                if foreign is not None:
                    raise UserError(
                        f"{foreign} is not as the run left it that was killed while writing it; what was there before "
                        f"is in {workshop / 'old'}: move both away"
                    )
                self._undo(workshop)
            shutil.rmtree(workshop, ignore_errors=True)

    def _is_moved(self, workshop: Path, kind: str) -> bool:
        return os.path.lexists(self._places[kind]) and not os.path.lexists(workshop / "new" / kind)

    def _undo(self, workshop: Path) -> None:
        for kind, place in self._places.items():
            if self._is_moved(workshop, kind):
                os.rename(place, workshop / "new" / kind)
            if os.path.lexists(workshop / "old" / kind):
                os.rename(workshop / "old" / kind, place)

    def move_in(self, new: Path, overwrite: bool) -> None:
        """Rename all that was made into its place; what was there is set aside first and comes back on failure.

        Args:
            new: what `workshop` gave, with "folder", "zip" and "record", as far as there are these places.
            overwrite: see `check`, which is repeated: making it took its time.

        Raises:
            UserError: something is there that may not be replaced.
            OSError: it cannot be moved.
        """
        self.check(overwrite)
        try:
            for kind, place in self._places.items():
                if os.path.lexists(place):
                    os.rename(place, new.parent / "old" / kind)
            for kind, place in self._places.items():
                os.rename(new / kind, place)
        except BaseException:
            self._undo(new.parent)
            raise


def _foreign_file(folder: Path, written: Mapping[str, Any]) -> Path | None:
    if not folder.is_dir():
        return folder
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or (not path.is_dir() and (name not in written or sha256_of(path) != written[name])):
            return path
    return None


def _is_empty(path: Path) -> bool:
    return not path.is_symlink() and path.is_dir() and not any(path.iterdir())
