"""Grids along the patient's axes: the same samples however a volume is stored, and every axis with its own spacing."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch
from made_volumes import smooth_volume, stored_otherwise

from nnunet_ext.pretraining.embedding_grids import canonical_grid, grid_around, minima, positions, sample, strided
from nnunet_ext.pretraining.frames import Frame

FRAME = Frame.regular((12, 16, 20), (3.0, 1.5, 1.0), (-7.0, 30.0, 500.0))
STORED = [((0, 1, 2), (1, 2)), ((2, 0, 1), ()), ((1, 2, 0), (0, 2)), ((2, 1, 0), (0, 1, 2))]


def coordinates(frame: Frame) -> np.ndarray:
    """LPS coordinates as an image of three channels."""
    return np.moveaxis(positions(frame), -1, 0).astype(np.float32)


@pytest.mark.parametrize(("axes", "mirrored"), STORED)
def test_the_same_grid_and_samples_however_it_is_stored(axes: tuple[int, ...], mirrored: tuple[int, ...]) -> None:
    image = smooth_volume(0, FRAME.shape)
    other = stored_otherwise(image, FRAME, axes, mirrored)
    grid, again = canonical_grid(FRAME, 2.0), canonical_grid(other.frame, 2.0)
    assert grid.shape == again.shape == (18, 12, 10)
    np.testing.assert_allclose(grid.matrix, again.matrix, atol=1e-9)
    np.testing.assert_allclose(grid.matrix[:3, :3], 2 * np.eye(3)[::-1])  # rising to superior, posterior, left
    outside = minima(image)
    first, second = sample(image, FRAME, grid, outside), sample(other.image(), other.frame, again, outside)
    torch.testing.assert_close(first, second, atol=1e-4, rtol=0)


@pytest.mark.parametrize("axes", list(permutations(range(3))))
@pytest.mark.parametrize("smooth", [False, True])
def test_every_axis_has_its_own_spacing(axes: tuple[int, ...], smooth: bool) -> None:
    """Defect 6.2.12 of the published code: the spacing was not permuted with the axes."""
    other = stored_otherwise(coordinates(FRAME), FRAME, axes, (1,))
    grid = grid_around(FRAME.to_lps([6, 8, 10]), np.eye(3)[::-1], 1.7, (5, 3, 3))
    sampled = sample(other.image(), other.frame, grid, torch.zeros(3), smooth=smooth)
    np.testing.assert_allclose(sampled.numpy(), coordinates(grid), atol=2e-2)


def test_oblique_volumes_keep_their_own_axes() -> None:
    turn = np.array([[0.96, -0.28, 0], [0.28, 0.96, 0], [0, 0, 1]])
    matrix = FRAME.matrix.copy()
    matrix[:3, :3] = turn @ matrix[:3, :3]
    grid = canonical_grid(Frame(FRAME.shape, matrix), 1.0)
    assert grid.shape == (36, 24, 20)
    np.testing.assert_allclose(grid.matrix[:3, :3], turn @ np.eye(3)[::-1])


def test_only_the_needed_part_is_read() -> None:
    image = smooth_volume(1, FRAME.shape)

    class Watched:
        shape = image.shape
        read = 0

        def __getitem__(self, box: tuple[slice, ...]) -> np.ndarray:
            part = image[box]
            self.read += part.size
            return part

    watched = Watched()
    grid = grid_around(FRAME.to_lps([6, 8, 10]), np.eye(3)[::-1], 1.0, (3, 3, 3))
    part = sample(watched, FRAME, grid, torch.zeros(1))
    assert 0 < watched.read < image.size / 2
    torch.testing.assert_close(part, sample(image, FRAME, grid, torch.zeros(1)))


def test_outside_has_the_given_value() -> None:
    image = smooth_volume(1, FRAME.shape)
    beside = grid_around(FRAME.to_lps([60, 8, 10]), np.eye(3)[::-1], 1.0, (3, 3, 3))
    assert sample(image, FRAME, beside, torch.tensor([-5.0])).unique().tolist() == [-5.0]


def test_blocks_of_voxels() -> None:
    blocks = strided(FRAME, (4, 3, 2))
    assert blocks.shape == (3, 6, 10)
    np.testing.assert_allclose(blocks.to_lps([0, 0, 0]), FRAME.to_lps([1.5, 1, 0.5]))
    np.testing.assert_allclose(blocks.to_lps([2, 1, 1]), FRAME.to_lps([9.5, 4, 2.5]))
