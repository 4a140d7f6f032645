"""What a data set's folder knows of its own conversion: who is at it, what is done, and what conversion.json says."""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nnunet_ext.dataset_conversion.files import MARK
from nnunet_ext.dataset_conversion.work import Job
from nnunet_ext.errors import UserError

FORMAT = 1
RECORD, PARTIAL, LOCK = "conversion.json", ".conversion.partial.jsonl", ".conversion.lock"
ASIDE = "put_aside"
"""Folder below a data set's for files that it does not have any more; nnU-Net does not look there."""
_NAME = re.compile(r"(images|labels)(Tr|Ts|Un)/[^/\\]+")


class State:
    """The cases that earlier runs finished, and those of this one.

    What a run is going to write is a line of a file before it begins, and so is each finished case: nothing is lost and
    nothing forgotten when it is killed. conversion.json is written at the end.
    """

    def __init__(self, folder: Path) -> None:
        """Read what earlier runs left.

        Args:
            folder: the raw data set's; may be missing.

        Raises:
            UserError: its conversion.json can't be read, or names files elsewhere.
        """
        self.folder = folder
        self.record = _read_record(folder / RECORD)
        self.done: dict[str, dict[str, Any]] = dict(self.record.get("cases", {}))
        self._claimed: set[str] = set()
        for line in _lines(folder / PARTIAL):
            if "planned" in line:
                self._claimed |= set(line["planned"])
            else:
                self.done[line["case"]] = line["entry"]
        self._claimed |= {file["file"] for entry in self.done.values() for file in files_of(entry)}
        _check_names(self._claimed, folder)

    @property
    def is_ours(self) -> bool:
        """Whether a conversion has been here, or nobody: what a run writes first does not count."""
        if self.record or (self.folder / PARTIAL).is_file() or not self.folder.is_dir():
            return True
        return all(path.name.startswith(LOCK) or MARK in path.name for path in self.folder.iterdir())

    def claims(self, name: str) -> bool:
        """Whether a conversion wrote this file, or was going to."""
        return name in self._claimed

    def plan(self, names: Iterable[str]) -> None:
        """Note what will be written, before anything is."""
        self._claimed |= set(names)
        self._note({"planned": sorted(self._claimed)})

    def finished(self, job: Job) -> dict[str, Any] | None:
        """The entry of a case that is done: from the same files by the same rules, and all that was made is there."""
        entry = self.done.get(job.case.id)
        if entry is None or not self.same(job, entry):
            return None
        return entry if all(self.intact(file) for file in files_of(entry)) else None

    def same(self, job: Job, entry: Mapping[str, Any]) -> bool:
        """Whether an entry was made of the same files by the same rules."""
        return entry.get("key") == key_of(job) and bool(entry["part"] == job.case.part)

    def intact(self, file: Mapping[str, Any]) -> bool:
        """Whether a file of the data set is as it was made: of the same size, a label also of the same content."""
        path = self.folder / file["file"]
        if not path.is_file() or path.stat().st_size != file.get("target_size"):
            return False
        if "target_sha256" not in file or path.stat().st_mtime_ns == file["target_mtime_ns"]:
            return True
        return bool(hashlib.sha256(path.read_bytes()).hexdigest() == file["target_sha256"])

    def add(self, job: Job, entry: dict[str, Any]) -> dict[str, Any]:
        """Note a case that is done."""
        for file in files_of(entry):
            file["target_size"] = (self.folder / file["file"]).stat().st_size
        label = entry["label"]
        if label is not None and label["action"] in ("write", "copy"):
            path = self.folder / label["file"]
            label["target_mtime_ns"] = path.stat().st_mtime_ns
            label["target_sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
        entry["key"], entry["content"] = key_of(job), content_of(job)
        self._note({"case": job.case.id, "entry": entry})
        return entry

    def _note(self, line: Mapping[str, Any]) -> None:
        with (self.folder / PARTIAL).open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(line) + "\n")

    def put_aside(self, names: Iterable[str], forced: bool) -> list[str]:
        """Take files out of nnU-Net's sight: links are removed, files are moved to `ASIDE`, or removed if `forced`.

        Returns:
            The names of those that were moved.
        """
        moved = []
        for name in sorted(names):
            path, aside = self.folder / name, self.folder / ASIDE / name
            if path.is_symlink() or (forced and path.is_file()):
                path.unlink()
            elif path.is_file():
                aside.parent.mkdir(parents=True, exist_ok=True)
                os.replace(path, aside)
                moved.append(name)
        return moved

    def unwanted(self, keep: Mapping[str, Any]) -> set[str]:
        """Files that a conversion wrote and that no case of `keep` has; none that were there before any conversion."""
        wanted = {file["file"] for entry in keep.values() for file in files_of(entry)}
        own = {file["file"] for entry in self.done.values() for file in files_of(entry) if file["action"] == "keep"}
        return self._claimed - wanted - own

    def finish(self, content: dict[str, Any]) -> None:
        """Write conversion.json; the lines are not needed any more."""
        write_text(self.folder / RECORD, _one_line_a_case({"format": FORMAT, **content}))
        (self.folder / PARTIAL).unlink(missing_ok=True)


