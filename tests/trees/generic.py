"""Data sets of any layout, and those of the form that nnU-Net's raw data have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np

from trees.volumes import Tree, Truth, affine, image, labels, save

Form = Literal["folders", "raw", "regions", "frames", "unlabelled", "nrrd", "png"]


def build(root: Path, *, complete: bool = False, form: Form = "folders") -> Tree:
    """A data set.

    Args:
        root: an empty folder.
        complete: changes nothing.
        form: a folder a case with a file a channel; nnU-Net raw data with one channel and test images, four channels
            and regions, or two frames a patient and a split; images alone; ITK's .nrrd; coloured pictures.
    """
    makers = {
        "folders": _folders,
        "raw": _raw,
        "regions": _regions,
        "frames": _frames,
        "unlabelled": _unlabelled,
        "nrrd": _nrrd,
        "png": _png,
    }
    return makers[form](root)


def _folders(root: Path) -> Tree:
    own = {
        "images": "scans/{patient}/{id}/{channel}.nii.gz",
        "labels": "masks/{patient}_{id}.nii",
        "test_images": "test/{patient}/{id}/{channel}.nii.gz",
        "channels": ["T2=t2", "T1=T1"],
        "label_names": ["vessel=2+3", "tumour=10"],
    }
    tree = Tree("generic", root / "download", own)
    for seed, (patient, visit) in enumerate((("p1", "a"), ("p1", "b"), ("p2", "a"), ("p3", "a"))):
        place = affine(seed=seed)
        truth = Truth(labels(seed, (2, 3, 10)), place)
        test = patient == "p3"
        (tree.test if test else tree.training)[f"{patient}_{visit}"] = truth
        folder = tree.place / ("test" if test else "scans") / patient / visit
        save(folder / "t1.nii.gz", image(10 * seed), place)
        save(folder / "T2.NII.GZ", image(10 * seed + 1), place)
        if not test:
            save(tree.place / f"masks/{patient}_{visit}.nii", truth.labels, place)
    (tree.place / "notes.txt").write_text("nothing")
    return tree


def raw_data(
    folder: Path, ids: list[str], test: list[str], channels: list[str], content: dict[str, Any], values: tuple[int, ...]
) -> tuple[dict[str, Truth], dict[str, Truth]]:
    """nnU-Net v2 raw data: `content` is of its dataset.json, besides what follows from the rest."""
    made: tuple[dict[str, Truth], dict[str, Truth]] = ({}, {})
    for seed, case in enumerate([*ids, *test]):
        training = case in ids
        place = affine(seed=seed)
        truth = Truth(labels(seed, values), place)
        made[0 if training else 1][case] = truth
        for channel in range(len(channels)):
            name = f"{'imagesTr' if training else 'imagesTs'}/{case}_{channel:04d}.nii.gz"
            save(folder / name, image(10 * seed + channel, ct=channels == ["CT"]), place)
        if training:
            save(folder / f"labelsTr/{case}.nii.gz", truth.labels, place)
    (folder / "dataset.json").write_text(
        json.dumps(
            {
                "channel_names": {str(index): name for index, name in enumerate(channels)},
                "numTraining": len(ids),
                "file_ending": ".nii.gz",
                **content,
            }
        )
    )
    return made


def _raw(root: Path) -> Tree:
    folder = root / "Dataset004_Hippocampus"
    content = {
        "labels": {"background": 0, "Anterior": 1, "Posterior": 2},
        "name": "Hippocampus",
        "licence": "CC-BY-SA 4.0",
        "reference": "Vanderbilt",
        "release": "1.0",
    }
    ids = [f"hippocampus_{number:03d}" for number in (1, 4, 6, 7, 8)]
    training, test = raw_data(folder, ids, ["hippocampus_003"], ["MRI"], content, (1, 2))
    save(folder / "labels_all_structures/hippocampus_001.nii.gz", image(0), affine())
    return Tree("generic", folder, training=training, test=test)


def _regions(root: Path) -> Tree:
    folder = root / "brain_tumour/Dataset901_BrainTumour2mm"
    content = {
        "labels": {"background": 0, "whole_tumour": [1, 2, 3], "tumour_core": [2, 3], "enhancing_tumour": [3]},
        "regions_class_order": [1, 2, 3],
    }
    ids = ["BT_CBICA_AMH_1", "BT_CBICA_AOZ_1", "BT_TCIA01_1"]
    training, test = raw_data(folder, ids, ["BT_X_1"], ["FLAIR", "T1w", "T1gd", "T2w"], content, (1, 2, 3))
    return Tree("generic", root / "brain_tumour", training=training, test=test)


def _frames(root: Path) -> Tree:
    folder = root / "Dataset902_CardiacLV"
    ids = [f"SC-{kind}-0{number}_{phase}" for kind in ("HF-I", "N") for number in (1, 2) for phase in ("ED", "ES")]
    training, _ = raw_data(folder, ids, [], ["cine_MRI"], {"labels": {"background": 0, "LV": 1}}, (1,))
    folds = [{"train": ids[2:], "val": ids[:2]}, {"train": ids[:6], "val": ids[6:]}]
    (folder / "splits_final.json").write_text(json.dumps(folds))
    return Tree("generic", folder, {"group": r"SC-.+-\d+"}, training)


def _unlabelled(root: Path) -> Tree:
    save(root / "unlabelled_ct/images/TS_C_0000.nii.gz", image(1, ct=True), affine())
    own = {"images": "images/{id}_{channel}.nii.gz", "channels": ["CT=0000"]}
    return Tree("generic", root / "unlabelled_ct", own)


def _nrrd(root: Path) -> Tree:
    import SimpleITK

    root.mkdir(parents=True, exist_ok=True)
    tree = Tree("generic", root, {"images": "{id}_img.nrrd", "labels": "{id}_lab.nrrd", "label_names": ["a=1", "b=2"]})
    for seed in range(3):
        case = f"case{seed}"
        place = affine((1, 1, 2), seed)
        truth = Truth(labels(seed, (1, 2)), place)
        tree.training[case] = truth
        for name, array in (("img", image(seed)), ("lab", truth.labels)):
            made = SimpleITK.GetImageFromArray(array.T)
            made.SetSpacing((1, 1, 2))
            made.SetOrigin((np.diag([-1, -1, 1]) @ place[:3, 3]).tolist())
            SimpleITK.WriteImage(made, str(root / f"{case}_{name}.nrrd"))
    return tree


def _png(root: Path) -> Tree:
    from skimage import io

    own = {
        "images": "img/{id}.png",
        "labels": "mask/{id}.png",
        "channels": ["R", "G", "B"],
        "label_names": ["background=0", "road=255"],
    }
    tree = Tree("generic", root / "roads", own)
    (tree.place / "img").mkdir(parents=True)
    (tree.place / "mask").mkdir()
    for seed in range(3):
        mask = 255 * labels(seed, (1,), (12, 17, 1))[..., 0]
        tree.training[f"r{seed}"] = Truth(mask, np.eye(4))
        colours = np.random.default_rng(seed).integers(0, 255, (12, 17, 3)).astype(np.uint8)
        io.imsave(tree.place / f"img/r{seed}.png", colours, check_contrast=False)
        io.imsave(tree.place / f"mask/r{seed}.png", mask, check_contrast=False)
    return tree
