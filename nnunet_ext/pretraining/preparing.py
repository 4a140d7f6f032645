"""Makes the pool of cases: what nnU-Net has preprocessed is used as it is, the rest is preprocessed without labels."""

from __future__ import annotations

import contextlib
import hashlib
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
from nnunet_ext.plan import require_folder
from nnunet_ext.pretraining.cases import Case, Pool, body_box
from nnunet_ext.pretraining.frames import Frame
from nnunet_ext.pretraining.raw_images import RawCase, checksum, dataset_cases, folder_cases, read_json
from nnunet_ext.whole_files import write_whole

FOLDER = "nnunet_ext_pretraining"
INDEX = "cases.json"
_GEOMETRY = ("spacing", "normalization_schemes", "use_mask_for_norm", "resampling_fn_data", "resampling_fn_data_kwargs")


@dataclass(frozen=True)
class _Job:
    """A case to be prepared: preprocessed into `folder` unless `done` (perhaps `by_nnunet`), hashed, and looked at."""

    raw: RawCase
    folder: Path
    plans: dict[str, Any]
    configuration: str
    dataset_json: dict[str, Any]
    done: bool
    by_nnunet: bool


def open_pool(
    dataset: str | int,
    plans: str,
    configuration: str,
    unlabelled: Sequence[Path] = (),
    *,
    processes: int = 1,
    own_images: bool = True,
    exclude: Sequence[str] = (),
    progress: bool = True,
) -> Pool:
    """The cases to pre-train on; what is missing is prepared, what is there is kept.

    Args:
        dataset: name or number, as for nnU-Net's commands; its plans decide spacing, normalisation and network.
        plans: name of the plans, such as ``nnUNetPlans``.
        configuration: a 3D one, such as ``3d_fullres``.
        unlabelled: folders of images without labels.
        processes: that prepare cases at the same time.
        own_images: whether the data set's own training images belong to the pool, too.
        exclude: names of own cases to leave out, such as those of a validation fold; copies of their files in the
            folders are left out, too.
        progress: show a bar.

    Raises:
        UserError: data set, plans or configuration are not there, or there is no image that can be used.
    """
    places = _places(dataset)
    content, dataset_json = _plans(places, plans, configuration)
    settings = PlansManager(content).get_configuration(configuration)
    folder = places["preprocessed"] / FOLDER / f"{plans}__{configuration}"
    own = places["preprocessed"] / str(settings.data_identifier)
    training = _own_cases(places["raw"], own, dataset_json) if own_images or exclude else []
    unknown = sorted(set(exclude) - {case.name for case in training})
    if unknown:
        raise UserError(f"cannot leave out {', '.join(unknown)}: the data set has no such training cases")
    hidden = {checksum(path) for case in training if case.name in set(exclude) for path in case.files}
    raw = [case for case in training if own_images and case.name not in set(exclude)]
    raw += _folders_cases(content, dataset_json, unlabelled)
    if not raw:
        raise UserError(
            f"no images to pre-train on: {places['raw'] / 'imagesTr'} has none that may be used, and --unlabelled "
            "gave none"
        )
    prepared = folder / f"cases_{_digest(content, settings.configuration)}"
    jobs = []
    for case in raw:
        there = _is_there(own, case.name) if case.own else False
        target = own if there else prepared
        done = there or _is_there(prepared, case.name)
        jobs.append(_Job(case, target, content, configuration, dataset_json, done, there))
    cases, left_out = _prepare_all(jobs, folder, processes, progress)
    if not cases:
        raise UserError(f"none of {len(jobs)} images could be prepared; the first: {left_out[0][0]}: {left_out[0][1]}")
    copies = [case for case in cases if hidden.intersection(case.sha256)]
    left_out += [(case.name, "the same file as a case that is to be left out") for case in copies]
    cases = [case for case in cases if case not in copies]
    return Pool(folder, tuple(cases), content, configuration, dataset_json, tuple(left_out))


def dataset_name(dataset: str | int) -> str:
    """The full name of a data set.

    Raises:
        UserError: nnU-Net knows none of that name or number, or its folders are not set.
    """
    for variable in ("nnUNet_raw", "nnUNet_preprocessed"):
        require_folder(variable)
    from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name

    try:
        return str(maybe_convert_to_dataset_name(int(dataset) if str(dataset).isdecimal() else dataset))
    except (RuntimeError, ValueError) as error:
        raise UserError(f"-d {dataset}: {' '.join(str(error).split())}") from error


