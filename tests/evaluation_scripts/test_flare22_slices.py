"""FLARE22's slices and tolerances, and those of the Decathlon."""

from __future__ import annotations

import math

import numpy as np
import pytest

from nnunet_ext.dataset_conversion.flare22 import ORGANS
from nnunet_ext.dataset_conversion.msd_tasks import TASKS
from nnunet_ext.errors import UserError
from nnunet_ext.evaluation_scripts.flare22_slices import flare22_scores, reference_slices
from nnunet_ext.evaluation_scripts.metrics import CasePair
from nnunet_ext.evaluation_scripts.tolerances import FLARE22, MSD, msd_tolerance

AORTA, LIVER, TOLERANCES = 5, 1, {5: 2.0, 1: 5.0}


def _map(label: int, first: int, last: int, edge: int = 8) -> np.ndarray:
    made = np.zeros((20, 16, 16), np.uint8)
    made[first : last + 1, 2 : 2 + edge, 2:10] = label
    return made


def test_the_last_labelled_slice_is_dropped() -> None:
    reference = _map(AORTA, 4, 9)
    assert reference_slices(reference, AORTA) == slice(4, 9)
    assert reference_slices(reference, AORTA, corrected=True) == slice(4, 10)
    assert reference_slices(reference, LIVER) == slice(0, 0)


def test_an_aorta_outside_of_the_reference_s_slices_does_not_count() -> None:
    reference, predicted = _map(AORTA, 4, 9), _map(AORTA, 0, 19)
    predicted[9] = 0  # not scored by the challenge
    assert flare22_scores(reference, predicted, (5, 1, 1), TOLERANCES)[AORTA] == (1, 1)
    corrected = flare22_scores(reference, predicted, (5, 1, 1), TOLERANCES, corrected=True)[AORTA]
    assert corrected[0] == 2 * 5 / 11
    assert corrected[1] < 1


def test_other_organs_count_everywhere_and_are_rounded() -> None:
    reference, predicted = _map(LIVER, 4, 10), _map(LIVER, 3, 16, edge=7)
    pair = CasePair(reference, predicted, (3, 1, 1))
    expected = pair.overlap([LIVER]).dice, pair.element_distances([LIVER]).surface_dice(5)
    scores = flare22_scores(reference, predicted, (3, 1, 1), TOLERANCES, pair=pair)
    assert scores[LIVER] == tuple(round(value, 4) for value in expected)
    assert scores[LIVER] != expected
    assert flare22_scores(reference, predicted, (3, 1, 1), TOLERANCES, corrected=True)[LIVER] == expected


@pytest.mark.parametrize("label", [AORTA, LIVER])
def test_empties(label: int) -> None:
    empty, organ, elsewhere = np.zeros((20, 16, 16), np.uint8), _map(label, 4, 9), _map(label, 12, 14)
    for reference, predicted, expected in (
        (empty, empty, 1),
        (empty, organ, 0),
        (organ, empty, 0),
        (organ, elsewhere, 0),
    ):
        assert flare22_scores(reference, predicted, (5, 1, 1), {label: 2.0})[label] == (expected, expected)


def test_an_aorta_of_one_slice_cannot_be_scored() -> None:
    reference = _map(AORTA, 4, 4)
    assert all(math.isnan(value) for value in flare22_scores(reference, reference, (1, 1, 1), TOLERANCES)[AORTA])
    assert flare22_scores(reference, reference, (1, 1, 1), TOLERANCES, corrected=True)[AORTA] == (1, 1)


def test_tables() -> None:
    assert set(FLARE22) == set(range(1, 14))
    assert {ORGANS[number]: mm for number, mm in FLARE22.items() if mm >= 5} == {
        "liver": 5,
        "pancreas": 5,
        "stomach": 5,
        "duodenum": 7,
    }
    assert list(MSD) == [task.name for task in TASKS]


def test_tolerance_of_a_task() -> None:
    assert {msd_tolerance(task) for task in ("4", "04", "hippocampus", "Task04_Hippocampus")} == {1}
    with pytest.raises(UserError, match="Hippocampus"):
        msd_tolerance("Knee")
