"""Samples: a function of seed and number; pairs that show what they say."""

from __future__ import annotations

import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from nnunet_ext.pretraining.cases import Case, body_box
from nnunet_ext.pretraining.crops import cut, draw_overlapping, pulled_in
from nnunet_ext.pretraining.frames import Frame
from nnunet_ext.pretraining.landmarks import LandmarkTable
from nnunet_ext.pretraining.sampling import Numbers, Samples, SamplingOptions, collated

SHAPE = (20, 24, 28)


class MadeCase(Case):
    """A case in memory: voxel values tell index and case."""

    def image(self) -> Any:
        z, y, x = np.indices(SHAPE, np.float32)
        return (z * 10000 + y * 100 + x + 0.01 * int(self.name))[None]


def made(number: int, origin: float = 0.0) -> Case:
    """Case `number`, its first voxel at `origin` mm along all axes."""
    frame = Frame.regular(SHAPE, (1, 1, 1), (origin,) * 3)
    return MadeCase(str(number), Path(), "", (), (), SHAPE, tuple((0, edge) for edge in SHAPE), frame)


def options(**changed: Any) -> SamplingOptions:
    """For patches of 8 x 12 x 16."""
    return SamplingOptions(**{"patch_size": (8, 12, 16), "block": (2, 4, 4), "augment": False, **changed})


