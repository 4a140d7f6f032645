"""Coarse volumes, body masks, boxes and spread points."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from made_bodies import Body, affine, scanner

from nnunet_ext.pretraining.body import (
    body_mask,
    body_threshold,
    image_box,
    mask_box,
    points_in,
    spread_points,
)
from nnunet_ext.pretraining.case_matching import box_matrix
from nnunet_ext.pretraining.coarse import averaging, coarse, coarse_frame, reading
from nnunet_ext.pretraining.frames import Frame, apply


def plans(scheme: str, low: float) -> tuple[dict[str, Any], dict[str, Any]]:
    known = {"percentile_00_5": low, "percentile_99_5": 300.0, "mean": 100.0, "std": 50.0}
    return {"foreground_intensity_properties_per_channel": {"0": known}}, {"normalization_schemes": [scheme]}


def test_hounsfield_units_are_recovered_where_they_can_be() -> None:
    assert body_threshold(*plans("CTNormalization", -1000)) == pytest.approx(-12)
    assert body_threshold(*plans("CTNormalization", -100)) is None
    assert body_threshold(*plans("ZScoreNormalization", -1000)) is None


def test_averages_keep_sums() -> None:
    weights = averaging(7, 3)
    np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-6)
    np.testing.assert_allclose(weights @ np.arange(7), [5 / 7, 3, 37 / 7], rtol=1e-6)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, 1, 1), (1, -1, -1)])
def test_orientation_does_not_matter(order: tuple[int, int, int], flips: tuple[int, int, int]) -> None:
    """A body stored with other axes gives the same coarse volume."""
    frame = scanner((55, 71, 48), 3.0, (10, -20, 30))
    image = Body().drawn(frame)
    expected = coarse(reading(image), frame, 6.0)
    flipped = image[tuple(slice(None, None, flip) for flip in flips)].transpose(order)
    turn, last = np.eye(4), np.asarray(frame.shape) - 1
    for axis, source in enumerate(order):
        turn[source, :3] = 0
        turn[source, axis] = flips[source]
        turn[source, 3] = 0 if flips[source] == 1 else last[source]
    stored = Frame(tuple(flipped.shape), frame.matrix @ turn)
    found = coarse(reading(flipped), stored, 6.0)
    np.testing.assert_allclose(found.frame.matrix, expected.frame.matrix, atol=1e-9)
    np.testing.assert_allclose(found.values, expected.values, atol=1e-4)
    assert found.inside.all()
    assert expected.inside.all()


def test_coarse_values_are_where_they_belong() -> None:
    frame = scanner((40, 40, 40), 1.5, (5, 6, 7))
    index = np.stack(np.meshgrid(*map(np.arange, frame.shape), indexing="ij"), -1)
    ramp = frame.to_lps(index)[..., 0].astype(np.float32)
    volume = coarse(reading(ramp), frame, 4.0)
    points = volume.frame.to_lps(np.argwhere(np.ones(volume.frame.shape, bool)).reshape(*volume.frame.shape, 3))
    inner = (slice(2, -2),) * 3
    np.testing.assert_allclose(volume.values[inner], points[..., 0][inner], atol=0.1)
    values, inside = volume.sample(np.array([[5.3, 6, 7], [90, 6, 7]]))
    assert values[0] == pytest.approx(5.3, abs=0.1)
    assert inside.tolist() == [1, 0]


def test_slabs_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    frame, body = scanner(), Body()
    image = body.drawn(frame)
    whole = coarse(reading(image), frame, 9.0)
    monkeypatch.setattr("nnunet_ext.pretraining.coarse.SLAB", 5 * 36 * 52)
    np.testing.assert_allclose(coarse(reading(image), frame, 9.0).values, whole.values, atol=1e-5)


def test_the_body_is_found_without_the_table_and_with_its_holes() -> None:
    frame = scanner((56, 44, 52))
    image = Body().drawn(frame)
    image[:, -2, 4:-4] = 2.0  # a table behind the patient
    image[20:30, 20:24, 24:28] = -1.0  # a lung
    volume = coarse(reading(image), frame, 4.0)
    mask = body_mask(volume, threshold=0.5)
    assert mask[25, 22, 26]
    assert not mask[:, -2].any()
    box = mask_box(mask, volume.frame)
    np.testing.assert_allclose(box, [[-90, -60, -100], [90, 60, 100]], atol=4.1)
    points = points_in(mask, volume.frame, 200, np.random.default_rng(0))
    assert ((points >= box[0]) & (points <= box[1])).all()


def test_flat_images_are_bodies_as_a_whole() -> None:
    frame = scanner((8, 8, 8))
    volume = coarse(reading(np.zeros((8, 8, 8), np.float32)), frame, 4.0)
    assert body_mask(volume).all()
    np.testing.assert_allclose(image_box(frame), [[-16] * 3, [16] * 3])


def test_boxes_map_onto_each_other() -> None:
    source, target = np.array([[0.0, 0, 0], [10, 20, 40]]), np.array([[5.0, -10, 0], [10, 10, 20]])
    np.testing.assert_allclose(apply(box_matrix(source, target), [[10.0, 10, 0]]), [[10, 0, 0]])


def test_points_spread_over_the_body() -> None:
    volume = Body().coarse(scanner())
    mask = body_mask(volume)
    points = spread_points(volume, mask, 64, 64.0, np.random.default_rng(3))
    np.testing.assert_array_equal(points, spread_points(volume, mask, 64, 64.0, np.random.default_rng(3)))
    assert points.shape == (64, 3)
    distances = np.linalg.norm(points[:, None] - points, axis=-1) + 1e9 * np.eye(64)
    assert distances.min() > 12  # mm; of random ones it would be about 5
    assert ((points.max(0) - points.min(0)) > [100, 60, 120]).all()
    index = np.round(volume.frame.to_index(points)).astype(int)
    assert mask[tuple(index.T)].all()


def test_few_cells_give_few_points() -> None:
    volume = Body().coarse(scanner())
    mask = np.zeros(volume.frame.shape, bool)
    mask[20, 10:12, 20:22] = True
    assert len(spread_points(volume, mask, 64, 64.0, np.random.default_rng(0))) <= 4


def test_a_grid_is_about_the_centre() -> None:
    frame = coarse_frame(scanner((10, 11, 13), 3.0, (1, 2, 3)), 4.0)
    np.testing.assert_allclose(frame.to_lps((np.asarray(frame.shape) - 1) / 2), [1, 2, 3])
    assert frame.shape == (8, 8, 10)


def test_bodies_move() -> None:
    moved = Body(affine((1.1, 0.9, 1.0), (12, -8, 20), degrees=5))
    point = np.array([20.0, 10, -30])
    assert moved.values(np.asarray(moved.matrix @ [*point, 1])[:3]) == pytest.approx(Body().values(point))
