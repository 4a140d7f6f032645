"""Ensembles of predictions: folders paired by case, each case combined and written whole; stopped work goes on."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_ext.dataset_conversion.files import Outputs
from nnunet_ext.errors import UserError
from nnunet_ext.inference import provenance
from nnunet_ext.inference.case_pool import Outcome, Progress, check_earlier, describe, is_finished, make_folder, work_on
from nnunet_ext.inference.ensemble_mean import Channels, mean_labels
from nnunet_ext.inference.ensemble_votes import staple, vote
from nnunet_ext.inference.prediction_folders import (
    Predictions,
    common_cases,
    common_labels,
    find_predictions,
    label_values,
)
from nnunet_ext.inference.prediction_images import read_labels, read_properties, reader, reader_name
from nnunet_ext.inference.probability_files import ProbabilityWriter

METHODS = ("mean", "vote", "staple")
RECORD = provenance.ENSEMBLE
_SAME = 1e-3  # of a spacing


@dataclass(frozen=True)
class EnsembleJob:
    """One case.

    Attributes:
        case: its id.
        files: of each model: probabilities for "mean", else label maps.
        method: one of `METHODS`.
        weights: one a file; None: all the same.
        channels: of the probabilities.
        allowed: label values that may occur in label maps.
        reader: name of nnU-Net's reader.
        outputs: the label map; with probabilities, also their file and the properties' file, all of which are written.
    """

    case: str
    files: tuple[Path, ...]
    method: str
    weights: tuple[float, ...] | None
    channels: Channels
    allowed: frozenset[int]
    reader: str
    outputs: tuple[Path, ...]


def ensemble(
    folders: Sequence[Path],
    output: Path,
    *,
    method: str = "mean",
    weights: Sequence[float] | None = None,
    save_probabilities: bool = False,
    dataset_json: Path | None = None,
    plans: Path | None = None,
    processes: int = 1,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Outcome:
    """Combine the predictions of several models.

    Args:
        folders: of predictions, folds or trained models, one a model.
        output: folder for CASE.nii.gz, dataset.json, plans.json, and a record of what was done.
        method: "mean" of probabilities, "vote" or "staple" over label maps.
        weights: one a folder, above 0; not for "staple".
        save_probabilities: write the mean's, too.
        dataset_json: instead of those in the folders, whose labels are not compared then.
        plans: plans.json instead of those in the folders; tells how files are written.
        processes: that work at the same time.
        overwrite: make cases again that are there.
        progress: called with the results and their number; passes them on.

    Raises:
        UserError: the folders do not fit each other, or arguments can't be used.
        OSError: no room on the disk.
    """
    _check_arguments(folders, method, weights, save_probabilities)
    models = [find_predictions(folder, probabilities=method == "mean") for folder in folders]
    cases = common_cases(models)
    content = common_labels(models, dataset_json)
    plans = plans or next((model.plans for model in models if model.plans is not None), None)
    make_folder(output, folders)
    settings = {"method": method, "weights": weights and list(weights), "folders": [str(path) for path in folders]}
    jobs = _jobs(models, cases, content, plans, output, save_probabilities, settings)
    check_earlier(output / RECORD, settings, [path for job in jobs for path in job.outputs], overwrite)
    describe(output, content, plans, RECORD, {**settings, **provenance.origin(folders)})
    outcome = Outcome(there=[] if overwrite else [job.case for job in jobs if is_finished(job.outputs, job.files)])
    left = [job for job in jobs if job.case not in set(outcome.there)]
    return work_on(combine, left, processes, progress, outcome)


def _check_arguments(
    folders: Sequence[Path], method: str, weights: Sequence[float] | None, save_probabilities: bool
) -> None:
    if method not in METHODS:
        raise UserError(f"--method {method}: expected one of {', '.join(METHODS)}")
    if len(folders) < 2:
        raise UserError(f"an ensemble takes two folders or more, one a model; got {len(folders)}")
    resolved = [folder.resolve() for folder in folders]
    if len(set(resolved)) < len(resolved):
        twice = next(folder for folder in folders if resolved.count(folder.resolve()) > 1)
        raise UserError(f"{twice} is named twice; name each folder once, and give it another weight by --weights")
    if save_probabilities and method != "mean":
        raise UserError(f"--save-probabilities is for --method mean; {method} has no probabilities")
    if weights is None:
        return
    if method == "staple":
        raise UserError("--weights are for mean and vote; STAPLE estimates how far each model is right")
    given = " ".join(f"{weight:g}" for weight in weights)
    if len(weights) != len(folders):
        raise UserError(f"--weights takes one number a folder: got {len(weights)} ({given}) for {len(folders)} folders")
    if not all(0 < weight < math.inf for weight in weights):
        raise UserError(f"--weights must be above 0; got {given}. Leave a folder out that should not count.")


def _jobs(
    models: Sequence[Predictions],
    cases: Sequence[str],
    content: Mapping[str, Any],
    plans: Path | None,
    output: Path,
    save_probabilities: bool,
    settings: Mapping[str, Any],
) -> list[EnsembleJob]:
    ending = str(content["file_ending"])
    first = models[0].files[cases[0]]
    named = reader_name(content, plans, first.with_name(f"{cases[0]}{ending}"))
    endings = (
        [".npz", ".pkl", ending] if save_probabilities else [ending]
    )  # the label map comes last: all is there then
    weights = settings["weights"]
    return [
        EnsembleJob(
            case,
            tuple(model.files[case] for model in models),
            settings["method"],
            weights and tuple(weights),
            Channels.of(content),
            frozenset(label_values(content)),
            named,
            tuple(output / f"{case}{part}" for part in endings),
        )
        for case in cases
    ]


def combine(job: EnsembleJob) -> None:
    """Make one case's files.

    Raises:
        UserError: its files can't be read, or do not fit each other.
        OSError: they can't be written.
    """
    writer = reader(job.reader)
    with Outputs(job.outputs[-1].parent) as outputs:
        unfinished = {path.suffix: outputs.unfinished(path.name) for path in job.outputs[:-1]}
        if job.method == "mean":
            labels, properties = _mean(job, writer, unfinished)
        else:
            labels, properties = _voted(job, writer)
        writer.write_seg(labels, str(outputs.unfinished(job.outputs[-1].name)), properties)


def _mean(job: EnsembleJob, writer: Any, unfinished: Mapping[str, Path]) -> tuple[np.ndarray, dict[str, Any]]:
    stored = [path.with_suffix(".pkl") for path in job.files]
    for path in stored[1:]:
        if path.is_file():
            _same_spacing(read_properties(stored[0]), read_properties(path), (stored[0], path))
    properties = read_properties(stored[0])
    if not unfinished:
        return mean_labels(job.files, job.channels, job.weights), properties
    shutil.copyfile(stored[0], unfinished[".pkl"])
    started: list[ProbabilityWriter] = []

    def start(shape: tuple[int, ...]) -> Callable[[np.ndarray], None]:
        started.append(ProbabilityWriter(unfinished[".npz"], shape))
        return started[0].write

    try:
        labels = mean_labels(job.files, job.channels, job.weights, start)
    finally:
        for file in started:
            file.close()
    return labels, properties


def _voted(job: EnsembleJob, writer: Any) -> tuple[np.ndarray, dict[str, Any]]:
    maps: list[np.ndarray] = []
    first: dict[str, Any] = {}
    for path in job.files:
        labels, properties = read_labels(path, writer, job.allowed)
        first = first or properties
        if maps and labels.shape != maps[0].shape:
            raise UserError(
                f"{path} has the shape {labels.shape}, and {job.files[0]} {maps[0].shape} (z, y, x): not the same image"
            )
        _same_spacing(first, properties, (job.files[0], path))
        maps.append(labels)
    return staple(maps) if job.method == "staple" else vote(maps, job.weights), first


def _same_spacing(first: Mapping[str, Any], other: Mapping[str, Any], paths: tuple[Path, Path]) -> None:
    one, two = (tuple(round(float(edge), 5) for edge in properties["spacing"]) for properties in (first, other))
    if len(one) != len(two) or not np.allclose(one, two, atol=_SAME):
        raise UserError(f"{paths[1]} has the spacing {two}, and {paths[0]} {one} (z, y, x; mm): not the same image")
