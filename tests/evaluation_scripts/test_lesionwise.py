"""Lesion-wise scores: the values of the BraTS 2023 code, and the details that decide them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from nnunet_ext.errors import UserError
from nnunet_ext.evaluation_scripts.lesionwise import (
    CHALLENGES,
    REGIONS,
    LesionParameters,
    challenge_parameters,
    lesionwise_scores,
)
from nnunet_ext.evaluation_scripts.metrics import CasePair

METRICS = Path(__file__).parents[1] / "golden" / "metrics"
EXPECTED: dict[str, Any] = json.loads((METRICS / "brats_lesionwise.json").read_text())["cases"]
WHOLE = {"lesion": (1,)}


def _maps(case: str) -> tuple[np.ndarray, np.ndarray]:
    if (METRICS / f"{case}.npz").exists():
        with np.load(METRICS / f"{case}.npz") as stored:
            return stored["gt"], stored["pred"]
    box, empty = np.zeros((40, 40, 40), np.uint8), np.zeros((40, 40, 40), np.uint8)
    box[5:12, 5:12, 5:12] = 3
    return {
        "both_empty": (empty, empty),
        "gt_empty_pred_box_343": (empty, box),
        "pred_empty_gt_box_343": (box, empty),
    }[case]


def _boxes(*boxes: tuple[slice, ...], shape: tuple[int, ...] = (24, 24, 24)) -> np.ndarray:
    made = np.zeros(shape, np.uint8)
    for box in boxes:
        made[box] = 1
    return made


def _at(start: int, edge: int) -> tuple[slice, ...]:
    return (slice(start, start + edge),) * 3


@pytest.mark.parametrize("challenge", ["BraTS-GLI", "BraTS-MET"])
@pytest.mark.parametrize("case", EXPECTED)
def test_values_of_the_challenge(case: str, challenge: str) -> None:
    scores = lesionwise_scores(*_maps(case), (1, 1, 1), REGIONS, CHALLENGES[challenge])
    for region, expected in EXPECTED[case]["brats2023_lesionwise"][challenge].items():
        assert scores[region].fields() == pytest.approx(expected, abs=1e-9, rel=1e-12), region


def test_lesions_of_the_fixture() -> None:
    scores = lesionwise_scores(*_maps("case_06_lesions"), (1, 1, 1), REGIONS, CHALLENGES["BraTS-GLI"])["WT"]
    assert sum(not lesion.counted for lesion in scores.lesions) == 1
    assert sorted(scores.false_positives) == [1, 64]
    assert sum(lesion.volume for lesion in scores.lesions) == scores.reference_volume


def test_volumes_follow_the_spacing() -> None:
    reference = _boxes(_at(2, 2), _at(12, 3))
    one, two = (
        lesionwise_scores(reference, reference, spacing, WHOLE, LesionParameters(1, 20))["lesion"]
        for spacing in ((1, 1, 1), (4, 1, 0.5))
    )
    assert [lesion.volume for lesion in one.lesions] == [8, 27]
    assert [lesion.counted for lesion in one.lesions] == [False, True]
    assert [lesion.volume for lesion in two.lesions] == [16, 54]


def test_a_lesion_of_just_the_threshold_is_dropped() -> None:
    reference, empty = _boxes(_at(2, 3)), _boxes()
    kept = lesionwise_scores(reference, empty, (1, 1, 1), WHOLE, LesionParameters(1, 26))["lesion"]
    dropped = lesionwise_scores(reference, empty, (1, 1, 1), WHOLE, LesionParameters(1, 27))["lesion"]
    assert kept.fields()["Num_FN"] == 1
    assert dropped.fields()["Num_FN"] == 0
    assert (dropped.dice_score, dropped.hd95_score) == (1, 0)
    assert dropped.fields()["Legacy_HD95"] == 374


def test_dilation_merges_and_touches() -> None:
    """Two cubes with a gap of 4 grow together after 2 dilations; a component 3 voxels away is touched after 3."""
    reference = _boxes((slice(2, 6),) * 3, (slice(2, 6), slice(2, 6), slice(10, 14)))
    predicted = _boxes((slice(2, 6), slice(2, 6), slice(16, 20)))
    numbers, found = [], []
    for dilations in (1, 2, 3):
        scores = lesionwise_scores(reference, predicted, (1, 1, 1), WHOLE, LesionParameters(dilations, 0))["lesion"]
        numbers.append(len(scores.lesions))
        found.append(sum(lesion.found for lesion in scores.lesions))
        assert len(scores.false_positives) == 1 - found[-1]
    assert numbers == [2, 1, 1]
    assert found == [0, 0, 1]


def test_one_component_serves_two_lesions() -> None:
    reference = _boxes(_at(3, 3), _at(14, 3))
    predicted = _boxes(_at(3, 14))
    scores = lesionwise_scores(reference, predicted, (1, 1, 1), WHOLE, LesionParameters(1, 0))["lesion"]
    assert [lesion.dice for lesion in scores.lesions] == [2 * 27 / (27 + 14**3)] * 2
    assert not scores.false_positives


def _one_by_one(reference: np.ndarray, predicted: np.ndarray, dilations: int) -> tuple[list[tuple[float, float]], int]:
    """The published steps on whole volumes: (Dice, HD95) of each lesion, sorted, and the number of false positives."""
    every, edges = ndimage.generate_binary_structure(3, 3), ndimage.generate_binary_structure(3, 2)
    found, number = ndimage.label(predicted, every)
    grown, lesions = ndimage.label(ndimage.binary_dilation(reference, edges, dilations), every)
    scores, touched = [], {0}
    for index in range(1, lesions + 1):
        lesion = (grown == index) & (reference > 0)
        partners = np.unique(found[ndimage.binary_dilation(lesion, edges, dilations)])
        partners = partners[partners > 0]
        touched |= set(partners.tolist())
        pair = CasePair(lesion.astype(np.uint8), np.isin(found, partners).astype(np.uint8), (2, 1, 1.5))
        scores.append((pair.overlap([1]).dice, pair.element_distances([1]).weighted_percentile(95)))
    return sorted(scores), number + 1 - len(touched)


@pytest.mark.parametrize("dilations", [1, 3])
@pytest.mark.parametrize("seed", range(3))
def test_steps_of_the_publication_one_by_one(seed: int, dilations: int) -> None:
    rng = np.random.default_rng(seed)
    reference, predicted = (rng.random((2, 22, 20, 18)) > 0.995).astype(np.uint8)
    reference = ndimage.grey_dilation(reference, size=2)
    predicted = ndimage.grey_dilation(predicted, size=3)
    expected, false_positives = _one_by_one(reference, predicted, dilations)
    scores = lesionwise_scores(reference, predicted, (2, 1, 1.5), WHOLE, LesionParameters(dilations, 0))["lesion"]
    found = np.array(sorted((lesion.dice, lesion.hd95) for lesion in scores.lesions))
    assert found == pytest.approx(np.array(expected))
    assert len(scores.false_positives) == false_positives


def test_place_in_the_image_and_order_of_axes_do_not_matter() -> None:
    reference, predicted = _maps("case_06_lesions")
    parameters = CHALLENGES["BraTS-GLI"]
    expected = lesionwise_scores(reference, predicted, (3, 2, 1), REGIONS, parameters)["WT"].fields()
    turned = lesionwise_scores(
        reference.transpose(2, 0, 1)[::-1], predicted.transpose(2, 0, 1)[::-1], (1, 3, 2), REGIONS, parameters
    )["WT"].fields()
    assert turned == pytest.approx(expected, rel=1e-12)
    padded = [np.pad(labels, 20) for labels in (reference, predicted)]
    moved = lesionwise_scores(padded[0], padded[1], (3, 2, 1), REGIONS, parameters)["WT"].fields()
    assert {**moved, "Specificity": 0} == pytest.approx({**expected, "Specificity": 0}, rel=1e-12)


def test_two_dimensions() -> None:
    reference, predicted = np.zeros((20, 20), np.uint8), np.zeros((20, 20), np.uint8)
    reference[2:8, 2:8] = predicted[2:8, 2:7] = predicted[15, 15] = 1
    scores = lesionwise_scores(reference, predicted, (1, 1), WHOLE, LesionParameters(1, 2))["lesion"]
    assert scores.dice_score == 60 / 66 / 2


def test_parameters_by_name() -> None:
    assert challenge_parameters("met") == CHALLENGES["BraTS-MET"]
    assert challenge_parameters("BraTS-SSA").dilations == 3
    with pytest.raises(UserError, match="BraTS-GLI"):
        challenge_parameters("BraTS-2020")
