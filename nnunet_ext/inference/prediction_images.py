"""Label maps of predictions, read and written by nnU-Net's own readers; and the properties that it stores with them."""

from __future__ import annotations

import math
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_ext.errors import UserError
from nnunet_ext.inference.prediction_folders import read_object
from nnunet_ext.weights.plain_numpy import STAND_INS, StandIn

_ALLOWED = {name: called if isinstance(called, StandIn) else StandIn(called) for name, called in STAND_INS.items()}
_NO_AXIS = 999  # nnU-Net's spacing of the axis that pictures do not have


class _PlainUnpickler(pickle.Unpickler):
    """Numbers, text, numpy's numbers and arrays, and containers of them; nothing is executed."""

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return _ALLOWED[f"{module}.{name}"]


def read_properties(path: Path) -> dict[str, Any]:
    """nnU-Net's properties of an image (CASE.pkl).

    Raises:
        UserError: it is missing, damaged, or holds something else than numbers and text.
    """
    try:
        with path.open("rb") as file:
            content = _PlainUnpickler(file).load()
    except FileNotFoundError as error:
        raise UserError(f"{path}: there is no such file; nnU-Net writes it beside the probabilities") from error
    except Exception as error:  # a damaged pickle can raise anything
        reason = (str(error) or type(error).__name__).splitlines()[0][:160]
        raise UserError(f"{path} is not nnU-Net's properties of an image ({reason}); nothing was executed") from error
    if not isinstance(content, dict) or "spacing" not in content:
        raise UserError(f"{path} is not nnU-Net's properties of an image: it has no spacing")
    return content


def reader_name(dataset_json: Mapping[str, Any], plans: Path | None, example: Path) -> str:
    """The name of nnU-Net's reader: of the plans; else the first one that reads an image of the data set.

    Args:
        dataset_json: with its file_ending.
        plans: path of plans.json, or None.
        example: a label map.

    Raises:
        UserError: there is none.
    """
    if plans is not None:
        named = read_object(plans).get("image_reader_writer")
        if isinstance(named, str):
            return named
    from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json

    try:
        existing = str(example) if example.is_file() else None
        found = determine_reader_writer_from_dataset_json(dict(dataset_json), existing, verbose=False)
    except RuntimeError as error:
        raise UserError(
            f"nnU-Net has no reader for {dataset_json['file_ending']!r} (file_ending in dataset.json)"
        ) from error
    return str(found.__name__)


def reader(name: str) -> Any:
    """nnU-Net's reader of that name.

    Raises:
        UserError: there is none.
    """
    from nnunetv2.imageio.reader_writer_registry import recursive_find_reader_writer_by_name

    try:
        return recursive_find_reader_writer_by_name(name)()
    except RuntimeError as error:
        raise UserError(f"nnU-Net has no reader {name!r} (image_reader_writer in plans.json)") from error


def read_labels(path: Path, reader_writer: Any, allowed: frozenset[int]) -> tuple[np.ndarray, dict[str, Any]]:
    """A label map and its properties.

    Args:
        path: of the label map.
        reader_writer: nnU-Net's.
        allowed: label values that may occur.

    Returns:
        (z, y, x), in 2D (1, y, x), uint8 or uint16; and what `write_seg` needs.

    Raises:
        UserError: it can't be read, or has other values.
    """
    try:
        values, properties = reader_writer.read_seg(str(path))
    except Exception as error:  # readers raise what they like
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise UserError(f"cannot read {path}: {lines[-1] if lines else type(error).__name__}") from error
    dtype = np.uint8 if max(allowed) <= np.iinfo(np.uint8).max else np.uint16
    values = values[0]
    highest = np.iinfo(dtype).max
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= highest):
        raise UserError(f"{path} has values from {low:g} to {high:g}; dataset.json has labels {sorted(allowed)}")
    labels = values.astype(dtype)
    found = set(np.flatnonzero(np.bincount(labels.reshape(-1))).tolist())
    if not found <= allowed or not np.array_equal(labels, values):
        others = sorted(found - allowed) or "that are not whole"
        raise UserError(f"{path} has labels {others}; dataset.json has {sorted(allowed)}")
    return labels, properties


def voxel_volume(properties: Mapping[str, Any]) -> float:
    """mm³ of a voxel; mm² of a pixel of a 2D image with a spacing, 1 of a picture's."""
    if "sitk_stuff" in properties:
        return math.prod(float(edge) for edge in properties["sitk_stuff"]["spacing"])
    edges = [float(edge) for edge in properties["spacing"]]
    return math.prod(edges[1:] if edges[0] == _NO_AXIS else edges)
