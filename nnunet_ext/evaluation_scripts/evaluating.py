"""Evaluate predictions: every case in a worker process, results kept between runs, under one convention."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_ext import __version__
from nnunet_ext.errors import UserError
from nnunet_ext.evaluation_scripts import label_maps, quantities
from nnunet_ext.evaluation_scripts.conventions import Convention
from nnunet_ext.evaluation_scripts.label_maps import LabelMap
from nnunet_ext.evaluation_scripts.metrics import CasePair
from nnunet_ext.evaluation_scripts.pairing import Pairs, shortened
from nnunet_ext.evaluation_scripts.results import CaseResult, Evaluation
from nnunet_ext.evaluation_scripts.structures import Structures

EMPTY_PREDICTION = "worst"
MISSING = ("error", "skip", EMPTY_PREDICTION)


@dataclass(frozen=True)
class Job:
    """One case.

    Attributes:
        case: its id.
        reference, predicted: files; None: no prediction, which counts as an empty one.
        structures: what is evaluated.
        allowed: label values that may occur.
        ignore: label whose voxels are evaluated nowhere; None: there is none.
        convention: its name.
        metrics: what is computed.
        digits: to which values are rounded; None: not at all.
    """

    case: str
    reference: Path
    predicted: Path | None
    structures: Structures
    allowed: frozenset[int]
    ignore: int | None
    convention: str
    metrics: tuple[quantities.Metric, ...]
    digits: int | None


def evaluate_case(job: Job) -> CaseResult:
    """Evaluate a case.

    Raises:
        UserError: a file can't be read, the two do not lie on the same grid, or labels occur that should not.
    """
    reference = label_maps.read(job.reference)
    notices: list[str] = []
    if job.predicted is None:
        predicted = LabelMap(np.zeros_like(reference.labels), reference.spacing, reference.affine)
    else:
        predicted = label_maps.read(job.predicted)
        notices += label_maps.same_grid(reference, predicted, (job.reference, job.predicted))
    labels = reference.labels, _without_ignored(reference.labels, predicted.labels, job.ignore)
    labels = _without_ignored(labels[0], labels[0], job.ignore), labels[1]
    pair = CasePair(*labels, reference.spacing)
    _check_labels(pair, job)
    values, states = {}, {}
    for name, structure in job.structures.items():
        found = quantities.evaluate(pair, name, structure, job.metrics)
        values[name] = found if job.digits is None else {key: round(value, job.digits) for key, value in found.items()}
        states[name] = pair.overlap(structure).state
    where = None if job.predicted is None else str(job.predicted)
    return CaseResult(job.case, str(job.reference), where, values, states, {}, tuple(notices))


def _without_ignored(reference: np.ndarray, labels: np.ndarray, ignore: int | None) -> np.ndarray:
    """Labels with background where the reference says that nobody knows."""
    return labels if ignore is None else np.where(reference == ignore, 0, labels).astype(labels.dtype)


def _check_labels(pair: CasePair, job: Job) -> None:
    for labels, path in zip(pair.histogram.labels(), (job.reference, job.predicted), strict=True):
        unexpected = sorted(labels - job.allowed)
        if unexpected:
            raise UserError(
                f"{path}: labels {unexpected} that dataset.json does not have ({sorted(job.allowed)}). Is it the right "
                "--dataset-json, and are both folders of the same data set?"
            )


def evaluate(
    pairs: Pairs,
    dataset_json: Mapping[str, Any],
    convention: Convention,
    *,
    metrics: Sequence[quantities.Metric] = (),
    missing: str = EMPTY_PREDICTION,
    processes: int = 1,
    cache: Path | None = None,
    progress: Any = None,
) -> Evaluation:
    """Evaluate all cases.

    Args:
        pairs: what is evaluated.
        dataset_json: of the data set: labels, regions and the ignore label.
        convention: how.
        metrics: instead of the convention's own.
        missing: what a case without prediction is: "error", "skip" (left out, and listed), or "worst" (an empty
            prediction, unless the convention states another penalty).
        processes: that work at the same time.
        cache: file of earlier results; a case is computed anew only if its files, the metrics or this package changed.
        progress: called with the results and their number; passes them on.

    Raises:
        UserError: a prediction is missing and that is an error; a case that can't be evaluated: names the files.
    """
    if missing not in MISSING:
        raise UserError(f"--missing {missing}: expected one of {', '.join(MISSING)}")
    if pairs.missing and missing == "error":
        raise UserError(
            f"{len(pairs.missing)} of {len(pairs.references)} cases have no prediction: {shortened(pairs.missing)}. "
            "--missing worst counts them as empty predictions, --missing skip leaves them out."
        )
    structures = convention.structures(dataset_json)
    chosen = tuple(metrics) or convention.metrics
    ignore = dataset_json["labels"].get("ignore")
    jobs = [
        Job(
            case,
            reference,
            pairs.predictions.get(case),
            structures,
            _allowed(dataset_json),
            None if ignore is None else int(ignore),
            convention.name,
            chosen,
            convention.digits,
        )
        for case, reference in pairs.references.items()
        if case in pairs.predictions or missing != "skip"
    ]
    results = list(_results(jobs, processes, cache, progress))
    results = [_penalised(result, convention) for result in sorted(results, key=lambda result: result.case)]
    return Evaluation(
        convention.name,
        convention.definition,
        {metric.name: _described(metric) for metric in chosen},
        structures,
        convention.averaging,
        tuple(results),
        versions=versions(),
        notices=_notices(pairs, results, missing),
    )


def _allowed(dataset_json: Mapping[str, Any]) -> frozenset[int]:
    values: set[int] = {0}
    for value in dataset_json["labels"].values():
        values |= {int(number) for number in value} if isinstance(value, list | tuple) else {int(value)}
    return frozenset(values)


def _described(metric: quantities.Metric) -> dict[str, Any]:
    content = asdict(metric)
    del content["name"]
    return {**content, "higher_is_better": metric.higher_is_better}


def _penalised(result: CaseResult, convention: Convention) -> CaseResult:
    """A missing prediction's values, where the convention states others than for an empty one."""
    if result.predicted is not None or not convention.missing:
        return result
    values = {
        structure: {metric: convention.missing.get(metric, value) for metric, value in found.items()}
        for structure, found in result.values.items()
    }
    return CaseResult(result.case, result.reference, None, values, result.states, result.extra, result.notices)


