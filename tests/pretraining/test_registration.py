"""Affine registration: a known transform is found, to the bit twice; outliers are named."""

from __future__ import annotations

import numpy as np
from made_bodies import Body, affine, scanner

from nnunet_ext.pretraining.body import body_mask, spread_points
from nnunet_ext.pretraining.coarse import coarse, reading
from nnunet_ext.pretraining.frames import apply
from nnunet_ext.pretraining.registration import outliers, register


def test_a_known_transform_is_recovered_within_a_voxel() -> None:
    matrix = affine((1.12, 0.92, 1.05), (25, -14, 30), degrees=8, shear=0.05)
    reference = Body().coarse(scanner())
    other = Body(matrix).coarse(scanner((60, 42, 58), 4.0, (20, -10, 25)))
    found = register(reference, other, seed=1)
    points = spread_points(reference, body_mask(reference), 50, 64.0, np.random.default_rng(0))
    errors = np.linalg.norm(apply(found.matrix, points) - apply(matrix, points), axis=1)
    assert np.median(errors) < 2.0
    assert errors.max() < 4.0
    again = register(reference, other, seed=1)
    np.testing.assert_array_equal(found.matrix, again.matrix)
    assert found.metric == again.metric < 0


def test_thin_slabs_are_registered() -> None:
    reference = Body().coarse(scanner((10, 36, 52)))
    other = Body(affine((1, 1, 1), (8, -8, 0))).coarse(scanner((10, 36, 52)))
    found = register(reference, other, seed=1)
    np.testing.assert_allclose(apply(found.matrix, np.zeros(3)), [8, -8, 0], atol=4.0)


def test_flat_volumes_fail_without_an_exception() -> None:
    flat = coarse(reading(np.zeros((20, 20, 20), np.float32)), scanner((20, 20, 20)), 4.0)
    assert np.isnan(register(Body().coarse(scanner()), flat, seed=1).metric)


def test_outliers() -> None:
    assert outliers([-1.0, -1.1, -0.9, -1.05, -0.95, -0.1, np.nan]).tolist() == [False] * 5 + [True, True]
    assert outliers([-1.0, -0.1, np.nan]).tolist() == [False, False, True]
    assert not outliers([-1.0] * 8).any()
