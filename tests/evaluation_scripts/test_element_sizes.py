"""Surface elements of pictures: which cells, and how long; by hand, for pixels of 3 mm by 4 mm."""

from __future__ import annotations

import numpy as np
import pytest

from nnunet_ext.evaluation_scripts.element_sizes import element_sizes
from nnunet_ext.evaluation_scripts.surfaces import Elements

CORNER = 2.5  # from the middle of one edge to that of the next: 1.5 mm down and 2 mm across
VERTICAL, HORIZONTAL = 3.0, 4.0


def lengths(labels: list[list[int]]) -> dict[tuple[int, int], float]:
    """Cell (y, x) -> length; the cell (0, 0) lies above and left of the first pixel, half of it outside."""
    elements = Elements(np.array(labels, np.uint8), (VERTICAL, HORIZONTAL))
    cells, sizes = elements.of([1])
    rows, columns = np.unravel_index(cells, elements.shape)
    return {(int(y), int(x)): float(size) for y, x, size in zip(rows, columns, sizes, strict=True)}


def test_one_pixel_is_a_rhombus() -> None:
    assert lengths([[1]]) == {(0, 0): CORNER, (0, 1): CORNER, (1, 0): CORNER, (1, 1): CORNER}


def test_a_block_has_straight_edges() -> None:
    found = lengths([[1, 1], [1, 1]])
    corners = dict.fromkeys([(0, 0), (0, 2), (2, 0), (2, 2)], CORNER)
    assert found == {**corners, **dict.fromkeys([(0, 1), (2, 1)], HORIZONTAL), (1, 0): VERTICAL, (1, 2): VERTICAL}


@pytest.mark.parametrize("flipped", [False, True])
def test_pixels_that_touch_at_a_corner_are_two_rhombi(flipped: bool) -> None:
    """The cell in the middle cuts off two corners that lie across from each other: it counts both."""
    found = lengths([[0, 1], [1, 0]] if flipped else [[1, 0], [0, 1]])
    assert found.pop((1, 1)) == 2 * CORNER
    assert len(found) == 6
    assert set(found.values()) == {CORNER}


def test_every_code() -> None:
    sizes = element_sizes((VERTICAL, HORIZONTAL))
    c, v, h = CORNER, VERTICAL, HORIZONTAL
    assert sizes.tolist() == [0, c, c, h, c, v, 2 * c, c, c, 2 * c, v, c, h, c, c, 0]
    with pytest.raises(ValueError, match="2 and 3 axes"):
        element_sizes((1.0,))
