"""Tasks of nnU-Net v1, as UNETR++ and nnFormer ship them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Literal

import numpy as np

from nnunet_ext.dataset_conversion.cases import SPLIT_FILES
from trees.volumes import SHAPE, Tree, Truth, affine, image, labels, save

Form = Literal["v1", "decathlon", "both"]
ORGANS = ("background", "spleen", "right kidney", "left kidney", "gallbladder")
MODALITIES = ("FLAIR", "T1w", "T1gd", "T2w")


def build(root: Path, *, complete: bool = False, form: Form = "v1") -> Tree:
    """Task002_Synapse (``img0001_0000.nii.gz``), Task02_Synapse (``img0001.nii.gz``, ``label0001.nii.gz``), or both.

    Three training cases, or with `complete` the thirty of UNETR++'s split, and two test cases; in decathlon style the
    test cases are training cases again.
    """
    folder = root / "DATASET_Synapse/unetr_pp_raw/unetr_pp_raw_data"
    split = json.loads((SPLIT_FILES / "unetrpp_synapse.json").read_text())
    ids = sorted([*split["train"], *split["val"]]) if complete else ["img0001", "img0005", "img0021"]
    tree = Tree("nnunet_v1", root / "DATASET_Synapse")
    if form in ("v1", "both"):
        _task(folder / "Task002_Synapse", tree, ids, ["img0061", "img0062"])
    if form in ("decathlon", "both"):
        tree.training.clear()
        tree.test.clear()
        task = folder / "Task02_Synapse"
        _task(task, tree, ids, [], suffix="", label="label")
        (task / "labelsTs").mkdir(parents=True)
        (task / "imagesTs").mkdir()
        shutil.copy(task / "imagesTr/img0001.nii.gz", task / "imagesTs/img0001.nii.gz")
        shutil.copy(task / "labelsTr/label0001.nii.gz", task / "labelsTs/label0001.nii.gz")
        if form == "both":
            for case in ("img0061", "img0062"):
                tree.test[case] = Truth(np.zeros(SHAPE, np.uint8), affine(seed=1))
    return tree


def _task(folder: Path, tree: Tree, ids: list[str], test: list[str], suffix: str = "_0000", label: str = "img") -> None:
    """One channel, CT; float labels and hidden files among them."""
    for seed, case in enumerate([*ids, *test]):
        training = case in ids
        place = affine(seed=seed)
        truth = Truth(labels(seed, (1, 2, 3, 4) if seed % 2 else (1, 2, 4)), place)
        (tree.training if training else tree.test)[case] = truth
        images = folder / ("imagesTr" if training else "imagesTs")
        save(images / f"{case}{suffix}.nii.gz", image(seed, ct=True), place)
        (images / f"._{case}{suffix}.nii.gz").write_bytes(b"resource fork")
        if training:
            name = case.replace("img", label)
            save(folder / f"labelsTr/{name}.nii.gz", truth.labels, place, dtype=np.float32 if seed == 0 else np.uint8)
    description: dict[str, Any] = {
        "name": "Synapse",
        "tensorImageSize": "3D",
        "reference": "nobody's",
        "modality": {"0": "CT"},
        "labels": {str(value): name for value, name in enumerate(ORGANS)},
        "numTraining": 999,
        "numTest": 0,
        "training": [
            {
                "image": f"./imagesTr/{case}.nii.gz",
                "label": f"./labelsTr/{case.replace('img', label)}.nii.gz",
            }
            for case in ids
        ],
        "test": [f"./imagesTs/{case}.nii.gz" for case in test],
    }
    (folder / "dataset.json").write_text(json.dumps(description))


def build_tumour(root: Path, *, four_axes: bool = False, description: bool = True) -> Tree:
    """Task003_tumor with four channels: one file each, or one file with a fourth axis; label values 0, 1, 2, 4."""
    folder = root / "Task003_tumor"
    tree = Tree("nnunet_v1", folder)
    for seed, case in enumerate(("BRATS_001", "BRATS_010", "BRATS_002")):
        place = affine((1, 1, 1), seed)
        truth = Truth(labels(seed, (1, 2, 4)), place)
        tree.training[case] = truth
        channels = [image(10 * seed + channel) for channel in range(4)]
        if four_axes:
            save(folder / f"imagesTr/{case}.nii.gz", np.stack(channels, axis=-1), place)
        else:
            for channel, array in enumerate(channels):
                save(folder / f"imagesTr/{case}_{channel:04d}.nii.gz", array, place)
        save(folder / f"labelsTr/{case}.nii.gz", truth.labels, place)
    if description:
        content = {
            "modality": dict(zip("0123", MODALITIES, strict=True)),
            "labels": {"0": "background", "1": "edema", "2": "non-enhancing", "4": "enhancing"},
        }
        (folder / "dataset.json").write_text(json.dumps(content))
    return tree
