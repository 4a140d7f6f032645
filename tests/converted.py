"""Raw data sets as `nnunet-ext convert` leaves them for the way back, and predictions for them; all tiny."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform
from trees.volumes import affine, labels, save

from nnunet_ext.dataset_conversion.cases import SPLIT_FILES
from nnunet_ext.dataset_conversion.volumes import geometry

SHAPE = (6, 5, 4)
AMOS_CT = [int(case[5:]) for case in json.loads((SPLIT_FILES / "amos_official.json").read_text())["ct_val"]]
"""Numbers of the validation cases."""


@dataclass
class Converted:
    """A data set without images: conversion.json and predictions.

    Attributes:
        raw: the data set's folder.
        predictions: folder of label maps.
        truth: case id -> label map (x, y, z) in the download's values and axes.
        headers: case id -> header of the download's image.
    """

    raw: Path
    predictions: Path
    truth: dict[str, np.ndarray] = field(default_factory=dict)
    headers: dict[str, Any] = field(default_factory=dict)

    def record(self) -> Any:
        """The content of conversion.json."""
        return json.loads((self.raw / "conversion.json").read_text())

    def change(self, content: Mapping[str, Any]) -> None:
        """Write conversion.json anew."""
        (self.raw / "conversion.json").write_text(json.dumps(content))


@dataclass(frozen=True)
class Made:
    """One case: its id and what conversion.json says of it.

    Attributes:
        header: fields of the original's header, set after sform and qform.
        written: axes such as "RAS" that conversion turned the image to.
    """

    id: str
    part: str = "test"
    group: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)
    label: bool = False
    header: Mapping[str, Any] = field(default_factory=dict)
    written: str | None = None
    transform: Any = None


def data_set(
    folder: Path,
    dataset: str,
    name: str,
    cases: Sequence[Made],
    values: Iterable[int],
    *,
    label_map: Mapping[int, int] | None = None,
    predict: bool = True,
) -> Converted:
    """Make one.

    Args:
        folder: for the data set `name` and its `predictions`.
        dataset: the converter's key.
        name: DatasetXXX_NAME.
        cases: which.
        values: of the download; all occur in every label map that has room for them.
        label_map: from these to the data set's.
        predict: write a prediction of every case.
    """
    made = Converted(folder / name, folder / f"predictions_{name}")
    made.raw.mkdir(parents=True)
    made.predictions.mkdir()
    records = {}
    mapped = {value: value for value in values} if label_map is None else label_map
    for number, case in enumerate(cases):
        records[case.id] = _record(made, case, number, tuple(values), mapped, predict)
    made.change(
        {
            "format": 1,
            "dataset": dataset,
            "name": name,
            "label_map": None if label_map is None else {str(k): v for k, v in label_map.items()},
            "dataset_json": {
                "channel_names": {"0": "CT"},
                "labels": {"background": 0, **{f"organ {v}": v for v in sorted(set(mapped.values()) - {0})}},
                "file_ending": ".nii.gz",
            },
            "file_ending": ".nii.gz",
            "cases": records,
        }
    )
    if predict:
        for beside in ("dataset.json", "plans.json", "predict_from_raw_data_args.json", "summary.json"):
            (made.predictions / beside).write_text("{}")
        for beside in ("postprocessing.pkl", "case.npz", ".DS_Store"):
            (made.predictions / beside).write_bytes(b"0")
    return made


def _record(
    made: Converted, case: Made, number: int, values: tuple[int, ...], mapped: Mapping[int, int], predict: bool
) -> dict[str, Any]:
    transform = affine(seed=number) if case.transform is None else case.transform
    truth = labels(number, tuple(value for value in values if value), SHAPE)
    image = nibabel.Nifti1Image(np.zeros(SHAPE, np.int16), transform)
    image.set_sform(transform, 1)
    image.set_qform(transform, 1)
    image.header.set_xyzt_units("mm")
    for key, value in case.header.items():
        image.header[key] = value
    turn = np.array([[0, 1], [1, 1], [2, 1]])
    original = np.asarray(image.header.get_best_affine())
    if case.written:
        turn = ornt_transform(io_orientation(original), axcodes2ornt(case.written))
    made.truth[case.id], made.headers[case.id] = truth, image.header.copy()
    predicted = np.zeros_like(truth)
    for before, after in mapped.items():
        predicted[truth == before] = after
    predicted = apply_orientation(predicted, turn)
    placed = original @ inv_ornt_aff(turn, SHAPE)
    written = image.header.copy()
    if case.written:
        written = nibabel.Nifti1Image(predicted, placed).header
    if predict:
        save(made.predictions / f"{case.id}.nii.gz", predicted, placed, dtype=np.uint8)
    return {
        "part": case.part,
        "group": case.group or case.id,
        "details": dict(case.details),
        "images": [],
        "label": {"file": "x"} if case.label else None,
        "geometry": {"original": geometry(image.header, SHAPE), "written": geometry(written, predicted.shape)},
        "notices": [],
    }


def acdc(folder: Path, **options: Any) -> Converted:
    """All 100 test frames of ACDC, two training cases beside them; patient 90's order of phases for 110."""
    cases = [Made("patient001_frame01", "training", label=True), Made("patient001_frame12", "training", label=True)]
    for number in range(101, 151):
        patient, frames = f"patient{number}", ("01", "12")
        for phase, frame in zip(("ES", "ED") if number == 110 else ("ED", "ES"), frames, strict=True):
            cases.append(Made(f"{patient}_frame{frame}", group=patient, details={"phase": phase}))
    made = data_set(folder, "acdc", "Dataset027_ACDC", cases, range(4), **options)
    for case in cases[:2]:
        (made.predictions / f"{case.id}.nii.gz").unlink(missing_ok=True)
    return made


