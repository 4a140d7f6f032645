"""A task of the Decathlon: ids with gaps, files of macOS, a label of floats, stale counters; also once converted."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_ext.dataset_conversion.msd_tasks import TASKS, Task
from trees.volumes import SHAPE, Tree, Truth, affine, image, labels, save

DIGITS = {"liver": 1, "spleen": 1, "prostate": 2}
"""Of the numbers in ids, which are 3 elsewhere."""
TRAINING, TEST = (1, 3, 4, 17), (2, 5, 20)


def build(
    root: Path,
    *,
    complete: bool = False,
    task: int = 4,
    converted: bool = False,
    folder: str | None = None,
    test_cases: bool = True,
    described: Mapping[str, Any] | None = None,
) -> Tree:
    """Write it.

    Args:
        root: the folder of the task is made in it.
        complete: as many test cases as the release has.
        task: 1 to 10.
        converted: as nnUNetv2_convert_MSD_dataset makes it, one file a channel.
        folder: its name, if it is another than the usual one.
        test_cases: imagesTs is there.
        described: entries of dataset.json that differ; None leaves one out.
    """
    facts = TASKS[task - 1]
    usual = f"Dataset{task:03d}_{facts.name}" if converted else facts.folder
    tree = Tree("msd", root / (folder or usual))
    digits = DIGITS.get(facts.prefix, 3)
    values = tuple(range(1, len(facts.labels) + 1))
    for number in TRAINING:
        case = f"{facts.prefix}_{number:0{digits}d}"
        tree.training[case] = _case(tree.place, "Tr", case, number, facts, values, converted, SHAPE)
    shape = (6, 5, 4) if complete else SHAPE
    for number in (range(200, 200 + facts.test) if complete else TEST) if test_cases else ():
        case = f"{facts.prefix}_{number:0{digits}d}"
        tree.test[case] = _case(tree.place, "Ts", case, 500 + number, facts, values, converted, shape)
    content = (_converted_json if converted else _json)(facts, tree) | dict(described or {})
    content = {key: value for key, value in content.items() if value is not None}
    (tree.place / "dataset.json").write_text(json.dumps(content))
    return tree


def _case(
    place: Path,
    part: str,
    case: str,
    seed: int,
    facts: Task,
    values: tuple[int, ...],
    converted: bool,
    shape: tuple[int, ...],
) -> Truth:
    truth = Truth(labels(seed, values, shape), affine((1.0, 1.25, 2.0), seed, lps=False))
    ct = facts.channels == ("CT",)
    volumes = [image(seed + 1000 * channel, shape, ct) for channel in range(len(facts.channels))]
    images = place / f"images{part}"
    if converted:
        for channel, volume in enumerate(volumes):
            save(images / f"{case}_{channel:04d}.nii.gz", volume, truth.affine)
    else:
        volume = volumes[0] if len(volumes) == 1 else np.stack(volumes, -1)
        save(images / f"{case}.nii.gz", volume, truth.affine, dtype=np.float32)
        (images / f"._{case}.nii.gz").write_bytes(b"\0\5\26\7")
    if part == "Tr":
        dtype = np.float64 if seed == TRAINING[1] else np.uint8
        save(place / "labelsTr" / f"{case}.nii.gz", truth.labels, truth.affine, dtype=dtype)
    return truth


def _json(facts: Task, tree: Tree) -> dict[str, Any]:
    return {
        "name": facts.name.upper(),
        "description": "...",
        "reference": "...",
        "licence": "CC-BY-SA 4.0",
        "relase": "1.0 04/05/2018",
        "tensorImageSize": "4D" if len(facts.channels) > 1 else "3D",
        "modality": {str(place): name for place, name in enumerate(facts.channels)},
        "labels": {"0": "background", **{str(place + 1): name for place, name in enumerate(facts.labels)}},
        "numTraining": facts.training,
        "numTest": facts.test,
        "training": [
            {"image": f"./imagesTr/{case}.nii.gz", "label": f"./labelsTr/{case}.nii.gz"} for case in tree.training
        ],
        "test": [f"./imagesTs/{case}.nii.gz" for case in tree.test],
    }


def _converted_json(facts: Task, tree: Tree) -> dict[str, Any]:
    return {
        "name": facts.name.upper(),
        "tensorImageSize": "4D",
        "numTraining": len(tree.training),
        "numTest": facts.test,
        "channel_names": {str(place): name for place, name in enumerate(facts.channels)},
        "labels": {"background": 0, **{name: place + 1 for place, name in enumerate(facts.labels)}},
        "file_ending": ".nii.gz",
    }