def index_of(value: float) -> np.ndarray:
    """The voxel that a value of a `MadeCase` lies at."""
    value = round(value - value % 1)
    return np.array([value // 10000, value % 10000 // 100, value % 100])


def test_every_case_is_drawn_once_before_any_is_drawn_again() -> None:
    """The published code never visited nine tenths of its data (specification alice 6.2.1)."""
    samples = Samples([made(i) for i in range(7)], options())
    drawn = [samples.case_index(number) for number in range(21)]
    assert [Counter(drawn[i : i + 7]) for i in (0, 7, 14)] == [Counter(range(7))] * 3
    assert drawn[:7] != drawn[7:14]


def test_worker_processes_get_samples_by_pickle() -> None:
    samples = Samples([made(i) for i in range(3)], options(views=2, augment=True))
    assert torch.equal(pickle.loads(pickle.dumps(samples))[4][0], samples[4][0])


@pytest.mark.parametrize("views", [1, 2])
def test_a_sample_follows_from_seed_and_number(views: int) -> None:
    cases = [made(i) for i in range(5)]
    drawn = {seed: Samples(cases, options(views=views, augment=True, seed=seed)) for seed in (0, 1)}
    torch.manual_seed(0)
    first = drawn[0][11]
    torch.manual_seed(1)
    np.random.seed(5)
    before = torch.get_rng_state()
    again, other = drawn[0][11], drawn[1][11]
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    assert [tuple(part.shape) for part in first] == [(views, 1, 8, 12, 16)] * 2 + [(views, 1, 4, 3, 4), (3,)]
    assert first[2].sum() == views * 36


def test_batches_do_not_depend_on_processes_and_restarts() -> None:
    one = list(Numbers(4, 0, 1, 0, 3))
    two = [list(Numbers(2, rank, 2, 0, 3)) for rank in (0, 1)]
    assert [a + b for a, b in zip(*two, strict=True)] == one
    assert list(Numbers(4, 0, 1, 2, 3)) == one[2:]
    samples = Samples([made(i) for i in range(5)], options(views=2))
    loaded = next(iter(DataLoader(samples, batch_sampler=Numbers(2, 0, 1, 3, 4), collate_fn=collated)))
    assert torch.equal(
        loaded.images, torch.cat([samples[6][0][:1], samples[7][0][:1], samples[6][0][1:], samples[7][0][1:]])
    )


def test_overlapping_views_are_displaced_as_stated() -> None:
    samples = Samples([made(0)], options(views=2))
    shifts = []
    for number in range(20):
        _, clean, _, shift = samples[number]
        centres = [index_of(float(view[0, 4, 6, 8])) for view in clean]
        np.testing.assert_array_equal(centres[1] - centres[0], shift.numpy())
        shifts.append(shift.numpy())
    assert np.abs(shifts).max(0).min() >= 1
    assert (np.abs(shifts) <= 0.6 * np.array([8, 12, 16])).all()


def test_anatomical_pairs_show_matching_points() -> None:
    """The second volume lies 3 mm further; the first's patch is pulled into the image and the other goes along."""
    cases = [made(0), made(1, origin=3.0)]
    points = np.array([[[9.0, 11, 9], [1, 1, 1]], [[11.0, 12, 10], [3, 2, 2]]])  # LPS: x, y, z
    table = LandmarkTable("affine", ("0", "1"), points, np.ones((2, 2), np.float32), np.ones((2, 2), bool), False, {})
    samples = Samples(cases, options(views=2, anatomical_share=1.0), table)
    seen = set()
    for number in range(12):
        _, clean, _, shift = samples[number]
        assert torch.isnan(shift).all()
        order = [round(float(view.max() % 1) * 100) for view in clean]
        assert sorted(order) == [0, 1]
        point = 0 if 9 * 10000 <= float(clean[order.index(0), 0, 4, 6, 8]) < 10 * 10000 else 1
        first, second = (order[0], order[1])
        wished = np.rint(cases[first].frame.to_index(points[first, point]))
        pulled = pulled_in(wished, SHAPE, (8, 12, 16))
        np.testing.assert_array_equal(index_of(float(clean[0, 0, 4, 6, 8])), pulled)
        target = np.rint(cases[second].frame.to_index(points[second, point] + (pulled - wished)[::-1]))
        if (target >= 0).all():
            np.testing.assert_array_equal(index_of(float(clean[1, 0, 4, 6, 8])), target)
        seen.add((first, point))
    assert len(seen) == 4
    alone = Samples([cases[0], made(7)], options(views=2, anatomical_share=1.0), table)
    assert not torch.isnan(alone[0][3]).any()  # no partner in the pool: both views of one volume


def test_wrong_pairs_on_purpose() -> None:
    cases = [made(0), made(1)]
    points = np.full((2, 1, 3), 10.0)
    table = LandmarkTable("affine", ("0", "1"), points, np.ones((2, 1), np.float32), np.ones((2, 1), bool), False, {})
    centres = []
    for shuffled in (False, True):
        samples = Samples(cases, options(views=2, anatomical_share=1.0, shuffled=shuffled), table)
        centres.append([tuple(index_of(float(samples[n][1][1, 0, 4, 6, 8]))) for n in range(8)])
    assert len(set(centres[0])) == 1
    assert len(set(centres[1])) > 4


def test_crops() -> None:
    image = made(0).image()
    patch = cut(image, (2, 23, 14), (8, 4, 6))
    assert patch.shape == (1, 8, 4, 6)
    assert (patch[:, :2] == 0).all()
    np.testing.assert_array_equal(patch[:, 2:, :3], image[:, 0:6, 21:24, 11:17])
    assert (patch[:, 2:, 3:] == 0).all()
    assert (cut(image, (-50, 0, 0), (8, 4, 6)) == 0).all()
    np.testing.assert_array_equal(pulled_in((0, 23, 14), SHAPE, (8, 40, 28)), [4, 20, 14])
    first, second = draw_overlapping(np.random.default_rng(0), (10, 12, 14), SHAPE, (20, 24, 28))
    np.testing.assert_array_equal(first, second)  # nowhere to go in an image of the patch's size


def test_the_body_is_found() -> None:
    image = np.full((1, 100, 80, 60), -1.0, np.float32)
    image[0, 20:70, 10:50, 5:55] = 1
    box = body_box(image)
    assert np.abs(np.array(box) - [[20, 70], [10, 50], [5, 55]]).max() <= 2
    assert body_box(np.zeros((1, 4, 5, 6), np.float32)) == ((0, 4), (0, 5), (0, 6))
