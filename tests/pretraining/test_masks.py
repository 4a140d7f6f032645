"""Blocks of a mask: about cubes in millimetres, divisors of the patch; and as many hidden as the ratio says."""

from __future__ import annotations

import numpy as np
import pytest

from nnunet_ext.pretraining.masks import draw_hidden, mask_block, mask_grid


@pytest.mark.parametrize(
    ("patch", "spacing", "stride", "block"),
    [
        ((128, 128, 128), (1.0, 1.0, 1.0), (32, 32, 32), (16, 16, 16)),
        ((64, 64, 64), (1.0, 1.0, 1.0), (16, 16, 16), (16, 16, 16)),
        ((32, 32, 32), (1.0, 1.0, 1.0), (8, 8, 8), (8, 8, 8)),  # four blocks an axis
        ((40, 224, 192), (5.0, 0.8, 0.8), (8, 32, 32), (2, 16, 16)),
        ((48, 192, 192), (3.0, 1.0, 1.0), (8, 32, 32), (8, 16, 16)),
        ((64, 160, 160), (1.5, 1.0, 1.0), (16, 32, 32), (16, 16, 16)),
        ((56, 160, 112), (1.0, 1.0, 1.0), (8, 32, 16), (8, 16, 16)),
        ((14, 256, 256), (10.0, 1.0, 1.0), (2, 64, 64), (2, 16, 16)),
        ((28, 96, 96), (1.0, 1.0, 1.0), (4, 16, 16), (4, 16, 16)),
        ((3, 20, 5), (9.0, 1.0, 1.0), (1, 4, 1), (1, 4, 1)),
    ],
)
def test_blocks(
    patch: tuple[int, ...], spacing: tuple[float, ...], stride: tuple[int, ...], block: tuple[int, ...]
) -> None:
    found = mask_block(patch, spacing, stride)
    assert found == block
    for size, edge, millimetres, step in zip(patch, found, spacing, stride, strict=True):
        assert size % edge == 0
        assert size // edge >= min(4, size)
        assert edge == 1 or edge * millimetres <= 1.5 * 16 * min(spacing)
        assert edge % step == 0 or step % edge == 0
    assert mask_grid(patch, found) == tuple(np.floor_divide(patch, found))


@pytest.mark.parametrize("ratio", [0.6, 0.75])
@pytest.mark.parametrize("grid", [(4, 4, 4), (20, 14, 12), (1, 1, 2), (5, 3, 1)])
def test_the_ratio_is_kept(grid: tuple[int, ...], ratio: float) -> None:
    random = np.random.default_rng(0)
    hidden = [draw_hidden(random, grid, ratio) for _ in range(2)]
    number = int(np.prod(grid))
    assert all(h.shape == grid and h.dtype == bool for h in hidden)
    assert all(h.sum() == min(np.ceil(number * ratio), number - 1) for h in hidden)
    assert number < 20 or (hidden[0] != hidden[1]).any()
    assert (draw_hidden(np.random.default_rng(0), grid, ratio) == hidden[0]).all()


def test_tubes_run_along_an_axis() -> None:
    hidden = draw_hidden(np.random.default_rng(0), (5, 4, 4), 0.75, "tube")
    assert (hidden == hidden[:1]).all()
    assert hidden[0].sum() == 12
    hidden = draw_hidden(np.random.default_rng(0), (5, 4, 3), 0.75, "tube", tube_axis=2)
    assert (hidden == hidden[..., :1]).all()
    assert hidden[..., 0].sum() == 15


@pytest.mark.parametrize(("ratio", "style"), [(0.0, "blocks"), (1.0, "blocks"), (0.5, "stripes")])
def test_wrong_masks_are_refused(ratio: float, style: str) -> None:
    with pytest.raises(ValueError, match="a ratio between 0 and 1 and a style"):
        draw_hidden(np.random.default_rng(0), (4, 4, 4), ratio, style)  # type: ignore[arg-type]
