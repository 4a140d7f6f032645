"""Where points are drawn: near borders as asked for, never twice there, never ignored, with their right densities."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scipy import ndimage
from torch import Tensor

from nnunet_ext.losses.point_sampling import Points, Sampling, border_mask, border_radius, draw_points

SIZE = (20, 24, 28)


def ball(radius: float = 6.0, centre: tuple[float, ...] = (9.0, 12.0, 13.0), size: tuple[int, ...] = SIZE) -> Tensor:
    axes = torch.meshgrid(*(torch.arange(edge).float() for edge in size), indexing="ij")
    distance = sum((axis - c) ** 2 for axis, c in zip(axes, centre, strict=True))
    return (torch.as_tensor(distance) < radius**2)[None, None].to(torch.int16)


def sampling(**changes: Any) -> Sampling:
    options: dict[str, Any] = {"points": 1000, "border": 0.25, "balanced": 0.25, "jitter": 0.5, "radius": (2, 2, 2)}
    return Sampling(**{**options, **changes})


def flat_index(points: Points, size: tuple[int, ...] = SIZE) -> Tensor:
    index = points.coords.round().long()
    flat = index[..., 0]
    for axis in range(1, len(size)):
        flat = flat * size[axis] + index[..., axis]
    return flat


@pytest.mark.parametrize("radius", [(1, 1, 1), (2, 1, 3), (7, 7, 7)])
def test_border_is_where_a_window_is_not_constant(radius: tuple[int, ...]) -> None:
    labels = ball() + ball(3.0) + (torch.rand(1, 1, *SIZE) > 0.999)
    size = (1, 1, *(2 * r + 1 for r in radius))
    array = labels.numpy()
    expected = ndimage.maximum_filter(array, size, mode="nearest") != ndimage.minimum_filter(
        array, size, mode="nearest"
    )
    assert torch.equal(border_mask(labels, radius), torch.from_numpy(expected))


def test_border_of_regions_is_where_any_of_them_changes() -> None:
    regions = torch.cat([ball(), ball(3.0, (4.0, 4.0, 4.0))], 1).bool()
    expected = border_mask(regions[:, :1], (1, 1, 1)) | border_mask(regions[:, 1:], (1, 1, 1))
    assert torch.equal(border_mask(regions, (1, 1, 1)), expected)
    assert expected.sum() > border_mask(regions[:, :1], (1, 1, 1)).sum()


@pytest.mark.parametrize(
    ("spacing", "radius"),
    [((1, 1, 1), (7, 7, 7)), ((5, 1, 1), (1, 7, 7)), ((100, 1, 2), (1, 7, 4)), ((0.5, 0.5), (7, 7))],
)
def test_radius_is_a_distance(spacing: tuple[float, ...], radius: tuple[int, ...]) -> None:
    assert border_radius(spacing) == radius


def test_labels_are_those_of_the_nearest_voxel() -> None:
    target = torch.cat([ball(), ball(3.0)], 0)
    points = draw_points(target, sampling())
    assert points.coords.shape == (2, 1000, 3)
    assert points.coords.dtype == torch.float32
    expected = target.flatten(2).gather(2, flat_index(points)[:, None])
    assert torch.equal(points.target, expected)
    assert points.on_grid == 500
    assert torch.equal(points.coords[:, :500], points.coords[:, :500].round())
    moved = points.coords[:, 500:] - points.coords[:, 500:].round()
    assert 0.4 < moved.abs().max() <= 0.5


def test_all_voxels_are_drawn_from_the_last_included() -> None:
    points = draw_points(torch.zeros(1, 1, 3, 3, 3), sampling(points=2000, border=0.0, balanced=0.0, jitter=0.0))
    assert flat_index(points, (3, 3, 3)).unique().numel() == 27


@pytest.mark.parametrize("share", ["border", "balanced"])
def test_points_near_borders_are_there_and_differ(share: str) -> None:
    target = ball()
    points = draw_points(target, sampling(**{"border": 0.0, "balanced": 0.0, "jitter": 0.0, share: 1.0}))
    drawn = flat_index(points)[0]
    assert drawn.unique().numel() == 1000
    assert bool(border_mask(target, (2, 2, 2)).flatten()[drawn].all())


def test_a_small_border_is_taken_whole_and_filled_up() -> None:
    target = torch.zeros(1, 1, *SIZE)
    target[..., 5, 5, 5] = 1
    border = border_mask(target, (1, 1, 1))
    points = draw_points(target, sampling(border=0.5, balanced=0.0, radius=(1, 1, 1), jitter=0.0))
    drawn = flat_index(points)[0]
    assert set(border.flatten().nonzero()[:, 0].tolist()) <= set(drawn.tolist())
    assert bool(torch.isfinite(points.weights).all())


def test_rare_classes_are_preferred() -> None:
    target = ball(8.0) + (ball(2.0, (3.0, 3.0, 3.0)) * 2).to(torch.int16)
    shares = {}
    for share in ("border", "balanced"):
        options = {"border": 0.0, "balanced": 0.0, share: 0.3}
        torch.manual_seed(0)
        labels = draw_points(target, sampling(**options)).target
        shares[share] = float((labels == 2).float().mean())
    assert shares["balanced"] > 2 * shares["border"] > 0


def test_ignored_voxels_weigh_nothing_and_are_not_sought() -> None:
    target = ball()
    ignored = torch.zeros_like(target, dtype=torch.bool)
    ignored[..., :14] = True
    points = draw_points(target, sampling(jitter=0.0), ignored)
    drawn_ignored = ignored.flatten(2).gather(2, flat_index(points)[:, None])
    assert torch.equal(points.weights == 0, drawn_ignored)
    uniform = 500
    assert 0 < int(drawn_ignored.sum()) < 0.7 * uniform  # of the uniform points alone, half of the image


def test_everything_ignored_stays_finite() -> None:
    target = ball()
    points = draw_points(target, sampling(), torch.ones_like(target, dtype=torch.bool))
    assert int((points.weights != 0).sum()) == 0
    assert bool(torch.isfinite(points.weights).all())


def uneven() -> Tensor:
    """A large ball, and a rare class of a few voxels."""
    return ball(6.0) + (ball(1.5, (3.0, 3.0, 3.0)) * 2).to(torch.int16)


TARGETS = {"ball": ball(5.0), "rare class": uneven(), "one voxel": ball(0.5), "nothing": ball(0.0)}


@pytest.mark.parametrize("name", TARGETS)
def test_weighted_points_estimate_means_over_all_voxels(name: str) -> None:
    """Of places along each axis and, where there is some, of each class; unbounded weights (inverse densities)."""
    target = TARGETS[name]
    torch.manual_seed(0)
    axes = torch.stack(torch.meshgrid(*(torch.linspace(0, 1, edge) for edge in SIZE), indexing="ij"))
    quantities = torch.cat([axes, (target[0] == 1).float(), (target[0] == 2).float()]).flatten(1)
    truth, estimates = quantities.mean(1), []
    for _ in range(100):
        points = draw_points(target, sampling(jitter=0.0, points=4000, radius=(1, 1, 1)))
        drawn = quantities[:, flat_index(points)[0]]
        estimates.append((drawn * points.weights[0]).sum(1) / points.weights.sum())
    error = torch.stack(estimates).mean(0) - truth
    assert float((error.abs() / truth.clamp(min=1e-3))[:3].max()) < 0.01
    assert float((error.abs() / truth.clamp(min=2e-3))[3:].max()) < 0.06


def test_where_there_is_no_border_points_are_drawn_everywhere() -> None:
    target = ball(0.0)
    first, second = (flat_index(draw_points(target, sampling(border=1.0, balanced=0.0, jitter=0.0))) for _ in range(2))
    assert set(first[0].tolist()) != set(second[0].tolist())
    assert float(first.float().mean()) / target.numel() == pytest.approx(0.5, abs=0.05)


def test_points_of_nearly_all_the_border_weigh_alike() -> None:
    """All of the border is drawn by both groups, whatever their preference: no class weighs more there."""
    target = uneven()
    border = border_mask(target, (1, 1, 1)).flatten()
    share = int(border.sum()) / 4000
    options = {"points": 4000, "border": 0.0, "balanced": share, "jitter": 0.0, "radius": (1, 1, 1)}
    points = draw_points(target, sampling(**options))
    weights = points.weights[0, 0][border[flat_index(points)[0]]]
    assert float(weights.max()) == pytest.approx(float(weights.min()), rel=1e-4)


def test_without_importance_all_weigh_one() -> None:
    assert torch.equal(draw_points(ball(), sampling(importance=False)).weights, torch.ones(1, 1, 1000))


def test_a_generator_makes_points_repeatable_and_leaves_the_global_state() -> None:
    state = torch.get_rng_state()
    first, second = (draw_points(ball(), sampling(), generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first.coords, second.coords)
    assert torch.equal(torch.get_rng_state(), state)


def test_images_and_more_points_than_voxels() -> None:
    target = (torch.rand(2, 1, 6, 5) > 0.5).float()
    points = draw_points(target, sampling(points=64, radius=(1, 1)))
    assert points.coords.shape == (2, 64, 2)
    assert torch.equal(points.target, target.flatten(2).gather(2, flat_index(points, (6, 5))[:, None]))