def brats2020(folder: Path) -> Converted:
    """All 125 validation cases of BraTS 2020, with the label map of its converter."""
    cases = [Made(f"BraTS20_Validation_{number:03d}") for number in range(1, 126)]
    return data_set(
        folder, "brats2020", "Dataset820_BraTS2020", cases, (0, 1, 2, 4), label_map={0: 0, 1: 2, 2: 1, 4: 3}
    )


def complete(folder: Path, key: str) -> Converted:
    """A data set with all cases of a challenge, but MSD."""
    if key == "acdc":
        return acdc(folder)
    if key == "brats2020":
        return brats2020(folder)
    nested = {0: 0, 1: 2, 2: 1, 4: 3}
    numbers: dict[str, tuple[str, Iterable[int], str, Iterable[int], Mapping[int, int] | None]] = {
        "btcv": ("img{:04d}", range(61, 81), "Dataset803_BTCV", range(14), None),
        "brats2021": ("BraTS2021_{:05d}", range(1, 220), "Dataset137_BraTS2021", (0, 1, 2, 4), nested),
        "brats2023gli": ("BraTS-GLI-{:05d}-000", range(219), "Dataset823_BraTS", range(4), {0: 0, 1: 2, 2: 1, 3: 3}),
        "brats2024gli": ("BraTS-GLI-{:05d}-101", range(188), "Dataset226_BraTS", range(5), None),
        "lits": ("test_{}", range(70), "Dataset829_LiTS", range(3), None),
        "amos_ct": ("amos_{:04d}", AMOS_CT, "Dataset218_AMOS", range(16), None),
        "amos_ctmr": ("amos_{:04d}", [*AMOS_CT, *range(507, 527)], "Dataset219_AMOS", range(16), None),
        "flare22": ("FLARETs_{:04d}", range(1, 51), "Dataset822_FLARE22", range(14), None),
    }
    pattern, range_of, name, values, label_map = numbers[key]
    amos = key.startswith("amos")
    cases = [
        Made(
            pattern.format(number),
            part="training" if amos else "test",
            label=amos,
            details={"official": "val"} if amos else {},
        )
        for number in range_of
    ]
    return data_set(folder, key, name, cases, values, label_map=label_map)
