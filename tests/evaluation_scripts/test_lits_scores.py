"""LiTS scores of lesions whose values can be told by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from nnunet_ext.evaluation_scripts.lits_scores import LitsCase, lits_case, lits_scores, merged_matches, surface_voxels
from nnunet_ext.evaluation_scripts.overlap import Overlap

SHAPE = (6, 6, 40)


def _map(*lesions: tuple[int, int], liver: bool = True) -> np.ndarray:
    """A liver that fills the image, with lesions of 4 x 4 voxels from one place to another along the last axis."""
    made = np.full(SHAPE, int(liver), np.uint8)
    for start, stop in lesions:
        made[1:5, 1:5, start:stop] = 2
    return made


def _case(reference: list[tuple[int, int]], predicted: list[tuple[int, int]]) -> LitsCase:
    return lits_case(_map(*reference), _map(*predicted), (1, 1, 1))


def test_dice_per_case_and_global() -> None:
    cases = [_case([(0, 10)], [(0, 5)]), _case([(0, 4)], [(0, 4)])]
    scores = lits_scores(cases)
    assert scores["lesion_dice_per_case"] == pytest.approx((2 / 3 + 1) / 2)
    assert scores["lesion_dice_global"] == pytest.approx(2 * 9 / 23)
    assert scores["liver_dice_per_case"] == scores["liver_dice_global"] == 1


@pytest.mark.parametrize(("dice", "expected"), [(0.0, 1 / 3), (1.0, 5 / 6), (math.nan, 2 / 3)])
def test_neither_has_a_lesion(dice: float, expected: float) -> None:
    cases = [_case([(0, 10)], [(0, 5)]), _case([], [])]
    assert lits_scores(cases, dice)["lesion_dice_per_case"] == pytest.approx(expected)
    assert lits_scores(cases, dice)["lesion_dice_global"] == pytest.approx(2 / 3)


def test_values_of_a_detected_lesion() -> None:
    """A lesion of 10 slices of which 8 are found: by symmetry, only the surface of the missed end differs."""
    reference, predicted = _map((5, 15)), _map((5, 13))
    (lesion,) = lits_case(reference, predicted, (1, 1, 2.0)).detected
    assert lesion.voe == pytest.approx(0.2)
    assert lesion.rvd == pytest.approx(-0.2)
    assert lesion.msd == 4
    # The surface has 12 voxels a slice and the 4 inner ones of both end slices.
    to_prediction = [0.0] * (8 * 12 + 4) + [2.0] * 12 + [4.0] * 16
    to_reference = [0.0] * (8 * 12 + 4) + [1.0] * 4  # of the prediction's inner end, 1 mm to the side
    pooled = np.array(to_prediction + to_reference)
    assert lesion.assd == pytest.approx(pooled.mean())
    assert lesion.rmsd == pytest.approx(math.sqrt((pooled**2).mean()))


def test_surface_voxels_have_18_neighbours() -> None:
    """The voxel inside a notch along an edge is surface, the one inside a notch at a corner is not."""
    block = np.ones((9, 9, 9), bool)
    block[:, :3, :3] = False
    assert surface_voxels(block)[4, 3, 3]
    block = np.ones((9, 9, 9), bool)
    block[:3, :3, :3] = False
    assert not surface_voxels(block)[3, 3, 3]
    assert surface_voxels(np.ones((9, 9, 9), bool)).sum() == 9**3 - 7**3


def test_components_that_touch_at_an_edge_are_two_lesions() -> None:
    reference = _map((0, 4))
    reference[5, 1:5, 4:8] = 2
    assert lits_case(reference, _map(), (1, 1, 1)).reference_lesions == 2


def test_overlap_of_a_half_is_not_enough() -> None:
    case = _case([(0, 10)], [(0, 5)])
    assert (case.detected, case.touched, case.reference_lesions, case.predicted_lesions) == ((), 1, 1, 1)
    assert len(_case([(0, 9)], [(0, 5)]).detected) == 1


def test_lesions_that_one_partner_spans_are_merged() -> None:
    spanning = _case([(0, 9), (10, 20), (30, 34)], [(0, 20)])
    assert (len(spanning.detected), spanning.reference_lesions, spanning.predicted_lesions) == (1, 2, 1)
    assert spanning.detected[0].voe == pytest.approx(1 / 20)
    split = _case([(0, 20)], [(0, 9), (10, 20), (30, 34)])
    assert (len(split.detected), split.reference_lesions, split.predicted_lesions) == (1, 1, 2)
    assert split.detected[0].rvd == pytest.approx(-1 / 20)
    scores = lits_scores([spanning, split])
    assert scores["precision"] == scores["recall"] == pytest.approx(2 / 3)


def test_matching() -> None:
    assert merged_matches({}) == []
    assert merged_matches({(1, 1): 5, (2, 1): 5}) == [([1, 2], [1])]
    assert merged_matches({(1, 1): 5, (2, 1): 4, (2, 2): 6}) == [([1], [1]), ([2], [2])]
    assert merged_matches({(1, 1): 5, (1, 2): 5}) == [([1], [1, 2])]
    # Both references belong to the second prediction; so the first goes to them as well.
    assert merged_matches({(1, 1): 3, (1, 2): 4, (2, 2): 9}) == [([1, 2], [1, 2])]
    # A lesion whose partner prefers another has none left.
    assert merged_matches({(1, 1): 2, (2, 1): 5, (2, 2): 6}) == [([1], []), ([2], [1, 2])]


def test_burden() -> None:
    cases = [_case([(0, 10)], [(0, 5)]), _case([(0, 4)], [(0, 12)]), lits_case(_map(), _map(liver=False), (1, 1, 1))]
    scores = lits_scores(cases)
    per_slice = 16 / np.prod(SHAPE)
    assert scores["burden_rmse"] == pytest.approx(per_slice * math.sqrt((25 + 64) / 2))
    assert scores["burden_max"] == pytest.approx(per_slice * 8)
    assert scores["burden_cases"] == 2
    assert cases[0].burden_difference < 0 < cases[1].burden_difference


def test_no_case_and_no_lesion() -> None:
    assert math.isnan(lits_scores([])["lesion_dice_per_case"])
    scores = lits_scores([LitsCase(Overlap(5, 0, 0, 9), Overlap(0, 0, 0, 14), (), 0, 0, 0, 0.0)])
    assert math.isnan(scores["precision"])
    assert math.isnan(scores["lesion_dice_global"])
    assert scores["burden_max"] == 0
