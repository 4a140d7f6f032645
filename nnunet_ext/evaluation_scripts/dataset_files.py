"""The dataset.json of an evaluation: as given, or where nnU-Net puts it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from nnunet_ext.errors import UserError

NAME = "dataset.json"


def find_dataset_json(given: Path | None, references: Path, predictions: Sequence[Path]) -> Path:
    """The file that is used.

    Args:
        given: by the user: the file, or the folder it is in; None: look for it, in the predictions' folders, the
            trained models they are of, and the folder above the references.
        references: folder.
        predictions: folders.

    Raises:
        UserError: there is none.
    """
    if given is not None:
        path = given / NAME if given.is_dir() else given
        if not path.is_file():
            raise UserError(f"--dataset-json {given}: no such file")
        return path
    places = list(dict.fromkeys(_places(references, predictions)))
    for place in places:
        if (place / NAME).is_file():
            return place / NAME
    raise UserError(
        f"no {NAME} in {', '.join(map(str, places))}: give nnU-Net's of the data set by --dataset-json, or a file with "
        '{"labels": {"background": 0, "liver": 1}}'
    )


def _places(references: Path, predictions: Sequence[Path]) -> Iterator[Path]:
    for place in predictions:
        folder = place.absolute()
        yield folder
        if folder.name == "validation":  # of a fold of a trained model
            yield folder.parents[1]
        elif folder.name.startswith("fold_"):
            yield folder.parent
    yield references.absolute().parent
    yield references.absolute()


def read_dataset_json(path: Path) -> dict[str, Any]:
    """What nnU-Net's dataset.json says.

    Raises:
        UserError: it can't be read, or its labels are not name -> number or numbers.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error})") from error
    labels = content.get("labels") if isinstance(content, dict) else None
    if not isinstance(labels, dict) or not labels or not all(map(_is_label, labels.values())):
        raise UserError(
            f'{path}: "labels" must be names with a number, or with several for a region, as nnU-Net v2 has them, such '
            f'as {{"background": 0, "liver": 1}}; got {json.dumps(labels)[:200]}'
        )
    return dict(content)


def _is_label(value: object) -> bool:
    if isinstance(value, list):
        return bool(value) and all(_is_number(number) for number in value)
    return _is_number(value)


def _is_number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
