"""What a data set's folder knows of its own conversion: who is at it, what is done, and what conversion.json says."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nnunet_ext.dataset_conversion.files import MARK
from nnunet_ext.dataset_conversion.work import Job
from nnunet_ext.errors import UserError

FORMAT = 1
RECORD, PARTIAL, LOCK = "conversion.json", ".conversion.partial.jsonl", ".conversion.lock"


class State:
    """The cases that earlier runs finished, and those of this one.

    Each finished case is a line of a file, so that nothing is lost when a run is killed; conversion.json is written at
    the end.
    """

    def __init__(self, folder: Path) -> None:
        """Read what earlier runs left.

        Args:
            folder: the raw data set's; may be missing.

        Raises:
            UserError: its conversion.json can't be read.
        """
        self.folder = folder
        self.record = _read_record(folder / RECORD)
        self.done: dict[str, dict[str, Any]] = dict(self.record.get("cases", {}))
        for line in _lines(folder / PARTIAL):
            self.done[line["case"]] = line["entry"]

    @property
    def is_ours(self) -> bool:
        """Whether a conversion has been here."""
        return bool(self.record) or (self.folder / PARTIAL).is_file()

    def finished(self, job: Job) -> dict[str, Any] | None:
        """The entry of a case that is done: from the same files by the same rules, and all that was made is there."""
        entry = self.done.get(job.case.id)
        if entry is None or entry.get("key") != key_of(job) or entry["part"] != job.case.part:
            return None
        return entry if all(_intact(self.folder / file["file"], file) for file in files_of(entry)) else None

    def add(self, job: Job, entry: dict[str, Any]) -> dict[str, Any]:
        """Note a case that is done."""
        for file in files_of(entry):
            file["target_size"] = (self.folder / file["file"]).stat().st_size
        entry["key"] = key_of(job)
        with (self.folder / PARTIAL).open("a", encoding="utf-8") as lines:
            lines.write(json.dumps({"case": job.case.id, "entry": entry}) + "\n")
        return entry

    def drop(self, keep: Mapping[str, Any]) -> list[str]:
        """Remove files that earlier runs made and that no case of `keep` has; returns their names."""
        wanted = {file["file"] for entry in keep.values() for file in files_of(entry)}
        made = {file["file"] for entry in self.done.values() for file in files_of(entry) if file["action"] != "keep"}
        for name in made - wanted:
            (self.folder / name).unlink(missing_ok=True)
        return sorted(made - wanted)

    def finish(self, content: dict[str, Any]) -> None:
        """Write conversion.json; the lines are not needed any more."""
        write_text(self.folder / RECORD, _one_line_a_case({"format": FORMAT, **content}))
        (self.folder / PARTIAL).unlink(missing_ok=True)


def files_of(entry: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The files of a case's entry: images and label."""
    return [*entry["images"], *([entry["label"]] if entry["label"] else [])]


def key_of(job: Job) -> str:
    """A checksum of all that decides what becomes of a case: its files' size and time, the rules, the options."""
    case = job.case
    sources = [
        [str(file.container), file.member, file.size, file.mtime_ns]
        for file in (*case.images, case.label)
        if file is not None
    ]
    content = [FORMAT, job.settings, sources, case.id, case.part, case.group, dict(case.details), case.notices]
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:32]


def settings_of(*parts: object) -> str:
    """A checksum of what all cases share: rules and options."""
    return hashlib.sha256(repr([FORMAT, *parts]).encode()).hexdigest()[:16]


def _intact(path: Path, file: Mapping[str, Any]) -> bool:
    return path.is_file() and path.stat().st_size == file.get("target_size")


def _read_record(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict) or not isinstance(content.get("cases"), dict):
            raise ValueError("it has no cases")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): move it away, and convert again.") from error
    if content.get("format") != FORMAT:
        raise UserError(f"{path} is of format {content.get('format')!r}; this version of nnunet_ext reads {FORMAT}.")
    return content


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines; the last may be cut off where a run was killed."""
    if not path.is_file():
        return
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            content = json.loads(line)
        except ValueError:
            continue
        yield content


def _one_line_a_case(content: Mapping[str, Any]) -> str:
    """JSON with a line for each entry and for each case: people can search it, and it is quickly written."""
    entries = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in content.items() if key != "cases"]
    cases = ",\n".join(f"  {json.dumps(case)}: {json.dumps(entry)}" for case, entry in content["cases"].items())
    return "{\n" + ",\n".join([f" {entry}" for entry in entries] + [f' "cases": {{\n{cases}\n }}']) + "\n}\n"


def write_json(path: Path, content: Any) -> None:
    """Write JSON with `write_text`."""
    write_text(path, json.dumps(content, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write beside the file and rename, so that it is whole or as it was."""
    unfinished = path.with_name(f".{path.name}{MARK}{os.getpid()}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        unfinished.write_text(text, encoding="utf-8")
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep a second conversion out of the folder.

    Raises:
        UserError: another process is at it.
    """
    path = folder / LOCK
    folder.mkdir(parents=True, exist_ok=True)
    _refuse_if_held(path)
    mine = json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")})
    try:
        with path.open("x", encoding="utf-8") as lock:
            lock.write(mine)
    except FileExistsError as error:
        raise UserError(f"{folder}: another conversion has just begun there.") from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _refuse_if_held(path: Path) -> None:
    """Remove the lock of a dead process of this machine; refuse any other."""
    try:
        holder = json.loads(path.read_text(encoding="utf-8"))
        pid, host = int(holder["pid"]), str(holder["host"])
    except FileNotFoundError:
        return
    except (OSError, ValueError, KeyError, TypeError):
        pid, host = -1, socket.gethostname()
    if host != socket.gethostname() or is_alive(pid):
        raise UserError(
            f"{path.parent} is being converted by process {pid} on {host}. If that process is gone, remove {path}."
        )
    path.unlink(missing_ok=True)


def is_alive(pid: int) -> bool:
    """Whether another process of this machine has this number."""
    if pid <= 0:
        return False
    if os.name != "posix":
        return pid != os.getpid()  # there, the question would end it
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return pid != os.getpid()
