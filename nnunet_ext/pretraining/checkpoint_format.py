"""The file that pre-training writes, continues from and exports (specification alice 4.5 and 4.6).

One dict of tensors and plain Python values, which loads with ``weights_only=True``; `ENTRIES` says what is in it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nnunet_ext.errors import UserError
from nnunet_ext.weights.loading import safe_load
from nnunet_ext.weights.saving import save_atomically

FORMAT = "nnunet_ext pre-training"
FORMAT_VERSION = 1

#: Every entry beside `format` and `format_version`, with its type and what it is.
ENTRIES: Mapping[str, tuple[type, str]] = {
    "method": (str, "of the objective: mae, alice"),
    "step": (int, "steps done"),
    "total_steps": (int, "steps of the whole training"),
    "networks": (dict, "branch (student, teacher) to the complete state dict of the plans' network, aliases included"),
    "plans": (dict, "the plans, as the trainer adapted them"),
    "configuration": (str, "its name in the plans"),
    "dataset_json": (dict, "of the data set whose plans these are"),
    "trainer": (str, "name of the trainer that built the network"),
    "input_channels": (int, "channels of the images"),
    "patch_size": (list, "voxels, in the order of the array's axes"),
    "cases": (list, "of the images: name, source, raw (a file a channel), sha256 (of these files)"),
    "provenance": (dict, "versions, command line, seed, settings"),
    "resume": (dict, "what the training needs to continue; of no use to others"),
}
_CASE = {"name": str, "source": str, "raw": list, "sha256": list}


def write(path: str | os.PathLike[str], content: Mapping[str, Any]) -> None:
    """Write a checkpoint, whole or not at all; `format` and its version are added.

    Args:
        path: the file; its folder is made.
        content: all `ENTRIES`. Paths become text, numpy's scalars Python's; other objects are refused.

    Raises:
        UserError: the file cannot be written.
        TypeError: an entry is missing, unknown or of the wrong type, or holds an object that is not plain.
    """
    plain = as_plain(dict(content))
    problem = _problem({key: value for key, value in plain.items() if key not in ("format", "format_version")})
    if problem:
        raise TypeError(f"a checkpoint of pre-training cannot be written: {problem}")
    save_atomically({**plain, "format": FORMAT, "format_version": FORMAT_VERSION}, Path(path))


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a checkpoint; its tensors are on the CPU, and nothing in it is executed.

    Raises:
        UserError: there is no such file, it is damaged, or something else than a checkpoint of pre-training.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: there is no such file; give a checkpoint that `nnunet-ext pretrain` wrote")
    content = safe_load(path)
    if not is_ours(content):
        raise UserError(
            f"{path.name}: not a checkpoint of pre-training but {_found(content)}; give one that `nnunet-ext pretrain` "
            "wrote"
        )
    if content.get("format_version") != FORMAT_VERSION:
        raise UserError(
            f"{path.name}: a checkpoint of pre-training of format version {content.get('format_version')!r}; this "
            f"nnunet_ext reads version {FORMAT_VERSION}: install the one that wrote it, or a newer one"
        )
    found: dict[str, Any] = {key: value for key, value in content.items() if key not in ("format", "format_version")}
    problem = _problem(found)
    if problem:
        raise UserError(f"{path.name}: the checkpoint of pre-training was changed or is incomplete: {problem}")
    return dict(content)


def recognise(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a checkpoint of pre-training; its tensors stay on the disk."""
    try:
        return is_ours(torch.load(path, map_location="cpu", weights_only=True, mmap=True))
    except Exception:  # torch raises half a dozen unrelated types for files that it cannot read
        return False


def is_ours(content: Any) -> bool:
    """Whether the content of a file is a checkpoint of pre-training, of whatever version."""
    return isinstance(content, Mapping) and content.get("format") == FORMAT


def as_plain(value: Any, place: str = "content") -> Any:
    """The same with dicts, lists, tuples, text, numbers, None and tensors only.

    Tensors are detached and else as they are, so that several names of one tensor are stored once.

    Args:
        value: anything; numpy's scalars, paths and mappings are translated.
        place: where it is, for the error.

    Raises:
        TypeError: another object; names the place.
    """
    if value is None or isinstance(value, torch.Tensor):
        return value if value is None else value.detach()
    if isinstance(value, np.generic):
        value = value.item()
    if type(value) in (bool, int, float, str, bytes):
        return value
    if isinstance(value, str | os.PathLike):
        return str(value)
    if isinstance(value, Mapping):
        return {as_plain(k, place): as_plain(v, f"{place}[{k!r}]") for k, v in value.items()}
    if isinstance(value, list | tuple):
        items = (as_plain(item, f"{place}[{i}]") for i, item in enumerate(value))
        return list(items) if isinstance(value, list) else tuple(items)
    raise TypeError(f"{place} is of type {type(value).__name__}; only tensors and plain Python values can be stored")


def _problem(content: Mapping[str, Any]) -> str | None:
    """What is wrong with the entries, or None."""
    missing, unknown = sorted(ENTRIES.keys() - content.keys()), sorted(map(str, content.keys() - ENTRIES.keys()))
    if missing or unknown:
        parts = [f"missing {', '.join(missing)}"] if missing else []
        return "; ".join([*parts, *([f"unknown {', '.join(unknown)}"] if unknown else [])])
    for name, (kind, meaning) in ENTRIES.items():
        if type(content[name]) is not kind:
            return f"{name} ({meaning}) is of type {type(content[name]).__name__}, not {kind.__name__}"
    if "student" not in content["networks"]:
        return f"networks has {', '.join(content['networks']) or 'nothing'}, but no student"
    for branch, state in content["networks"].items():
        if not isinstance(state, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
            return f"networks[{branch!r}] is not a dict of tensors"
    for number, case in enumerate(content["cases"]):
        if not isinstance(case, dict) or {key: type(value) for key, value in case.items()} != _CASE:
            return f"cases[{number}] is not a dict of {', '.join(f'{k} ({t.__name__})' for k, t in _CASE.items())}"
    return None


def _found(content: Any) -> str:
    if isinstance(content, Mapping):
        return f"a dict with the entries {', '.join(sorted(map(str, content))[:5]) or '(none)'}"
    return f"an object of type {type(content).__name__}"
