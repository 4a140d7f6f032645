"""Prepares cases: preprocessed as nnU-Net does, hashed, looked at; in several processes, and never twice."""

from __future__ import annotations

import contextlib
import io
import json
import multiprocessing
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from tqdm import tqdm

from nnunet_ext.errors import UserError
from nnunet_ext.pretraining.cases import Case, body_box
from nnunet_ext.pretraining.frames import Frame
from nnunet_ext.pretraining.raw_images import RawCase, checksum, read_json
from nnunet_ext.whole_files import write_whole

INDEX = "cases.json"


@dataclass(frozen=True)
class Job:
    """A case to be prepared: preprocessed into `folder` unless `done` (perhaps `by_nnunet`), hashed, and looked at."""

    raw: RawCase
    folder: Path
    plans: dict[str, Any]
    configuration: str
    dataset_json: dict[str, Any]
    done: bool
    by_nnunet: bool


def is_there(folder: Path, name: str) -> bool:
    """The properties are written last, so with them the case is whole."""
    return (folder / f"{name}.pkl").is_file()


def prepare_all(
    jobs: Sequence[Job], folder: Path, processes: int, progress: bool
) -> tuple[list[Case], list[tuple[str, str]]]:
    """Prepare what is missing or has changed.

    Args:
        jobs: of all cases.
        folder: of the index that remembers what was found about each case.
        processes: at the same time.
        progress: show a bar.

    Returns:
        The cases, in the jobs' order, and those that are left out, each with the reason.
    """
    known = _read_index(folder / INDEX)
    entries: dict[str, dict[str, Any]] = {}
    todo: list[Job] = []
    for job in jobs:
        entry = known.get(_key(job))
        same = entry is not None and entry["files"] == _stamps(job.raw.files)
        if job.by_nnunet and same and entry is not None:  # which may have preprocessed it again since
            same = entry.get("prepared") == _prepared(job)
        if entry is not None and same and job.done:
            entries[_key(job)] = entry
        else:  # what we prepared from other files is prepared again; nnU-Net's own is nnU-Net's affair
            todo.append(job if job.by_nnunet else replace(job, done=False))
    left_out: list[tuple[str, str]] = []
    bar = tqdm(_results(todo, processes), total=len(todo), desc="prepare", disable=not progress or not todo)
    for number, (job, result) in enumerate(bar, 1):
        if isinstance(result, str):
            left_out.append((job.raw.name, result))
        else:
            entries[_key(job)] = result
        if number % 50 == 0 or number == len(todo):
            write_whole(folder / INDEX, json.dumps(known | entries, indent=1))
    cases = [_case(job, entries[_key(job)]) for job in jobs if _key(job) in entries]
    return cases, sorted(left_out)


def _key(job: Job) -> str:
    return f"{job.folder.name}/{job.raw.name}"


def _read_index(path: Path) -> dict[str, dict[str, Any]]:
    return cast("dict[str, dict[str, Any]]", read_json(path)) if path.is_file() else {}


def _stamps(files: Sequence[Path]) -> list[list[Any]]:
    """What tells that a file is another one now: its path, size, and time of change."""
    return [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in files if path.exists()]


def _prepared(job: Job) -> list[list[Any]]:
    return _stamps([job.folder / f"{job.raw.name}.pkl"])


def _case(job: Job, entry: Mapping[str, Any]) -> Case:
    return Case(
        job.raw.name,
        job.folder,
        job.raw.source,
        tuple(str(path) for path in job.raw.files),
        tuple(entry["sha256"]),
        tuple(entry["shape"]),
        tuple((int(low), int(high)) for low, high in entry["body"]),
        Frame(tuple(entry["shape"]), np.asarray(entry["matrix"])),
    )


def _results(jobs: Sequence[Job], processes: int) -> Iterator[tuple[Job, dict[str, Any] | str]]:
    """Every job with the entry of its case, or the reason why it is left out."""
    if processes <= 1 or len(jobs) < 2:
        for job in jobs:
            yield job, _attempt(job)
        return
    pool = ProcessPoolExecutor(min(processes, len(jobs)), mp_context=multiprocessing.get_context("spawn"))
    try:
        running = {pool.submit(_attempt, job): job for job in jobs}
        for future in as_completed(running):
            yield running[future], future.result()
    except BrokenProcessPool as error:
        raise UserError(
            "a worker process was killed, probably because memory ran out: use fewer processes (-np). What was "
            "finished is kept; the same command goes on from there."
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _attempt(job: Job) -> dict[str, Any] | str:
    try:
        if not job.done:
            _preprocess(job)
        loaded = infer_dataset_class(str(job.folder))(str(job.folder), [job.raw.name]).load_case(job.raw.name)
        image = loaded[0]
        return {
            "files": _stamps(job.raw.files),
            "prepared": _prepared(job),
            "sha256": [checksum(path) for path in job.raw.files if path.exists()],
            "shape": [int(edge) for edge in image.shape[1:]],
            "body": body_box(image),
            "matrix": Frame.from_properties(
                loaded[3], image.shape[1:], job.plans["transpose_backward"]
            ).matrix.tolist(),
        }
    except MemoryError:
        return "not enough memory for it: use fewer processes (-np)"
    except Exception as error:  # whatever the reader or the preprocessor says of a bad file: the others go on
        return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _preprocess(job: Job) -> None:
    """As nnU-Net preprocesses a case for prediction; written beside its place, then moved, the properties last."""
    manager = PlansManager(job.plans)
    settings = manager.get_configuration(job.configuration)
    preprocessor = settings.preprocessor_class(verbose=False)
    unfinished = job.folder / f".{job.raw.name}"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            preprocessor.run_case_save(
                str(unfinished / job.raw.name),
                [str(path) for path in job.raw.files],
                None,
                manager,
                settings,
                job.dataset_json,
            )
        for path in sorted(unfinished.iterdir(), key=lambda path: path.suffix == ".pkl"):
            path.replace(job.folder / path.name)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
