"""Cases in parallel: each result as soon as it is there; an error in one case stops no other."""

from __future__ import annotations

import multiprocessing
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

from nnunet_ext.dataset_conversion import files
from nnunet_ext.dataset_conversion.cases import Fault
from nnunet_ext.dataset_conversion.volumes import UnusableError
from nnunet_ext.dataset_conversion.work import Job, convert_case
from nnunet_ext.errors import UserError

Result = tuple[Job, "dict[str, Any] | Fault"]


def attempt(job: Job) -> dict[str, Any] | Fault:
    """Convert a case, or say why it is left out.

    Raises:
        OSError: no room on the disk; that is no fault of the case.
    """
    try:
        return convert_case(job)
    except UnusableError as error:
        return Fault(job.case.id, str(error))
    except MemoryError:
        return Fault(job.case.id, "not enough memory for its files: use fewer processes (-np).")
    except OSError as error:
        if error.errno in files.FULL:
            raise
        return Fault(job.case.id, f"{error.filename or job.target}: {error.strerror or error}.")
    except Exception as error:  # a defect of ours, or a file of a kind that nobody thought of: the others go on
        return Fault(job.case.id, f"unexpected error, please report it: {type(error).__name__}: {error}")


def results(jobs: Sequence[Job], processes: int) -> Iterator[Result]:
    """The results of all jobs, in the order in which they are ready.

    Args:
        jobs: of the cases.
        processes: 1: in this one.

    Raises:
        OSError: no room on the disk. What was finished before has been yielded.
        UserError: a worker process was killed.
    """
    if processes <= 1 or len(jobs) < 2:
        for job in jobs:
            yield job, attempt(job)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(processes, len(jobs)), mp_context=context)
    try:
        with _interrupts_ignored():  # the workers inherit that: Ctrl-C is for this process, which lets them finish
            running: dict[Future[dict[str, Any] | Fault], Job] = {pool.submit(attempt, job): job for job in jobs}
        for future in as_completed(running):
            yield running.pop(future), future.result()
    except BrokenProcessPool as error:
        raise UserError(
            "a worker process was killed, probably because memory ran out: use fewer processes (-np). (A script of "
            "yours that calls this needs `if __name__ == '__main__':`.) What was finished is kept; the same command "
            "goes on from there."
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Processes that are started in this block do not notice Ctrl-C."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