def _notices(pairs: Pairs, results: Sequence[CaseResult], missing: str) -> tuple[str, ...]:
    notices = [notice for result in results for notice in result.notices]
    if pairs.missing:
        what = "left out" if missing == "skip" else "counted as empty predictions, or with the convention's penalty"
        notices.insert(0, f"{len(pairs.missing)} cases have no prediction and are {what}: {', '.join(pairs.missing)}")
    if pairs.extra:
        notices.append(f"{len(pairs.extra)} predictions have no reference and were passed over: {pairs.extra[0]}, ...")
    return tuple(notices)


def _results(jobs: Sequence[Job], processes: int, cache: Path | None, progress: Any) -> Iterator[CaseResult]:
    """Results of earlier runs and new ones, which are kept as they come."""
    known = {} if cache is None else _read_cache(cache)
    keys = {job.case: _key(job) for job in jobs}
    left = []
    for job in jobs:
        if keys[job.case] in known:
            yield CaseResult(**known[keys[job.case]])
        else:
            left.append(job)
    left.sort(key=lambda job: -job.reference.stat().st_size)  # the longest first
    stream: Iterable[CaseResult] = _computed(left, processes)
    for result in stream if progress is None else progress(stream, len(left)):
        if cache is not None:
            with cache.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps({"key": keys[result.case], "result": asdict(result)}) + "\n")
        yield result


def _computed(jobs: Sequence[Job], processes: int) -> Iterator[CaseResult]:
    if processes <= 1 or len(jobs) < 2:
        yield from map(evaluate_case, jobs)
        return
    pool = ProcessPoolExecutor(min(processes, len(jobs)), mp_context=multiprocessing.get_context("spawn"))
    try:
        for future in as_completed([pool.submit(evaluate_case, job) for job in jobs]):
            yield future.result()
    except BrokenProcessPool as error:
        raise UserError(
            "a worker process was killed, probably for want of memory: use fewer processes (-np)."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _key(job: Job) -> str:
    """What a result depends on: both files, what is computed, this package's version."""
    files = [
        [str(path.absolute()), path.stat().st_size, path.stat().st_mtime_ns]
        for path in (job.reference, job.predicted)
        if path is not None
    ]
    content = [__version__, files, list(job.structures.items()), sorted(job.allowed), job.ignore, job.digits]
    return hashlib.sha256(f"{content} {job.metrics}".encode()).hexdigest()[:32]


def _read_cache(path: Path) -> dict[str, dict[str, Any]]:
    """Key -> result; the last line may be cut off where a run was killed."""
    found = {}
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                content = json.loads(line)
                found[content["key"]] = {**content["result"], "notices": tuple(content["result"]["notices"])}
            except (ValueError, KeyError, TypeError):
                continue
    return found


def versions() -> dict[str, str]:
    """Of this package and of those that compute."""
    return {"nnunet_ext": __version__, **{name: metadata.version(name) for name in ("numpy", "scipy", "nibabel")}}
