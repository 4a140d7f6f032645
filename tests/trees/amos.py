"""AMOS 2022's archive, unpacked."""

from __future__ import annotations

import json
from pathlib import Path

from nnunet_ext.dataset_conversion.cases import SPLIT_FILES
from trees.volumes import SHAPE, Tree, Truth, affine, image, labels, save

ORGANS = tuple(range(1, 16))
NAMES = [
    "background",
    "spleen",
    "right kidney",
    "left kidney",
    "gall bladder",
    "esophagus",
    "liver",
    "stomach",
    "arota",
    "postcava",
    "pancreas",
    "right adrenal gland",
    "left adrenal gland",
    "duodenum",
    "bladder",
    "prostate/uterus",
]


def truth(number: int, shape: tuple[int, ...] = SHAPE) -> Truth:
    """What belongs to a case; case 4 has neither bladder nor prostate."""
    return Truth(
        labels(number, tuple(organ for organ in ORGANS if number != 4 or organ < 14), shape),
        affine((0.8, 0.8, 5.0), seed=number, lps=number % 2 == 0),
    )


def build(root: Path, *, complete: bool = False, task: int = 1) -> Tree:
    """Write it: CT and MR, of training, validation and test; with all validation cases if complete.

    Oddities: "arota" and wrong counters in dataset.json, an empty labelsTs, (not if complete) amos_0005 without label.
    """
    place = root / "amos22"
    made = Tree(f"amos_{'ct' if task == 1 else 'ctmr'}", place)
    published = json.loads((SPLIT_FILES / "amos_official.json").read_text())["ct_val"]
    parts = {
        "Tr": [1, 4, 6, 507, 508],
        "Va": [*(int(case[5:]) for case in published), *range(541, 561)] if complete else [8, 13, 541],
        "Ts": [2, 3, 600],
    }
    for part, numbers in parts.items():
        for number in numbers:
            tiny = complete and part == "Va"
            known = truth(number, (7, 6, 5) if tiny else SHAPE)
            name = f"amos_{number:04d}"
            save(place / f"images{part}" / f"{name}.nii.gz", image(number, known.labels.shape, ct=True), known.affine)
            if part != "Ts":
                save(place / f"labels{part}" / f"{name}.nii.gz", known.labels, known.affine)
            if number <= 500 or task == 2:
                (made.test if part == "Ts" else made.training)[name] = known
    (place / "labelsTs").mkdir()
    _write_json(place, parts)
    if not complete:
        save(place / "imagesTr" / "amos_0005.nii.gz", image(5, ct=True), affine(seed=5))
        made.faulty.add("amos_0005")
    return made


def _write_json(place: Path, parts: dict[str, list[int]]) -> None:
    def entries(part: str) -> list[dict[str, str]]:
        return [
            {"image": f"./images{part}/amos_{number:04d}.nii.gz", "label": f"./labels{part}/amos_{number:04d}.nii.gz"}
            for number in parts[part]
        ]

    content = {
        "name": "AMOS",
        "licence": "CC-BY-SA 4.0",
        "modality": {"0": "CT"},
        "labels": {str(value): name for value, name in enumerate(NAMES)},
        "numTraining": 240,
        "numTest": 240,
        "training": entries("Tr"),
        "validation": entries("Va"),
        "test": [{"image": entry["image"]} for entry in entries("Ts")],
    }
    (place / "dataset.json").write_text(json.dumps(content))
