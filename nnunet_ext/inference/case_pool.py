"""Cases in parallel: an error in one case stops no other; files appear when they are whole; a later run goes on."""

from __future__ import annotations

import errno
import json
import multiprocessing
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from nnunet_ext import __version__
from nnunet_ext.dataset_conversion.files import MARK, Outputs
from nnunet_ext.dataset_conversion.state import is_alive
from nnunet_ext.errors import UserError
from nnunet_ext.inference.prediction_folders import read_object

Progress = Callable[[Iterable[Any], int], Iterable[Any]]


class CaseJob(Protocol):
    """What is done for one case; `case` is its id."""

    @property
    def case(self) -> str: ...


@dataclass
class Outcome:
    """What became of the cases.

    Attributes:
        done: ids of cases that were written, with what the work on each returned.
        there: ids of cases that an earlier run had finished.
        failed: id -> reason.
        notices: further remarks.
    """

    done: dict[str, Any] = field(default_factory=dict)
    there: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)


def work_on(
    function: Callable[[Any], Any], jobs: Sequence[CaseJob], processes: int, progress: Progress | None, outcome: Outcome
) -> Outcome:
    """Do the work on each case.

    Args:
        function: takes a job; at the top of a module, as other processes run it.
        jobs: one a case.
        processes: that work at the same time; 1: this one.
        progress: called with the results and their number; passes them on.
        outcome: what is found is added to it.

    Raises:
        OSError: no room on the disk.
        UserError: a worker process was killed.
    """
    stream: Iterable[tuple[str, Any, str | None]] = _results(function, jobs, processes)
    for case, result, reason in stream if progress is None else progress(stream, len(jobs)):
        if reason is None:
            outcome.done[case] = result
        else:
            outcome.failed[case] = reason
    return outcome


def _results(function: Any, jobs: Sequence[CaseJob], processes: int) -> Iterator[tuple[str, Any, str | None]]:
    if processes <= 1 or len(jobs) < 2:
        yield from (_attempt(function, job) for job in jobs)
        return
    pool = ProcessPoolExecutor(min(processes, len(jobs)), mp_context=multiprocessing.get_context("spawn"))
    try:
        for future in as_completed([pool.submit(_attempt, function, job) for job in jobs]):
            yield future.result()
    except BrokenProcessPool as error:
        raise UserError(
            "a worker process was killed, probably for want of memory: use fewer processes (-np). What was finished is "
            "kept; the same command goes on from there."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _attempt(function: Any, job: CaseJob) -> tuple[str, Any, str | None]:
    try:
        return job.case, function(job), None
    except UserError as error:
        return job.case, None, str(error)
    except MemoryError:
        return job.case, None, "not enough memory: use fewer processes (-np)"
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        return job.case, None, f"{error.filename or ''}: {error.strerror or error}".removeprefix(": ")
    except Exception as error:  # the others go on
        return job.case, None, f"unexpected error, please report it: {type(error).__name__}: {error}"


def is_finished(outputs: Sequence[Path], inputs: Iterable[Path]) -> bool:
    """Whether all outputs are there, and none of the inputs was changed since."""
    if not all(path.is_file() for path in outputs):
        return False
    made = min(path.stat().st_mtime_ns for path in outputs)
    return all(path.stat().st_mtime_ns <= made for path in inputs)


def make_folder(folder: Path, sources: Iterable[Path]) -> None:
    """Make an output folder, and remove what killed runs left unfinished in it.

    Raises:
        UserError: it is one of those that are read, or it can't be made.
    """
    for source in sources:
        if folder.resolve() == source.resolve():
            raise UserError(f"-o {folder}: predictions are read from there; choose another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(f"{folder} is a file, or lies in one; choose another folder") from error
    except OSError as error:
        raise UserError(f"cannot make {folder}: {error.strerror}; choose another folder") from error
    for path in folder.glob(f".*{MARK}*"):
        number = path.name.rpartition(MARK)[2].partition(".")[0]
        if number.isdecimal() and not is_alive(int(number)):
            path.unlink(missing_ok=True)


def check_earlier(record: Path, settings: Mapping[str, Any], outputs: Iterable[Path], overwrite: bool) -> None:
    """See that what is there was made in the same way.

    Args:
        record: the file of `describe`.
        settings: JSON values.
        outputs: what will be written.
        overwrite: then anything may be there.

    Raises:
        UserError: otherwise.
    """
    there = next((path for path in outputs if path.exists()), None)
    if overwrite or there is None:
        return
    before = read_object(record) if record.is_file() else {}
    if any(before.get(key) != value for key, value in settings.items()):
        how = {key: before.get(key) for key in settings} if before else "something else"
        raise UserError(
            f"{there} exists, made by {how}, and this is {dict(settings)}: choose another -o, or add --overwrite"
        )


def describe(
    folder: Path, dataset_json: Mapping[str, Any], plans: Path | None, record: str, settings: Mapping[str, Any]
) -> None:
    """Write dataset.json and plans.json, as nnUNetv2_predict leaves them, and how the folder was made.

    Args:
        folder: of predictions.
        dataset_json: its content.
        plans: path of plans.json, or None.
        record: name of the last.
        settings: JSON values.
    """
    with Outputs(folder) as outputs:
        for name, content in (("dataset.json", dataset_json), (record, {**settings, "version": __version__})):
            outputs.unfinished(name).write_text(json.dumps(content, indent=4), encoding="utf-8")
        if plans is not None:
            shutil.copyfile(plans, outputs.unfinished("plans.json"))
