"""Signed-rank tests against SciPy's, for every kind of zeros and ties, also of resamples."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from nnunet_ext.evaluation_scripts.bootstrap import resampling_weights
from nnunet_ext.evaluation_scripts.signed_ranks import resampled_p_greater, signed_ranks, wilcoxon_p

RNG = np.random.default_rng(11)
SAMPLES = {
    "few": RNG.normal(0.4, 1, 9),
    "many": RNG.normal(0.1, 1, 60),
    "ties": np.round(RNG.normal(0.3, 1, 30), 1),
    "ties and zeros": np.round(RNG.normal(0.3, 1, 20) * 2) / 2,
    "zeros": np.append(RNG.normal(0.4, 1, 12), [0, 0, 0]),
    "more than exact": RNG.normal(0.1, 1, 26),
}
EXACT = {("few", "wilcox"), ("few", "pratt"), ("zeros", "wilcox")}


@pytest.mark.parametrize("alternative", ["two-sided", "greater", "less"])
@pytest.mark.parametrize("zero_method", ["wilcox", "pratt"])
@pytest.mark.parametrize("sample", SAMPLES)
def test_p_is_scipy_s(sample: str, zero_method: str, alternative: str) -> None:
    differences = SAMPLES[sample]
    p, exact = wilcoxon_p(differences, zero_method, alternative)
    assert exact == ((sample, zero_method) in EXACT)
    given = differences[differences != 0] if exact else differences
    expected = stats.wilcoxon(
        given, zero_method=zero_method, alternative=alternative, method="exact" if exact else "approx"
    )
    assert p == pytest.approx(expected.pvalue, rel=1e-10)


def test_sums_and_effect() -> None:
    ranks = signed_ranks(np.array([1.0, -2.0, 3.0, 3.0, 0.0]))
    assert (ranks.positive, ranks.negative, ranks.nonzero, ranks.zeros) == (8, 2, 4, 1)
    assert ranks.effect == 0.6
    pratt = signed_ranks(np.array([1.0, -2.0, 3.0, 3.0, 0.0]), "pratt")
    assert (pratt.positive, pratt.negative) == (11, 3)
    assert signed_ranks(np.array([0.5, 0.1])).effect == 1
    assert signed_ranks(np.array([-0.5, -0.1])).effect == -1


def test_nothing_differs() -> None:
    assert wilcoxon_p(np.zeros(7)) == (1, False)
    assert signed_ranks(np.zeros(7)).effect == 0
    assert math.isnan(wilcoxon_p(np.zeros(0))[0])


@pytest.mark.parametrize("sample", SAMPLES)
def test_resamples(sample: str) -> None:
    differences = SAMPLES[sample]
    weights = np.concatenate(list(resampling_weights(len(differences), 25)))
    for row, p in zip(weights, resampled_p_greater(differences, weights), strict=True):
        drawn = np.repeat(differences, row)
        assert p == pytest.approx(stats.wilcoxon(drawn, alternative="greater", method="approx").pvalue, rel=1e-10)


def test_resamples_of_zeros() -> None:
    weights = np.array([[2, 0], [0, 2]])
    assert resampled_p_greater(np.zeros(2), weights).tolist() == [1, 1]
    assert resampled_p_greater(np.array([0.0, 1.0]), weights)[0] == 1


def test_refusals() -> None:
    with pytest.raises(ValueError, match="pratt"):
        wilcoxon_p(np.ones(3), "zsplit")
    with pytest.raises(ValueError, match="greater"):
        wilcoxon_p(np.ones(3), alternative="more")
