"""Checks before training: folders, variables and preprocessed cases, with sentences that say what to do."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_ext import __version__
from nnunet_ext.registry import TrainerEntry

_SHOWN = 10
_PURPOSE = {
    "nnUNet_preprocessed": "preprocessed data and plans are read from there",
    "nnUNet_results": "trained models are written there",
}


def require_variables(names: Iterable[str] = ("nnUNet_preprocessed", "nnUNet_results")) -> None:
    """Raise a RuntimeError that names the first of nnU-Net's environment variables which is not set."""
    for name in names:
        if not os.environ.get(name):
            raise RuntimeError(
                f"The environment variable {name} is not set ({_PURPOSE[name]}). Set it to a folder before you start: "
                f"`export {name}=/path/to/{name}` (Linux, macOS) or `set {name}=C:\\path\\to\\{name}` (Windows)."
            )


def require_package(plans: Mapping[str, Any]) -> None:
    """Raise a RuntimeError if the plans' network was written by a newer version of this package than the installed."""
    needed = str(plans.get("nnunet_ext", {}).get("version", "0"))
    if _number(needed) > _number(__version__):
        raise RuntimeError(
            f"The plans {plans.get('plans_name')} were made by nnunet_ext {needed}, but {__version__} is installed, "
            "which may build another network: install that version or a newer one."
        )


def _number(version: str) -> tuple[int, ...]:
    """(major, minor, patch) of a version, without what follows the numbers."""
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def require_divisible(patch_size: Sequence[int], architecture: Mapping[str, Any]) -> None:
    """Raise a ValueError for a patch that nnU-Net's own U-Nets cannot halve; they would fail in the first step."""
    strides = architecture["arch_kwargs"].get("strides")
    if not architecture["network_class_name"].startswith("dynamic_network_architectures.") or strides is None:
        return
    total = [math.prod(axis) for axis in zip(*strides, strict=True)]
    if any(edge % step for edge, step in zip(patch_size, total, strict=True)):
        fitting = tuple(-(-edge // step) * step for edge, step in zip(patch_size, total, strict=True))
        raise ValueError(
            f"The patch size {tuple(patch_size)} in the plans is not divisible by the network's total stride "
            f"{tuple(total)}: plan again, or use e.g. {fitting}."
        )


def require_claimed(entry: TrainerEntry, configuration: str, dimension: int, *, cascaded: bool) -> None:
    """Raise a NotImplementedError for a configuration that is not among what a trainer's registry entry claims.

    Args:
        entry: the trainer's entry.
        configuration: its name in the plans.
        dimension: spatial axes of its patches.
        cascaded: whether it is the second stage of nnU-Net's cascade.
    """
    instead = "Train another configuration, or for this one use an nnU-Net trainer such as nnUNetTrainer."
    if dimension not in entry.dimensions:
        claimed = " and ".join(f"{d}D" for d in sorted(entry.dimensions))
        raise NotImplementedError(
            f"{entry.name} trains {claimed} configurations; {configuration!r} has {dimension}D patches. {instead}"
        )
    if cascaded and not entry.cascade:
        raise NotImplementedError(
            f"{entry.name} can't be the second stage of a cascade, which {configuration!r} is. {instead}"
        )


def require_preprocessed(folder: str, dataset: str, plans_name: str, configuration: str) -> None:
    """Raise a RuntimeError with the command to run when the folder of preprocessed cases is missing or empty."""
    path = Path(folder)
    if not path.is_dir() or not any(path.iterdir()):
        raise RuntimeError(
            f"There are no preprocessed cases in {folder}. Make them with "
            f"`nnUNetv2_preprocess -d {dataset} -plans_name {plans_name} -c {configuration}`."
        )


def require_previous_stage(folder: str, cases: Sequence[str], command: str, trainer: str) -> None:
    """Raise a RuntimeError when predictions of a cascade's first stage are missing.

    Args:
        folder: where nnU-Net expects them: results of the same trainer and plans names.
        cases: identifiers that need one.
        command: the command that makes them.
        trainer: the trainer's name.
    """
    present = {Path(name).stem for name in os.listdir(folder)} if os.path.isdir(folder) else set()
    missing = [case for case in cases if case not in present]
    if missing:
        raise RuntimeError(
            f"The cascade's second stage needs the first stage's predictions of the same trainer ({trainer}) in "
            f"{folder}; {len(missing)} of {len(cases)} are missing ({_some(missing)}). Make them with {command}, all "
            "folds, with this stage's data preprocessed before; or copy that folder from another trainer's results."
        )


def unreadable_cases(dataset_class: Any, folder: str, cases: Iterable[str]) -> dict[str, str]:
    """Open every preprocessed case and read its first and last voxel; milliseconds a case.

    Args:
        dataset_class: nnU-Net's dataset class of the folder.
        folder: folder of preprocessed cases.
        cases: identifiers.

    Returns:
        Case to what is wrong with it; empty when all can be read.
    """
    bad: dict[str, str] = {}
    for case in sorted(set(cases)):
        try:
            problem = _problem(dataset_class, folder, case)
        except Exception as error:  # whatever a broken file makes its reader raise
            problem = f"{type(error).__name__}: {error}"
        if problem:
            bad[case] = problem
    return bad


def require_readable(bad: dict[str, str], folder: str, command: str) -> None:
    """Raise a RuntimeError that names the bad cases and the way out."""
    if bad:
        listed = "\n".join(f"  {case}: {bad[case]}" for case in list(bad)[:_SHOWN])
        more = f"\n  and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
        raise RuntimeError(
            f"{len(bad)} preprocessed case(s) in {folder} cannot be read:\n{listed}{more}\n"
            f"Look at their raw images and labels, delete their files in that folder, and preprocess again with "
            f"{command}; or take the cases out of splits_final.json beside that folder."
        )


def _problem(dataset_class: Any, folder: str, case: str) -> str | None:
    """What is wrong with a case, or None; a reader's own exception passes."""
    packed = Path(folder) / f"{case}.npz"
    if packed.exists():  # compressed numpy: reading a voxel would unpack the whole, so look at the directory only
        with np.load(packed) as arrays:
            lacking = {"data", "seg"} - set(arrays.files)
        return f"{packed.name} lacks {', '.join(sorted(lacking))}" if lacking else None
    if not (Path(folder) / f"{case}.b2nd").exists():
        return "there is no such case (it is listed in the split)"
    data, seg, _, properties = dataset_class(folder, [case]).load_case(case)
    if tuple(data.shape[1:]) != tuple(seg.shape[1:]):
        return f"image {tuple(data.shape[1:])} and segmentation {tuple(seg.shape[1:])} have different sizes"
    if "class_locations" not in properties:
        return "its properties (.pkl) have no class_locations"
    for array in (data, seg):
        for corner in (0, -1):
            voxel = np.asarray(array[tuple(slice(edge - 1, edge) if corner else slice(0, 1) for edge in array.shape)])
            if not np.isfinite(voxel).all():
                return "it has values that are not finite"
    return None


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
