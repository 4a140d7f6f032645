"""Cardiac indices and their agreement over patients."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from nnunet_ext.evaluation_scripts.agreement import agreement
from nnunet_ext.evaluation_scripts.clinical import (
    CardiacIndices,
    cardiac_agreement,
    cardiac_indices,
    ejection_fraction,
    volumes_ml,
)


def _patient(lv: float, lv_esv: float) -> CardiacIndices:
    return cardiac_indices({1: 150.0, 2: 100.0, 3: lv}, {1: 60.0, 2: 110.0, 3: lv_esv})


def test_volumes() -> None:
    labels = np.zeros((4, 10, 10), np.uint8)
    labels[1, :5] = 3
    labels[2, 0, 0] = 2
    assert volumes_ml(labels, (10, 1.5, 1.4)) == {3: pytest.approx(50 * 21 / 1000), 2: pytest.approx(0.021)}
    with pytest.raises(ValueError, match="axes"):
        volumes_ml(labels, (1, 1))


def test_indices() -> None:
    indices = _patient(120, 48)
    assert (indices.lv_edv, indices.lv_esv) == (120, 48)
    assert (indices.rv_edv, indices.rv_esv) == (150, 60)
    assert indices.lv_ef == indices.rv_ef == pytest.approx(60)
    assert (indices.myo_edv, indices.myo_esv) == (100, 110)
    assert indices.myo_mass == pytest.approx(105.5)


def test_other_labels_and_missing_ones() -> None:
    indices = cardiac_indices({1: 90.0, 2: 80.0}, {1: 30.0}, labels=(3, 2, 1))
    assert (indices.lv_edv, indices.rv_edv) == (90, 0)
    assert indices.lv_ef == pytest.approx(200 / 3)
    assert math.isnan(indices.rv_ef)
    assert math.isnan(ejection_fraction(0, 5))


def test_agreement() -> None:
    rng = np.random.default_rng(0)
    ours = rng.normal(100, 20, 30)
    theirs = ours + rng.normal(3, 5, 30)
    found = agreement(ours, theirs)
    assert found.correlation == pytest.approx(stats.pearsonr(ours, theirs).statistic, abs=1e-12)
    differences = theirs - ours
    assert found.bias == pytest.approx(differences.mean())
    assert found.deviation == pytest.approx(stats.tstd(differences))
    assert found.upper - found.bias == found.bias - found.lower == pytest.approx(1.96 * stats.tstd(differences))
    assert found.mean_absolute_error == pytest.approx(np.abs(differences).mean())


def test_agreement_of_few_or_constant_values() -> None:
    alone = agreement([1.0, math.nan], [3.0, 4.0])
    assert (alone.n, alone.dropped, alone.bias) == (1, 1, 2)
    assert math.isnan(alone.correlation)
    assert math.isnan(alone.upper)
    assert math.isnan(agreement([], []).bias)
    assert math.isnan(agreement([1, 1, 1], [1, 2, 3]).correlation)
    with pytest.raises(ValueError, match="each reference"):
        agreement([1, 2], [1])


def test_agreement_over_patients() -> None:
    reference = {"a": _patient(100, 40), "b": _patient(140, 70), "c": _patient(200, 160)}
    predicted = {"c": _patient(205, 160), "a": _patient(102, 40), "b": _patient(141, 70)}
    found = cardiac_agreement(reference, predicted)
    assert found["lv_edv"].bias == pytest.approx(8 / 3)
    assert found["lv_esv"].bias == 0
    assert found["lv_ef"].n == 3
    with pytest.raises(ValueError, match="b"):
        cardiac_agreement(reference, {"a": reference["a"], "c": reference["c"]})
