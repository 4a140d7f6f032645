"""Evaluate predictions: every case in a worker process, results kept between runs, under one convention."""

from __future__ import annotations

import math
import multiprocessing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from nnunet_ext import __version__
from nnunet_ext.errors import UserError
from nnunet_ext.evaluation_scripts import case_evaluation, label_maps, quantities, set_extras
from nnunet_ext.evaluation_scripts.adapting import Adapted, adapted
from nnunet_ext.evaluation_scripts.case_evaluation import Job, evaluate_case
from nnunet_ext.evaluation_scripts.case_extras import Rules
from nnunet_ext.evaluation_scripts.conventions import Convention
from nnunet_ext.evaluation_scripts.kept_results import KeptResults
from nnunet_ext.evaluation_scripts.pairing import Pairs, shortened
from nnunet_ext.evaluation_scripts.patients import CaseDetails
from nnunet_ext.evaluation_scripts.results import CaseResult, Evaluation

EMPTY_PREDICTION = "worst"
MISSING = ("error", "skip", EMPTY_PREDICTION)
_SHOWN = 10


def evaluate(
    pairs: Pairs,
    dataset_json: Mapping[str, Any],
    convention: Convention,
    *,
    metrics: Sequence[quantities.Metric] = (),
    tolerance: float | None = None,
    missing: str = EMPTY_PREDICTION,
    processes: int = 1,
    cache: Path | None = None,
    progress: Any = None,
    details: Mapping[str, CaseDetails] | None = None,
    names: Sequence[str] = (),
    challenge: str = "BraTS-GLI",
) -> Evaluation:
    """Evaluate all cases.

    Args:
        pairs: what is evaluated.
        dataset_json: of the data set: labels, regions and the ignore label.
        convention: how.
        metrics: instead of the convention's own.
        tolerance: in mm, instead of those of the convention's surface Dice.
        missing: what a case without prediction is: "error", "skip" (left out, and listed), or "worst": an empty
            prediction, or the penalty that the convention states; it never counts as right that nothing is there.
        processes: that work at the same time.
        cache: file of earlier results; a case is computed anew only if its files, the metrics or this package changed.
        progress: called with the results and their number; passes them on.
        details: patients and phases, by case id; for clinical indices.
        names: of the data set, such as its folder's; by them MSD's tolerance is found.
        challenge: of "brats2023": whose parameters.

    Raises:
        UserError: a prediction is missing and that is an error; a case that can't be evaluated: names the files.
            What was computed before is in the cache.
    """
    if missing not in MISSING:
        raise UserError(f"--missing {missing}: expected one of {', '.join(MISSING)}")
    if pairs.missing and missing == "error":
        raise UserError(
            f"{len(pairs.missing)} of {len(pairs.references)} cases have no prediction: {shortened(pairs.missing)}. "
            "--missing worst counts them as empty predictions, --missing skip leaves them out."
        )
    if not pairs.references:
        raise UserError("there is no case to evaluate")
    unit = _one_unit(pairs)
    used = adapted(convention, dataset_json, metrics=metrics, tolerance=tolerance, unit=unit, names=names)
    _check_background(used)
    jobs = _jobs(pairs, dataset_json, used, missing, challenge)
    results = sorted(_results(jobs, processes, KeptResults(cache), progress), key=lambda result: result.case)
    results = [_penalised(result, used.convention) for result in results]
    evaluation = Evaluation(
        convention.name,
        used.convention.definition,
        {metric.name: _described(metric) for metric in used.convention.metrics},
        used.structures,
        convention.averaging,
        tuple(results),
        versions=versions(),
        notices=(*used.notices, *_notices(pairs, results, missing)),
    )
    extra, notices = set_extras.of_all(used.convention.extra, evaluation, details or {})
    return replace(evaluation, extra=extra, notices=(*evaluation.notices, *notices))


def _one_unit(pairs: Pairs) -> str:
    """The unit of distances, which must be that of all label maps.

    Raises:
        UserError: some of them know their spacing, others don't.
    """
    units = {label_maps.unit_of(path): path for path in (*pairs.references.values(), *pairs.predictions.values())}
    if len(units) > 1:
        raise UserError(
            f"distances would be mixed: {units['mm']} states its spacing, {units['pixels']} does not. nnU-Net's reader "
            "of TIFF wants a .json file with the spacing beside each image: add them, or remove them all."
        )
    return next(iter(units))


def _check_background(used: Adapted) -> None:
    names = [name for name, values in used.structures.items() if 0 in values]
    surfaces = [metric.name for metric in used.convention.metrics if quantities.needs_surface(metric)]
    if names and surfaces:
        raise UserError(
            f"{', '.join(surfaces)} of {', '.join(names)}: this convention evaluates the background, which has no "
            "surface of its own. Choose overlap metrics, or another convention."
        )


