"""Folders of predictions that belong together: their cases, what they hold of each, and that their labels agree."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_ext.errors import UserError
from nnunet_ext.evaluation_scripts.pairing import label_maps, shortened, validation_folders
from nnunet_ext.labels import has_regions

PROBABILITIES = ".npz"


@dataclass(frozen=True)
class Predictions:
    """The predictions of one model.

    Attributes:
        place: as the user named it: a folder of predictions, a fold, or a trained model.
        files: case id -> what was asked for: its file of probabilities or its label map.
        known: ids of all cases of which there is a label map or a file of probabilities.
        dataset_json: None: there is none.
        plans: path of plans.json; None: there is none.
    """

    place: Path
    files: Mapping[str, Path]
    known: frozenset[str]
    dataset_json: Mapping[str, Any] | None
    plans: Path | None


def find_predictions(place: Path, *, probabilities: bool) -> Predictions:
    """List the predictions of a model.

    Args:
        place: a folder that nnUNetv2_predict or nnUNetv2_ensemble wrote; or of a fold or a trained model, whose
            validation cases are taken.
        probabilities: whether .npz files are wanted, or label maps.

    Raises:
        UserError: there is no such folder, it holds none, or a case twice.
    """
    wanted: dict[str, Path] = {}
    others: set[str] = set()
    folders = validation_folders(place)
    for folder in folders:
        stored = {path.name[: -len(PROBABILITIES)]: path for path in _visible(folder, PROBABILITIES)}
        maps = {} if probabilities and not _has_maps(folder) else label_maps(folder, "predictions")
        found, other = (stored, maps) if probabilities else (maps, stored)
        for case, path in found.items():
            if case in wanted:
                raise UserError(f"{case} is predicted twice: {wanted[case]} and {path}. Name one of them.")
            wanted[case] = path
        others |= set(other)
    if not wanted:
        raise UserError(
            f"{place}: no probabilities ({PROBABILITIES} files) there. Write them by nnUNetv2_predict "
            "--save_probabilities, or by nnUNetv2_train ... --val --npz for validation cases; or combine label maps: "
            "--method vote or --method staple"
        )
    dataset_json = _beside(folders[0], "dataset.json")
    content = None if dataset_json is None else read_dataset_json(dataset_json)
    return Predictions(place, wanted, frozenset(others | set(wanted)), content, _beside(folders[0], "plans.json"))


def common_cases(models: Sequence[Predictions]) -> list[str]:
    """The ids of all cases, sorted.

    Raises:
        UserError: a model lacks some of them.
    """
    cases = set().union(*(model.known for model in models))
    kind = next(
        ("probabilities (.npz)" for model in models for path in model.files.values() if _is_npz(path)), "label map"
    )
    lacking = [
        f"{model.place} has no {kind} of {shortened(sorted(cases - set(model.files)))}"
        for model in models
        if cases - set(model.files)
    ]
    if lacking:
        raise UserError(
            f"{'; '.join(lacking)}: every folder must have all {len(cases)} cases. Predict what is missing, or take "
            "the files of these cases out."
        )
    return sorted(cases)


def common_labels(models: Sequence[Predictions], given: Path | None = None) -> Mapping[str, Any]:
    """The dataset.json of all models.

    Args:
        models: at least one.
        given: a dataset.json that stands for those of the folders; theirs are not compared then.

    Raises:
        UserError: there is none, or labels differ.
    """
    if given is not None:
        return read_dataset_json(given)
    described = [(model, model.dataset_json) for model in models if model.dataset_json is not None]
    if not described:
        raise UserError(
            f"{models[0].place}: no dataset.json there, nor in the other folders: name it by --dataset-json"
        )
    (first, content), *others = described
    for other, its_content in others:
        if _labels(content) != _labels(its_content):
            raise UserError(
                f"the labels differ: {_told(content)} in {first.place}, {_told(its_content)} in {other.place}. "
                "Predictions of different labels can't be combined; if only names differ, name the dataset.json that "
                "holds for all by --dataset-json"
            )
    return content


def read_dataset_json(path: Path) -> dict[str, Any]:
    """A dataset.json.

    Raises:
        UserError: it can't be read, or lacks what nnU-Net needs.
    """
    content = read_object(path)
    labels = content.get("labels")
    if not isinstance(labels, dict) or "background" not in labels or not isinstance(content.get("file_ending"), str):
        raise UserError(
            f'{path}: expected nnU-Net\'s dataset.json with "labels" (background: 0, ...) and "file_ending"'
        )
    if has_regions(content):
        order = content.get("regions_class_order")
        if not isinstance(order, list) or len(order) != len(foreground(content)):
            raise UserError(f"{path}: its regions need a regions_class_order of {len(foreground(content))} labels")
    return content


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        UserError: it can't be read, or is something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path} as JSON: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a JSON object, got {type(content).__name__}")
    return content


def foreground(dataset_json: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name -> values of every label or region but background and the ignore label, in the order of dataset.json."""
    found = {}
    for name, values in dataset_json["labels"].items():
        several = tuple(int(value) for value in (values if isinstance(values, list | tuple) else (values,)))
        if name != "ignore" and set(several) != {0}:
            found[name] = several
    return found


def label_values(dataset_json: Mapping[str, Any]) -> list[int]:
    """All label values but the ignore label, background first."""
    return sorted({0}.union(*foreground(dataset_json).values()))


def _labels(content: Mapping[str, Any]) -> object:
    """What must agree; the order of regions is that of the channels."""
    labels = foreground(content)
    return [list(labels.items()), content["regions_class_order"]] if has_regions(content) else labels


def _told(content: Mapping[str, Any]) -> str:
    labels = {name: values if len(values) > 1 else values[0] for name, values in foreground(content).items()}
    order = f" (regions_class_order {content['regions_class_order']})" if has_regions(content) else ""
    return f"{labels}{order}"


def _visible(folder: Path, ending: str) -> list[Path]:
    return [path for path in sorted(folder.glob(f"*{ending}")) if not path.name.startswith(".")]


def _is_npz(path: Path) -> bool:
    return path.name.endswith(PROBABILITIES)


def _has_maps(folder: Path) -> bool:
    from nnunet_ext.evaluation_scripts.label_maps import is_label_map

    return any(is_label_map(path) for path in folder.iterdir())


def _beside(folder: Path, name: str) -> Path | None:
    """A file that nnU-Net leaves with predictions; of validation cases, in the model's folder."""
    places = [folder, folder.parent.parent] if folder.name == "validation" else [folder]
    return next((place / name for place in places if (place / name).is_file()), None)
