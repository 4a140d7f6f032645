"""Numbers of challenges beside the metrics: lesions of BraTS and LiTS, phases of ACDC, slices of FLARE22."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluated import cube, data_set, label_map

from nnunet_ext.dataset_conversion import flare22
from nnunet_ext.evaluation_scripts.conventions import CONVENTIONS
from nnunet_ext.evaluation_scripts.evaluating import evaluate
from nnunet_ext.evaluation_scripts.metric_grammar import parse
from nnunet_ext.evaluation_scripts.pairing import find_pairs
from nnunet_ext.evaluation_scripts.patients import CaseDetails, patients_of
from nnunet_ext.evaluation_scripts.results import Evaluation, as_json, from_json

TUMOUR = {"background": 0, "edema": 1, "necrosis": 2, "enhancing": 3}
FLARE = {name: value for value, name in enumerate(flare22.ORGANS)}


def evaluated(folders: tuple[Path, Path], convention: str, labels: Any, **options: Any) -> Evaluation:
    return evaluate(find_pairs(folders[0], [folders[1]]), {"labels": labels}, CONVENTIONS[convention], **options)


def test_brats2023_counts_lesions(tmp_path: Path) -> None:
    """One lesion of 64 mm³ found exactly, one of 64 missed, one of 27 dropped, one false."""
    shape = (48, 12, 12)
    one, other, small, false = (
        (3, ((z, z + e), (2, 2 + e), (2, 2 + e))) for z, e in ((1, 4), (14, 4), (27, 3), (40, 2))
    )
    folders = data_set(
        tmp_path, {"a": label_map(one, other, small, shape=shape)}, {"a": label_map(one, false, shape=shape)}
    )
    cache = tmp_path / "cases.jsonl"
    for _ in range(2):
        found = evaluated(folders, "brats2023", TUMOUR, cache=cache)
        values = found.cases[0].values["ET"]
        assert list(values) == ["LesionWise Dice", "LesionWise HD95", "Dice", "HD95"]
        assert values["LesionWise Dice"] == pytest.approx(1 / 3)
        assert values["LesionWise HD95"] == pytest.approx((0 + 374 + 374) / 3)
        assert values["Dice"] == pytest.approx(2 * 64 / (64 + 64 + 27 + 64 + 8))
        table = found.cases[0].extra["lesionwise"]["regions"]["ET"]
        assert [lesion["counted"] for lesion in table["lesions"]] == [True, True, False]
        assert table["false_positives_mm3"] == [8]
        assert from_json(json.loads(json.dumps(as_json(found), allow_nan=False)), "x").mean("Dice") == found.mean(
            "Dice"
        )
    mets = evaluated(folders, "brats2023", TUMOUR, challenge="BraTS-MET").cases[0].values["ET"]
    assert mets["LesionWise Dice"] == pytest.approx(1 / 4)  # 27 mm³ count there
    plain = evaluated(folders, "brats2023", TUMOUR, metrics=parse(["dice"]))
    assert list(plain.metrics) == ["Dice"]
    assert "lesionwise" not in plain.cases[0].extra


def test_lits_per_case_and_global(tmp_path: Path) -> None:
    """Case a: liver of 64, lesion of 8 found; b: liver of 8 of which half is found, no lesion anywhere."""
    liver = (1, ((1, 5), (1, 5), (1, 5)))
    a = label_map(liver, cube(2, 2))
    b = label_map(cube(1)), label_map((1, ((1, 2), (1, 3), (1, 3))))
    folders = data_set(tmp_path, {"a": a, "b": b[0]}, {"a": a, "b": b[1]})
    cache = tmp_path / "cases.jsonl"
    for _ in range(2):
        found = evaluated(folders, "lits", {"background": 0, "liver": 1, "tumor": 2}, cache=cache)
        scores = found.extra["lits"]
        assert scores["liver_dice_per_case"] == pytest.approx((1 + 2 * 4 / 12) / 2)
        assert scores["liver_dice_global"] == pytest.approx(2 * 68 / (64 + 64 + 8 + 4))
        assert scores["lesion_dice_per_case"] == 0.5  # of neither: 0
        assert scores["lesion_dice_global"] == 1
        assert (scores["detected_lesions"], scores["recall"]) == (1, 1)
        assert found.mean_of_structures("Dice")["lesion"] == 0.5


def frames() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict[str, CaseDetails]]:
    """Two patients: left ventricles of 8 and 4 voxels, and 12 and 6; the prediction misses one slice in ED."""
    shape = (8, 10, 12)
    sizes = {"patient001_frame01": (2, 2), "patient001_frame10": (1, 2), "patient002_frame01": (3, 2)}
    sizes["patient002_frame12"] = (1, 3)
    maps = {case: label_map((3, ((1, 1 + z), (1, 3), (1, 1 + x))), shape=shape) for case, (z, x) in sizes.items()}
    predicted = {case: found.copy() for case, found in maps.items()}
    predicted["patient001_frame01"][2] = 0
    phases = {"01": "ED", "10": "ES", "12": "ES"}
    return maps, predicted, {case: CaseDetails(case[:10], phases[case[-2:]]) for case in maps}


def test_acdc_phases_and_indices(tmp_path: Path) -> None:
    maps, predicted, details = frames()
    folders = data_set(tmp_path, maps, predicted, spacing=(10.0, 10.0, 10.0))  # a voxel is 1 ml
    labels = {"background": 0, "RV": 1, "MLV": 2, "LVC": 3}
    found = evaluated(folders, "acdc", labels, details=details)
    assert found.extra["phases"]["ED"]["Dice"]["LVC"] == pytest.approx((2 * 4 / 12 + 1) / 2)
    assert found.extra["phases"]["ES"]["Dice"]["LVC"] == 1
    assert math.isnan(found.extra["phases"]["ES"]["Dice"]["RV"])
    patients = found.extra["clinical"]["patients"]
    assert patients["reference"]["patient001"]["lv_ef"] == pytest.approx(50)
    assert patients["predicted"]["patient001"]["lv_ef"] == pytest.approx(0)
    agreement = found.extra["clinical"]["agreement"]["lv_edv"]
    assert (agreement["n"], agreement["bias"]) == (2, pytest.approx(-2))
    json.dumps(as_json(found), allow_nan=False)


def test_acdc_without_phases_or_predictions(tmp_path: Path) -> None:
    maps, predicted, details = frames()
    del predicted["patient002_frame12"]
    folders = data_set(tmp_path, maps, predicted)
    labels = {"background": 0, "RV": 1, "MLV": 2, "LVC": 3}
    unknown = evaluated(folders, "acdc", labels)
    assert not unknown.extra
    assert any("phases are unknown" in notice for notice in unknown.notices)
    found = evaluated(folders, "acdc", labels, details=details)
    assert list(found.extra["clinical"]["patients"]["reference"]) == ["patient001"]
    assert any("no clinical indices of patient002" in notice for notice in found.notices)


def test_patients_have_several_cases() -> None:
    maps, _, details = frames()
    expected = {case: case[:10] for case in maps}
    for pattern, known in ((None, {}), (None, details), (r"^(patient\d+)", {})):
        assert patients_of(maps, pattern, known)[0] == expected
    assert patients_of(["a", "b"], None, {}) == (None, "cases")


@pytest.mark.parametrize("shift", [0, 1])
def test_flare22_counts_the_references_slices(tmp_path: Path, shift: int) -> None:
    """Aorta in slices 1 to 4, predicted in 0 to 7: of slices 1 to 3 all is right. Other organs count everywhere."""
    labels = {name: (value - 1 + shift) % 13 + 1 if value else 0 for name, value in FLARE.items()}
    aorta, liver = labels["aorta"], labels["liver"]
    long = ((2, 4), (2, 4))
    reference = label_map((aorta, ((1, 5), *long)), (liver, ((1, 5), (6, 8), (6, 8))))
    predicted = label_map((aorta, ((0, 8), *long)), (liver, ((0, 8), (6, 8), (6, 8))))
    folders = data_set(tmp_path, {"a": reference}, {"a": predicted}, labels, spacing=(6.0, 1.0, 1.0))
    found = evaluated(folders, "flare22", labels)
    assert found.cases[0].values["aorta"] == {"DSC": 1, "NSD": 1}
    assert found.cases[0].values["liver"]["DSC"] == round(2 * 16 / (16 + 32), 4)
    assert found.cases[0].values["spleen"] == {"DSC": 1, "NSD": 1}
    by_hand = evaluated(folders, "flare22", labels, metrics=parse(["dice"]))
    assert by_hand.cases[0].values["aorta"]["Dice"] == pytest.approx(2 * 16 / (16 + 32))
    assert any("do not apply" in notice for notice in by_hand.notices)
