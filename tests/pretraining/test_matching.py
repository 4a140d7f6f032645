"""Matching by embeddings: a few slices at a time as well as at once, in millimetres, and there and back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from nnunet_ext.architectures.anatomical_embedding import Embedding, upsampled
from nnunet_ext.pretraining import matching
from nnunet_ext.pretraining.frames import Frame
from nnunet_ext.pretraining.matching import Maps, best_cells, coarse_slices, match, vectors_at


def unit(seed: int, *shape: int) -> Tensor:
    return F.normalize(torch.randn(1, *shape, generator=torch.Generator().manual_seed(seed)), dim=1)


def made_maps(seed: int = 0, semantic: bool = False) -> Maps:
    """Maps of 6 x 10 x 8 cells, 4 mm each."""
    extra = unit(seed + 9, 8, 6, 10, 8) if semantic else None
    embedding = Embedding(unit(seed, 8, 6, 10, 8), unit(seed + 1, 8, 3, 5, 4), extra)
    return Maps(embedding, Frame.regular((6, 10, 8), (4.0, 4.0, 4.0), (-5.0, 20.0, 100.0)))


def naive(query: Embedding, key: Embedding, cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The whole similarity volume at once (specification alice 1.3)."""
    parts = [(a, b) for a, b in zip(query, key, strict=True) if a is not None and b is not None]
    total = torch.zeros(len(cells), key.fine[0, 0].numel())
    for ours, theirs in parts:
        size = query.fine.shape[2:], key.fine.shape[2:]
        a, b = (
            each if each.shape[2:] == s else upsampled(each, s) for each, s in zip((ours, theirs), size, strict=True)
        )
        z, y, x = cells.T
        total += a[0, :, z, y, x].T @ b[0].flatten(1) / len(parts)
    best = total.max(dim=1)
    return np.stack(np.unravel_index(best.indices.numpy(), key.fine.shape[2:]), 1), best.values.numpy()


@pytest.mark.parametrize("most", [1, 2000, 1 << 24])
@pytest.mark.parametrize("semantic", [False, True])
def test_in_parts_as_at_once(most: int, semantic: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matching, "MOST_NUMBERS", most)
    monkeypatch.setattr(matching, "_POINTS_AT_ONCE", 3)
    query, key = made_maps(0, semantic).embedding, made_maps(50, semantic).embedding
    cells = np.argwhere(np.random.default_rng(0).random((6, 10, 8)) < 0.05)
    cells = cells[::-1].copy()  # not in raster order
    found, scores = best_cells(vectors_at(query, cells), key)
    expected, values = naive(query, key, cells)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(scores, values, atol=1e-6)


def test_slices_of_the_coarse_map() -> None:
    coarse, size = unit(3, 4, 3, 2, 5), torch.Size((8, 5, 9))
    expected = upsampled(coarse, size)[0]
    torch.testing.assert_close(coarse_slices(coarse, size, 0, 8), expected)
    torch.testing.assert_close(coarse_slices(coarse, size, 3, 6), expected[:, 3:6])


def test_the_first_of_equals_in_raster_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matching, "MOST_NUMBERS", 1)
    ones = Embedding(torch.ones(1, 1, 3, 2, 2), torch.ones(1, 1, 1, 1, 1))
    ones.fine[0, 0, 0] = -1
    found, _ = best_cells([torch.ones(1, 1), torch.ones(1, 1)], ones)
    assert found.tolist() == [[1, 0, 0]]


def test_points_find_themselves() -> None:
    maps = made_maps(semantic=True)
    cells = np.array([[0, 0, 0], [5, 9, 7], [2, 3, 4]])
    outside = np.array([[np.nan] * 3, [1000.0, 0.0, 0.0]])
    points = np.concatenate([maps.frame.to_lps(cells + 0.3), outside])
    found = match(maps, maps, points, cycle=True, refine=False)
    np.testing.assert_allclose(found.points[:3], maps.frame.to_lps(cells))
    np.testing.assert_allclose(found.scores[:3], 1, atol=1e-6)
    assert found.cycle is not None
    np.testing.assert_allclose(found.cycle[:3], np.sqrt(3) * 1.2)
    assert np.isnan(found.points[3:]).all()
    assert np.isnan(found.scores[3:]).all()
    assert np.isnan(found.cycle[3:]).all()
    assert len(match(maps, maps, np.zeros((0, 3))).points) == 0


def test_refined_between_cells() -> None:
    """Vectors that turn as one goes along x: the top is found between cells, and the point's own place in its cell."""
    angle = np.arange(8)[None, None, :] * 0.1 * np.ones((6, 4, 1))

    def turned(by: float) -> Maps:
        vectors = torch.from_numpy(np.stack([np.cos(angle + by), np.sin(angle + by)])[None].astype(np.float32))
        frame = Frame.regular((6, 4, 8), (4.0, 4.0, 4.0), (0.0, 0.0, 0.0))
        return Maps(Embedding(vectors, torch.ones(1, 2, 1, 1, 1)), frame)

    query, key = turned(0.0), turned(0.03)
    point = query.frame.to_lps(np.array([[0.2, 0, 4.1]]))
    found = match(query, key, point)
    np.testing.assert_allclose(found.points[0, 0], (4.1 - 0.3) * 4, atol=0.02)  # x
    np.testing.assert_allclose(found.points[0, 2], 0.2 * 4, atol=1e-6)  # z: all alike, the first one
    border = match(query, key, query.frame.to_lps(np.array([[0, 0, 0.0]])))
    np.testing.assert_allclose(border.points[0], 0, atol=1e-6)


def test_padding_is_not_searched() -> None:
    maps = made_maps()
    smaller = Maps(maps.embedding, Frame((6, 10, 7), maps.frame.matrix))
    point = maps.frame.to_lps(np.array([[2, 3, 7]]))
    found = match(maps, smaller, point, refine=False)
    assert smaller.frame.to_index(found.points)[0, 2] < 6.5
    assert found.scores[0] < 0.999


def test_half_precision_is_enough() -> None:
    maps = made_maps()
    half = Maps(Embedding(maps.embedding.fine.half(), maps.embedding.coarse.half()), maps.frame)
    points = maps.frame.to_lps(np.array([[2, 3, 4], [1, 1, 1]]))
    np.testing.assert_allclose(match(maps, half, points, refine=False).points, points)
    np.testing.assert_allclose(match(half, maps, points).scores, 1, atol=1e-3)


def test_different_networks_are_refused() -> None:
    maps = made_maps()
    other = Maps(Embedding(unit(0, 4, 6, 10, 8), unit(1, 4, 3, 5, 4)), maps.frame)
    with pytest.raises(ValueError, match=r"different networks: vectors of \[8, 8\] and of \[4, 4\]"):
        match(maps, other, maps.frame.to_lps(np.zeros((1, 3))))
