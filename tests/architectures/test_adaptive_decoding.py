"""Adaptive decoding against dense decoding, on fields whose surfaces are known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from nnunet_ext.architectures.blocks import lattice
from nnunet_ext.architectures.blocks.adaptive_decoding import Decoded, Field, Presence, decode_grid
from nnunet_ext.architectures.blocks.point_grid import PointGrid

Ball = tuple[tuple[float, ...], float]
BALL: Ball = ((32.3, 30.7, 31.6), 19.0)
LESION: Ball = ((52.5, 53.0, 51.6), 3.0)  # no point of the lattice of stride 8 is in it


def inside(coords: Tensor, *balls: Ball) -> Tensor:
    """Distance to the surface (N), positive within any of the balls."""
    return torch.stack([radius - (coords - torch.tensor(centre)).norm(dim=1) for centre, radius in balls]).amax(0)


def two_classes(*balls: Ball) -> Field:
    return lambda coords: torch.stack([-inside(coords, *balls), inside(coords, *balls)])


def three_classes(coords: Tensor) -> Tensor:
    """Background, a plate of nine voxels along the last axis, and a ball in front of it."""
    plate = 4.5 - (coords[:, -1] - 20.2).abs()
    ball = inside(coords, (BALL[0][: coords.shape[1]], 15.0))
    return torch.stack([torch.zeros(len(coords)), 2 * plate, 4 * ball])


def two_regions(coords: Tensor) -> Tensor:
    """A ball in a larger one."""
    return torch.stack([inside(coords, BALL), inside(coords, (BALL[0], 9.5))])


def noise(coords: Tensor) -> Tensor:
    """Any class anywhere, always the same at the same place."""
    values = torch.sin(coords.double() @ torch.tensor([12.9898, 78.233, 37.719][: coords.shape[1]]).double()) * 43758.5
    return torch.stack([values % 1, (values * 7) % 1, (values * 13) % 1]).float()


FIELDS: dict[str, tuple[Field, bool]] = {
    "two classes": (two_classes(BALL), False),
    "three classes": (three_classes, False),
    "regions": (two_regions, True),
    "one channel": (lambda coords: inside(coords, BALL)[None], False),
}


def decoded(field: Field, grid: PointGrid, regions: bool = False, mode: str = "adaptive", **options: Any) -> Decoded:
    strides = options.pop("first_stride", (8,) * len(grid.shape))
    return decode_grid(field, grid, mode=mode, regions=regions, first_stride=strides, **options)


def classes(logits: Tensor, regions: bool = False) -> Tensor:
    return logits > 0 if regions or len(logits) == 1 else logits.argmax(0)


def check_against_dense(field: Field, grid: PointGrid, regions: bool = False, **options: Any) -> Decoded:
    """The three promises: evaluated points are exact, the others nearly always of the right class, and finite."""
    found, dense = (decoded(field, grid, regions, mode, **options) for mode in ("adaptive", "dense"))
    assert dense.evaluated.all()
    assert found.logits.shape == dense.logits.shape == (len(field(torch.zeros(1, len(grid.shape)))), *grid.shape)
    assert found.logits.dtype == torch.float32
    torch.testing.assert_close(found.logits[:, found.evaluated], dense.logits[:, found.evaluated], rtol=1e-6, atol=1e-5)
    assert (classes(found.logits, regions) == classes(dense.logits, regions)).float().mean() >= 0.999
    return found


def true_presence(field: Field, shape: tuple[int, ...], cell: int) -> Presence:
    """What a perfect head would say of cubic cells."""
    dense = decoded(field, PointGrid.of_voxels(shape), mode="dense").logits
    one_hot = functional.one_hot(dense.argmax(0), len(dense)).movedim(-1, 0).float()
    return Presence(functional.max_pool3d(one_hot[None], cell, ceil_mode=True)[0], shape)


@pytest.mark.parametrize("name", FIELDS)
def test_adaptive_is_dense_where_it_matters(name: str) -> None:
    field, regions = FIELDS[name]
    found = check_against_dense(field, PointGrid.of_voxels((64, 64, 64)), regions)
    assert 0.02 < found.evaluated.float().mean() < 0.35


@pytest.mark.parametrize(
    ("radius", "stride", "share"), [(40, 8, 0.076), (40, 4, 0.087), (25, 8, 0.032), (25, 4, 0.044)]
)
def test_few_points_are_evaluated(radius: float, stride: int, share: float) -> None:
    """As many as the specification found for such a surface method in 128^3 voxels; the whole ball is more."""
    found = decoded(
        two_classes(((64.3, 64.3, 64.3), radius)), PointGrid.of_voxels((128,) * 3), first_stride=(stride,) * 3
    )
    assert found.evaluated.float().mean().item() == pytest.approx(share, rel=0.2)


@pytest.mark.parametrize("cell", [4, 8, 16])
def test_what_the_lattice_misses_is_found_where_it_is_known_to_be(cell: int) -> None:
    field, shape = two_classes(((25.0, 24.0, 26.0), 15.0), LESION), (64, 64, 64)
    grid = PointGrid.of_voxels(shape)
    dense = classes(decoded(field, grid, mode="dense").logits)
    assert dense[50:56, 50:56, 50:56].any()
    alone = decoded(field, grid)
    assert not classes(alone.logits)[48:58, 48:58, 48:58].any()
    guided = decoded(field, grid, presence=true_presence(field, shape, cell))
    assert torch.equal(classes(guided.logits), dense)
    assert (guided.evaluated | ~alone.evaluated).all()  # presence never takes a point away
    assert guided.evaluated.float().mean() < alone.evaluated.float().mean() + 0.02


def test_a_region_that_the_lattice_misses() -> None:
    shape = (48, 48, 48)
    grid = PointGrid.of_voxels(shape)

    def field(coords: Tensor) -> Tensor:
        return torch.stack([torch.full((len(coords),), 5.0), inside(coords, ((20.5, 19.5, 20.5), 2.5))])

    probabilities = torch.zeros(2, 6, 6, 6)
    probabilities[1, 2, 2, 2] = 0.06  # the cell of voxels 16 to 23
    assert not classes(decoded(field, grid, True, first_stride=(16,) * 3).logits, True)[1].any()
    for share, wanted in ((1.0, True), (0.8, False)):
        presence = Presence(share * probabilities, shape)
        found = decoded(field, grid, True, first_stride=(16,) * 3, presence=presence)
        assert classes(found.logits, True)[1].any() == wanted
    dense = classes(decoded(field, grid, True, "dense").logits, True)
    found = decoded(field, grid, True, first_stride=(16,) * 3, presence=Presence(probabilities, shape))
    assert torch.equal(classes(found.logits, True), dense)


def test_presence_is_of_the_image_that_the_grid_lies_in() -> None:
    """A grid twice as fine, of a part of the image, asks the cells that its points are in."""
    field, shape = two_classes(LESION), (64, 64, 64)
    presence = true_presence(field, shape, 8)
    grid = PointGrid((50, 50, 50), (0.5, 0.5, 0.5), (38.2, 38.2, 38.2))
    dense = classes(decoded(field, grid, mode="dense", first_stride=(16,) * 3).logits)
    assert dense.any()
    assert not classes(decoded(field, grid, first_stride=(16,) * 3).logits).any()
    assert torch.equal(classes(decoded(field, grid, first_stride=(16,) * 3, presence=presence).logits), dense)


def test_a_presence_that_is_sure_of_what_was_found_costs_nothing() -> None:
    field, shape = two_classes(BALL), (64, 64, 64)
    grid = PointGrid.of_voxels(shape)
    guided = decoded(field, grid, presence=true_presence(field, shape, 16))
    assert torch.equal(guided.evaluated, decoded(field, grid).evaluated)


def test_presence_of_any_foreground_asks_for_no_class_of_it() -> None:
    """Where some foreground is known to be and some is found, nothing is missing."""
    shape = (64, 64, 64)
    grid, ball = PointGrid.of_voxels(shape), two_classes(LESION)
    background, *others = true_presence(three_classes, shape, 16).probabilities
    probabilities = torch.stack([background, torch.maximum(*others)])
    pair = decoded(three_classes, grid, presence=Presence(probabilities, shape))
    assert torch.equal(pair.evaluated, decoded(three_classes, grid).evaluated)
    single = decoded(three_classes, grid, presence=Presence(probabilities[[0, 1, 1]], shape))
    assert single.evaluated.sum() > pair.evaluated.sum()
    missed = true_presence(ball, shape, 8)
    for field, presence in (
        (lambda coords: torch.cat([ball(coords), ball(coords)[1:] - 1]), missed),
        (lambda coords: ball(coords)[1:].repeat(2, 1), Presence(missed.probabilities[1:], shape)),
    ):
        regions = presence is not missed
        found, dense = (decoded(field, grid, regions, mode, presence=presence) for mode in ("adaptive", "dense"))
        assert torch.equal(classes(found.logits, regions), classes(dense.logits, regions))
        assert not found.evaluated.all()


def test_a_head_that_has_learned_little_costs_little() -> None:
    shape = (64, 64, 64)
    field, grid, generator = two_classes(BALL, LESION), PointGrid.of_voxels(shape), torch.Generator().manual_seed(0)
    alone = decoded(field, grid).evaluated.float().mean()
    probabilities = 0.3 + 0.1 * torch.rand((2, 16, 16, 16), generator=generator)
    probabilities[1, 12:14, 12:14, 12:14] = 0.45  # the lesion's cells: the most suspicious ones
    for each, most in ((probabilities, 0.06), (torch.full_like(probabilities, 0.3), 0.0)):
        found = decoded(field, grid, presence=Presence(each, shape))
        assert found.evaluated.float().mean() <= alone + most
    found = decoded(field, grid, presence=Presence(probabilities, shape))
    assert torch.equal(classes(found.logits), classes(decoded(field, grid, mode="dense").logits))
    likely = decoded(field, grid, presence=Presence(probabilities + 0.3, shape))
    assert likely.evaluated.float().mean() > 0.9  # nothing bounds what is likely


def test_a_share_of_the_cells_is_that_of_the_cells_among_the_points() -> None:
    """A grid in a corner of the image looks into the most suspicious of its own cells."""
    shape = (64, 64, 64)
    probabilities = torch.full((2, 16, 16, 16), 0.4)
    probabilities[:, :3, :3, :3] = 0.1
    probabilities[1, 1, 0, 1] = probabilities[1, 0, 1, 1] = 0.2
    everywhere = torch.ones((8, 8, 8), dtype=torch.bool)
    cells = Presence(probabilities, shape).unseen([everywhere, ~everywhere], [torch.arange(8.0)] * 3, 0.05, 0.05)
    assert cells.nonzero().tolist() == [[0, 1, 1], [1, 0, 1]]


@pytest.mark.parametrize("shape", [(37, 50, 41), (9, 64, 33), (1, 40, 40), (3, 2, 1)], ids=str)
def test_sizes_that_are_no_multiples(shape: tuple[int, ...]) -> None:
    centre = tuple(edge / 2 for edge in shape)
    check_against_dense(two_classes((centre, 0.3 * max(shape))), PointGrid.of_voxels(shape))


@pytest.mark.parametrize("first_stride", [(1, 8, 8), (2, 8, 4), (3, 6, 12)], ids=str)
def test_anisotropic_strides(first_stride: tuple[int, ...]) -> None:
    def field(coords: Tensor) -> Tensor:
        return two_classes(((12.2, 31.0, 33.0), 20.0))(coords * torch.tensor([2.0, 1.0, 1.0]))

    found = check_against_dense(field, PointGrid.of_voxels((12, 70, 66)), first_stride=first_stride)
    lattice_of = [slice(None, None, 1 << (stride.bit_length() - 1)) for stride in first_stride]
    assert found.evaluated[tuple(lattice_of)].all()
    assert not found.evaluated.all()


def test_two_dimensions() -> None:
    grid = PointGrid.of_voxels((150, 203))
    found = check_against_dense(two_classes(((70.0, 90.0), 40.0)), grid)
    assert found.evaluated.float().mean() < 0.12
    check_against_dense(three_classes, grid)


def test_values_between_evaluated_points_are_interpolated() -> None:
    """Of a field that is linear nothing but the first lattice is needed for all values."""
    slope = torch.tensor([0.5, -0.25, 0.125])
    grid = PointGrid((21, 30, 17), (0.5, 2.0, 1.0), (100.0, 0.0, -3.0))

    def field(coords: Tensor) -> Tensor:
        return torch.stack([100 + coords @ slope, coords @ slope])

    found = check_against_dense(field, grid)
    dense = decoded(field, grid, mode="dense")
    assert found.evaluated.sum() == 3 * 4 * 3
    torch.testing.assert_close(found.logits, dense.logits)


def test_noise_is_evaluated_densely() -> None:
    calls: list[int] = []

    def field(coords: Tensor) -> Tensor:
        calls.append(len(coords))
        return noise(coords)

    grid = PointGrid.of_voxels((33, 33, 33))
    found = decoded(field, grid)
    assert found.evaluated.all()
    assert sum(calls) == 33**3  # each once
    torch.testing.assert_close(
        found.logits, noise(grid.coordinates(torch.ones(grid.shape).nonzero())).view(3, 33, 33, 33)
    )


def test_from_the_dense_share_on_a_lattice_is_evaluated_wholly() -> None:
    grid = PointGrid.of_voxels((64, 64, 64))
    assert decoded(two_classes(BALL), grid, dense_share=0.05).evaluated.all()
    assert not decoded(two_classes(BALL), grid, dense_share=0.4).evaluated.all()


def test_a_small_margin_is_looked_into() -> None:
    """One best class everywhere, but hardly so in a plate: |2 p - 1| is 0.05 there."""

    def field(coords: Tensor) -> Tensor:
        doubtful = (coords[:, 0] - 16).abs() < 3
        return torch.where(doubtful, 0.1, 5.0)[None]

    grid = PointGrid.of_voxels((33, 33, 33))
    assert decoded(field, grid, margin=0.04).evaluated.sum() == 5**3
    found = decoded(field, grid, margin=0.06)
    assert found.evaluated[13:20].all()
    assert not found.evaluated[25:].all()
    pair = decoded(lambda coords: torch.cat([field(coords), torch.zeros(1, len(coords))]), grid, margin=0.06)
    assert torch.equal(pair.evaluated, found.evaluated)


@pytest.mark.parametrize("field", [two_classes(BALL), noise, two_regions], ids=["ball", "noise", "regions"])
def test_budget_evaluates_a_fixed_number(field: Field) -> None:
    grid = PointGrid.of_voxels((41, 64, 50))
    regions = field is two_regions
    found = decoded(field, grid, regions, "budget", budget_share=0.1)
    fixed = 7 * 9 * 8 + sum(round(0.1 * n) for n in (11 * 17 * 14, 21 * 33 * 26, 41 * 64 * 50))
    lost = fixed - int(found.evaluated.sum())  # points of lattices that lie beyond the grid
    assert 0 <= lost <= 0.1 * fixed
    dense = decoded(field, grid, regions, "dense")
    assert (found.logits - dense.logits)[:, found.evaluated].abs().max() < 1e-5


def test_budget_spends_on_the_surface_and_on_suspects() -> None:
    field, shape = two_classes(((25.0, 24.0, 26.0), 15.0), LESION), (64, 64, 64)
    grid = PointGrid.of_voxels(shape)
    dense = classes(decoded(field, grid, mode="dense").logits)
    found = decoded(field, grid, mode="budget", presence=true_presence(field, shape, 8))
    assert (classes(found.logits) == dense).float().mean() >= 0.999
    assert torch.equal(classes(found.logits)[48:58, 48:58, 48:58], dense[48:58, 48:58, 48:58])


def test_points_come_in_compact_blocks() -> None:
    spans: list[float] = []

    def field(coords: Tensor) -> Tensor:
        spans.append((coords.amax(0) - coords.amin(0)).max().item())
        return two_classes(BALL)(coords)

    decoded(field, PointGrid.of_voxels((96, 96, 96)), mode="dense")
    assert spans == [31.0] * 27


def test_no_gradients_are_made() -> None:
    weight = torch.ones(1, requires_grad=True)
    found = decoded(lambda coords: weight * two_classes(BALL)(coords), PointGrid.of_voxels((20, 20, 20)))
    assert not found.logits.requires_grad


def test_half_precision_fields_give_float32() -> None:
    found = decoded(lambda coords: two_classes(BALL)(coords).half(), PointGrid.of_voxels((64, 64, 64)))
    assert found.logits.dtype == torch.float32


REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "mode": (
        lambda: decoded(noise, PointGrid.of_voxels((8, 8)), mode="quick"),
        "mode is 'quick'; the modes are dense, adaptive, budget",
    ),
    "presence": (
        lambda: decoded(noise, PointGrid.of_voxels((8, 8)), presence=Presence(torch.zeros(4, 4, 4), (8, 8))),
        "presence has 4 channels, the logits are of 3 classes; .* or two, the background and all others",
    ),
    "no points": (lambda: decoded(noise, PointGrid.of_voxels((8, 0))), "no points"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refusals(what: str) -> None:
    call, words = REFUSED[what]
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.parametrize("edge", range(1, 20))
def test_a_lattice_spans_its_grid(edge: int) -> None:
    for wanted in (1, 2, 3, 4, 8, 100):
        (stride,) = lattice.first_strides([wanted], [edge])
        (points,) = lattice.lattice_shape([edge], [stride])
        assert stride <= wanted
        assert (points - 1) * stride >= edge - 1 > (points - 2) * stride
        assert stride == 1 or stride // 2 < edge - 1
