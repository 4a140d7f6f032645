"""Data sets with a JSON list, as MONAI's tools and those built on it have them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from trees.volumes import Tree, Truth, affine, image, labels, save

Form = Literal["btcv", "alice", "folds"]


def build(root: Path, *, complete: bool = False, form: Form = "btcv") -> Tree:
    """A list and its files.

    Args:
        root: an empty folder.
        complete: changes nothing.
        form: SSH-UNet's ``btcv_dataset.json`` (images and labels of different names, a validation list, test images);
            Alice's ``pretrain_all.json`` (absolute paths of another machine, all images called ``ct.nii.gz``, no
            labels); Auto3DSeg's (several images a case, folds).
    """
    return {"btcv": _btcv, "alice": _alice, "folds": _folds}[form](root / "data")


def _write(path: Path, content: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def _btcv(folder: Path) -> Tree:
    tree = Tree("monai_json", folder / "btcv_dataset.json")
    for seed, number in enumerate((1, 2, 21, 35, 61)):
        place = affine(seed=seed)
        truth = Truth(labels(seed, (1, 2, 3)), place)
        (tree.test if number == 61 else tree.training)[f"img{number:04d}"] = truth
        save(folder / f"images{'Ts' if number == 61 else 'Tr'}/img{number:04d}.nii.gz", image(seed, ct=True), place)
        if number != 61:
            save(folder / f"labelsTr/label{number:04d}.nii.gz", truth.labels, place)
    pairs = [{"image": f"imagesTr/img{n:04d}.nii.gz", "label": f"labelsTr/label{n:04d}.nii.gz"} for n in (1, 2, 21, 35)]
    content = {
        "description": "btcv yucheng",
        "labels": {"0": "background", "1": "spleen", "2": "rkid", "3": "lkid"},
        "modality": {"0": "CT"},
        "numTraining": 24,
        "training": pairs[:3],
        "validation": pairs[3:],
        "test": ["imagesTs/img0061.nii.gz"],
    }
    _write(tree.place, content)
    return tree


def _alice(folder: Path) -> Tree:
    entries = []
    for number in range(1, 4):
        case = f"Case_{number:05d}"
        save(folder / f"FLARE22/{case}/ct.nii.gz", image(number, ct=True), affine(seed=number))
        entries.append({"image": f"/mnt/disk1/alice/FLARE22/{case}/ct.nii.gz", "label": ""})
    tree = Tree("monai_json", folder / "pretrain_all.json", {"channels": ["CT"]})
    _write(tree.place, {"training": entries[:2], "validation": entries[2:]})
    return tree


def _folds(folder: Path) -> Tree:
    own = {"channels": ["FLAIR", "T1ce"], "label_names": ["necrosis=1", "oedema=2", "enhancing=4"]}
    tree = Tree("monai_json", folder / "lists/brats21_folds.json", {**own, "root": str(folder)})
    entries = []
    for number in range(6):
        case = f"BraTS2021_{number:05d}"
        place = affine((1, 1, 1), number)
        truth = Truth(labels(number, (1, 2, 4)), place)
        tree.training[case] = truth
        images = [f"TrainingData/{case}/{case}_{name}.nii.gz" for name in ("flair", "t1ce")]
        for channel, name in enumerate(images):
            save(folder / name, image(10 * number + channel), place)
        label = f"TrainingData/{case}/{case}_seg.nii.gz"
        save(folder / label, truth.labels, place)
        entries.append({"fold": number % 3, "image": images, "label": label})
    _write(tree.place, {"training": entries})
    return tree
