"""Local correlation: against the plain formula, shifts that are found, noise that is not."""

from __future__ import annotations

import numpy as np
import pytest
from made_bodies import Body, affine, scanner

from nnunet_ext.pretraining.body import body_mask, spread_points
from nnunet_ext.pretraining.coarse import Coarse, coarse, reading
from nnunet_ext.pretraining.frames import apply
from nnunet_ext.pretraining.local_ncc import NOTHING, Scale, correlate, correlations


def test_correlations_are_the_formula() -> None:
    rng = np.random.default_rng(0)
    template, region = rng.normal(5, 1, (5, 5, 5)), rng.normal(-3, 2, (8, 8, 8))
    weights, others = (rng.random((5, 5, 5)) < 0.9).astype(float), (rng.random((8, 8, 8)) < 0.8).astype(float)
    found = correlations(template, weights, region, others)
    assert found.shape == (4, 4, 4)
    for place in np.ndindex(4, 4, 4):
        part = tuple(slice(start, start + 5) for start in place)
        both = (weights > 0) & (others[part] > 0)
        x, y = template[both], region[part][both]
        expected = ((x - x.mean()) * (y - y.mean())).mean() / (x.std() * y.std() + 1e-6)
        assert found[place] == pytest.approx(expected, abs=1e-9)


def test_half_of_the_neighbourhood_must_be_there() -> None:
    rng = np.random.default_rng(0)
    template, region = rng.normal(size=(4, 4, 4)), rng.normal(size=(4, 4, 8))
    others = np.zeros((4, 4, 8))
    others[..., :4] = 1
    found = correlations(template, np.ones((4, 4, 4)), region, others).ravel()
    assert (found[:3] > NOTHING).all()
    assert (found[3:] == NOTHING).all()


def test_flat_neighbourhoods_are_like_nothing() -> None:
    flat = np.full((5, 5, 5), 3.0)
    assert np.abs(correlations(flat, np.ones_like(flat), flat, np.ones_like(flat))).max() < 1e-3


def test_shifts_are_found_between_the_cells() -> None:
    reference = Body().coarse(scanner())
    moved = Body(affine((1, 1, 1), (9.0, -6.5, 13.0))).coarse(scanner())
    points = spread_points(reference, body_mask(reference), 12, 64.0, np.random.default_rng(0))
    found = [correlate(reference, moved, point, point, np.eye(3), Scale()) for point in points]
    errors = np.linalg.norm(
        [place - point - (9.0, -6.5, 13.0) for point, (place, _) in zip(points, found, strict=True)], axis=1
    )
    assert min(score for _, score in found) > 0.9
    assert np.max(errors) < 2.0


def test_neighbourhoods_follow_the_linear_part() -> None:
    matrix = affine((1.25, 0.8, 1.2), (5, 5, -5), degrees=20)
    reference, other = Body().coarse(scanner()), Body(matrix).coarse(scanner((70, 50, 64)))
    points = spread_points(reference, body_mask(reference), 6, 64.0, np.random.default_rng(0))
    for point in points:
        start = apply(matrix, point) + np.array([3, -4, 5])
        place, score = correlate(reference, other, point, start, matrix[:3, :3], Scale())
        assert score > correlate(reference, other, point, start, np.eye(3), Scale())[1]
        assert score > 0.9
        np.testing.assert_allclose(place, apply(matrix, point), atol=4.0)


def test_noise_is_not_accepted() -> None:
    reference = Body().coarse(scanner())
    noise = np.random.default_rng(1).normal(size=(56, 36, 52)).astype(np.float32)
    other = coarse(reading(noise), scanner(), 4.0)
    points = spread_points(reference, body_mask(reference), 20, 64.0, np.random.default_rng(0))
    scores = [correlate(reference, other, point, point, np.eye(3), Scale())[1] for point in points]
    assert max(scores) < 0.3


def test_places_outside_are_like_nothing() -> None:
    reference: Coarse = Body().coarse(scanner())
    far = np.array([500.0, 0, 0])
    place, score = correlate(reference, reference, np.zeros(3), far, np.eye(3), Scale())
    assert score == NOTHING
    np.testing.assert_array_equal(place, far)


def test_scales_shrink_with_the_volumes() -> None:
    abdomen = [scanner((100, 200, 250), 1.5), scanner((20, 165, 251), 1.95)]
    assert Scale.fitting(abdomen) == Scale()
    assert (Scale().half, Scale().steps) == (8, 6)
    small = Scale.fitting([scanner((35, 50, 35), 1.0)] * 3)
    assert small.grid == 1.0
    assert small.patch == pytest.approx(12.5)
    assert small.reach == pytest.approx(4.69, abs=0.01)
    assert (small.half, small.steps) == (6, 5)
    assert Scale.fitting([scanner((10, 20, 20), 8.0)]) == Scale(4.0, 40.0, 15.0)