def _places(dataset: str | int) -> dict[str, Path]:
    """The data set's raw and preprocessed folders."""
    name = dataset_name(dataset)
    return {"raw": require_folder("nnUNet_raw") / name, "preprocessed": require_folder("nnUNet_preprocessed") / name}


def _plans(places: Mapping[str, Path], plans: str, configuration: str) -> tuple[dict[str, Any], dict[str, Any]]:
    path = places["preprocessed"] / f"{plans}.json"
    if not path.is_file():
        there = sorted(file.stem for file in places["preprocessed"].glob("*lans*.json"))
        raise UserError(
            f"there are no plans {plans} for {places['preprocessed'].name} ({path}); there are: "
            f"{', '.join(there) or 'none'}. Make them with nnUNetv2_plan_experiment, or bring a labelled data set's "
            "with nnUNetv2_move_plans_between_datasets."
        )
    content = read_json(path)
    if configuration not in content["configurations"]:
        raise UserError(f"-c {configuration}: {path} has {', '.join(content['configurations'])}")
    settings = PlansManager(content).get_configuration(configuration)
    if len(settings.patch_size) != 3:
        raise UserError(f"-c {configuration}: pre-training needs a 3D configuration, this one is 2D")
    if settings.previous_stage_name is not None:
        raise UserError(
            f"-c {configuration} is the second stage of a cascade, whose input has channels of predictions: "
            "pre-train 3d_fullres or 3d_lowres"
        )
    dataset_json = next(
        (
            folder / "dataset.json"
            for folder in (places["raw"], places["preprocessed"])
            if (folder / "dataset.json").is_file()
        ),
        places["raw"] / "dataset.json",
    )
    return content, read_json(dataset_json)


def _own_cases(raw: Path, preprocessed: Path, dataset_json: Mapping[str, Any]) -> list[RawCase]:
    """The data set's training images; where the raw folder is gone, what nnU-Net has preprocessed."""
    cases = dataset_cases(raw, dataset_json)
    if cases or not preprocessed.is_dir():
        return cases
    names = infer_dataset_class(str(preprocessed)).get_identifiers(str(preprocessed))
    return [RawCase(name, raw.name, (), own=True) for name in sorted(names)]


def _folders_cases(plans: Mapping[str, Any], dataset_json: Mapping[str, Any], folders: Sequence[Path]) -> list[RawCase]:
    reader = PlansManager(dict(plans)).image_reader_writer_class()
    endings = reader.supported_file_endings
    return [case for path in dict.fromkeys(folders) for case in folder_cases(path, dataset_json, endings)]


def _digest(plans: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """Eight characters that change with everything that decides about the preprocessed image."""
    decisive = {key: settings.get(key) for key in _GEOMETRY} | {
        key: plans.get(key)
        for key in ("transpose_forward", "image_reader_writer", "foreground_intensity_properties_per_channel")
    }
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:8]


def _is_there(folder: Path, name: str) -> bool:
    """The properties are written last, so with them the case is whole."""
    return (folder / f"{name}.pkl").is_file()


def _prepare_all(
    jobs: Sequence[_Job], folder: Path, processes: int, progress: bool
) -> tuple[list[Case], list[tuple[str, str]]]:
    known = _read_index(folder / INDEX)
    entries: dict[str, dict[str, Any]] = {}
    todo: list[_Job] = []
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


def _key(job: _Job) -> str:
    return f"{job.folder.name}/{job.raw.name}"


def _read_index(path: Path) -> dict[str, dict[str, Any]]:
    return cast("dict[str, dict[str, Any]]", read_json(path)) if path.is_file() else {}


def _stamps(files: Sequence[Path]) -> list[list[Any]]:
    """What tells that a file is another one now: its path, size, and time of change."""
    return [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in files if path.exists()]


def _prepared(job: _Job) -> list[list[Any]]:
    return _stamps([job.folder / f"{job.raw.name}.pkl"])


def _case(job: _Job, entry: Mapping[str, Any]) -> Case:
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


def _results(jobs: Sequence[_Job], processes: int) -> Iterator[tuple[_Job, dict[str, Any] | str]]:
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


def _attempt(job: _Job) -> dict[str, Any] | str:
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


def _preprocess(job: _Job) -> None:
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
