"""Makes the pool of cases: what nnU-Net has preprocessed is used as it is, the rest is preprocessed without labels."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_ext.errors import UserError
from nnunet_ext.plan import require_folder
from nnunet_ext.pretraining.cases import Pool
from nnunet_ext.pretraining.preparing_work import Job, is_there, prepare_all
from nnunet_ext.pretraining.raw_images import RawCase, checksum, dataset_cases, folder_cases, read_json

FOLDER = "nnunet_ext_pretraining"
_GEOMETRY = ("spacing", "normalization_schemes", "use_mask_for_norm", "resampling_fn_data", "resampling_fn_data_kwargs")


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
        there = is_there(own, case.name) if case.own else False
        target = own if there else prepared
        done = there or is_there(prepared, case.name)
        jobs.append(Job(case, target, content, configuration, dataset_json, done, there))
    cases, left_out = prepare_all(jobs, folder, processes, progress)
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