def _check_names(names: Iterable[str], folder: Path) -> None:
    """Refuse a record that names files elsewhere: what it names may be moved."""
    wrong = [name for name in names if not isinstance(name, str) or not _NAME.fullmatch(name)]
    if wrong:
        raise UserError(
            f"{folder / RECORD} names {wrong[0]!r}, which is no file of a data set's folders: it was changed by hand. "
            "Move it away, and convert to another id."
        )


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
    content = [
        FORMAT,
        job.settings,
        sources,
        case.id,
        case.part,
        case.group,
        dict(case.details),
        case.notices,
    ]
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:32]


def settings_of(content: Sequence[object], options: Sequence[object]) -> str:
    """A checksum of what all cases share: first of what labels and channels mean, then of how files are treated."""
    return ":".join(hashlib.sha256(repr([FORMAT, *parts]).encode()).hexdigest()[:16] for parts in (content, options))


def content_of(job: Job) -> str:
    """The first part of `settings_of`: cases that differ in it can't lie in one data set."""
    return job.settings.partition(":")[0]


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
        if isinstance(content, dict) and (isinstance(content.get("planned"), list) or _is_entry(content.get("entry"))):
            yield content


def _is_entry(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("images"), list) and "label" in value


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
    _remove_if_dead(path)
    mine = path.with_name(f"{LOCK}-{os.getpid()}")
    mine.write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}), encoding="utf-8")
    try:
        os.link(mine, path)  # the lock is there with its content, or not at all
    except FileExistsError as error:
        raise UserError(f"{folder}: another conversion has just begun there.") from error
    except OSError:  # a disk without hard links
        with path.open("x", encoding="utf-8") as lock:
            lock.write(mine.read_text(encoding="utf-8"))
    finally:
        mine.unlink(missing_ok=True)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _remove_if_dead(path: Path) -> None:
    """Remove the lock of a dead process of this machine; refuse any other."""
    try:
        holder = json.loads(path.read_text(encoding="utf-8"))
        pid, host = int(holder["pid"]), str(holder["host"])
    except FileNotFoundError:
        return
    except (OSError, ValueError, KeyError, TypeError):
        pid, host = -1, "an unknown machine"
    if host != socket.gethostname() or is_alive(pid):
        raise UserError(
            f"{path.parent} is being converted by process {pid} on {host}. If that process is gone, remove {path}."
        )
    path.unlink(missing_ok=True)


def is_alive(pid: int) -> bool:
    """Whether another process of this machine has this number."""
    if pid <= 0 or pid == os.getpid():
        return False
    if os.name == "nt":  # there, signal 0 would end it
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