def _jobs(pairs: Pairs, dataset_json: Mapping[str, Any], used: Adapted, missing: str, challenge: str) -> list[Job]:
    ignore = dataset_json["labels"].get("ignore")
    return [
        Job(
            case,
            reference,
            pairs.predictions.get(case),
            used.structures,
            _allowed(dataset_json),
            None if ignore is None else int(ignore),
            used.convention.metrics,
            used.convention.digits,
            Rules(used.convention.extra, challenge, used.numbers),
        )
        for case, reference in pairs.references.items()
        if case in pairs.predictions or missing != "skip"
    ]


def _allowed(dataset_json: Mapping[str, Any]) -> frozenset[int]:
    values: set[int] = {0}
    for value in dataset_json["labels"].values():
        values |= {int(number) for number in value} if isinstance(value, list | tuple) else {int(value)}
    return frozenset(values)


def _described(metric: quantities.Metric) -> dict[str, Any]:
    content = asdict(metric)
    del content["name"]
    return {
        **content,
        "higher_is_better": metric.higher_is_better,
        "has_better": metric.has_better,
        "description": quantities.DESCRIPTIONS[metric.quantity],
    }


def _penalised(result: CaseResult, convention: Convention) -> CaseResult:
    """A missing prediction's values: the convention's penalty, else those of an empty one that is never right."""
    if result.predicted is not None:
        return result
    values: dict[str, dict[str, float]] = {}
    for structure, found in result.values.items():
        values[structure] = dict(found)
        for metric in convention.metrics:
            if metric.name in convention.missing:
                values[structure][metric.name] = convention.missing[metric.name]
            elif metric.has_better and metric.higher_is_better and found[metric.name] > 0:
                values[structure][metric.name] = 0.0
            elif metric.has_better and not metric.higher_is_better:  # an empty mask's 0 would be the best there is
                values[structure][metric.name] = math.nan
    return replace(result, values=values)


def _notices(pairs: Pairs, results: Sequence[CaseResult], missing: str) -> tuple[str, ...]:
    notices = [notice for result in results for notice in result.notices]
    if pairs.missing:
        what = "left out" if missing == "skip" else "counted as empty predictions, or with the convention's penalty"
        notices.insert(0, f"{_cases(len(pairs.missing))} no prediction, {what}: {', '.join(pairs.missing)}")
    if pairs.extra:
        number = len(pairs.extra)
        what = "prediction has" if number == 1 else "predictions have"
        notices.append(f"{number} {what} no reference, passed over: {shortened(pairs.extra)}")
    return tuple(notices)


def _cases(number: int) -> str:
    return "1 case has" if number == 1 else f"{number} cases have"


def _results(jobs: Sequence[Job], processes: int, kept: KeptResults, progress: Any) -> Iterator[CaseResult]:
    """Results of earlier runs and new ones, which are kept as they come; then the cases that went wrong, if any."""
    keys = {job.case: case_evaluation.key(job) for job in jobs}
    left = []
    for job in jobs:
        known = kept.get(keys[job.case])
        if known is not None:
            yield known
        else:
            left.append(job)
    left.sort(key=lambda job: -job.reference.stat().st_size)  # the longest first
    wrong: list[UserError] = []
    stream: Iterable[CaseResult | UserError] = _computed(left, processes)
    for result in stream if progress is None else progress(stream, len(left)):
        if isinstance(result, UserError):
            wrong.append(result)
            continue
        kept.keep(keys[result.case], result)
        yield result
    if wrong:
        raise UserError(_listed(wrong))


def _listed(wrong: Sequence[UserError]) -> str:
    if len(wrong) == 1:
        return str(wrong[0])
    lines = sorted(map(str, wrong))
    more = [f"and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
    return "\n  ".join([f"{len(lines)} cases can't be evaluated:", *lines[:_SHOWN], *more])


def _computed(jobs: Sequence[Job], processes: int) -> Iterator[CaseResult | UserError]:
    """A result of every job, or what is wrong with its files."""
    if processes <= 1 or len(jobs) < 2:
        yield from map(_tried, jobs)
        return
    pool = ProcessPoolExecutor(min(processes, len(jobs)), mp_context=multiprocessing.get_context("spawn"))
    try:
        for future in as_completed([pool.submit(_tried, job) for job in jobs]):
            yield future.result()
    except BrokenProcessPool as error:
        raise UserError(
            "a worker process was killed, probably for want of memory: use fewer processes (-np). What was computed "
            "is kept: the same command goes on from there."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _tried(job: Job) -> CaseResult | UserError:
    try:
        return evaluate_case(job)
    except UserError as error:
        return error


def versions() -> dict[str, str]:
    """Of this package and of those that compute."""
    return {"nnunet_ext": __version__, **{name: metadata.version(name) for name in ("numpy", "scipy", "nibabel")}}
