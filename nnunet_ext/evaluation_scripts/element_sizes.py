"""How large a surface element is: area in 3D, length in 2D, for each of the ways in which its corners can be in or out.

A cell's corners, in the order of their indices (z slowest), are the bits of its code, the first corner the highest.
Marching cubes puts triangles into the cell; the table holds, in eighths, the size of the components of each triangle's
normal for a spacing of 1. It has the values of DeepMind's ``surface_distance`` (Apache-2.0, see NOTICE), in which a
code and the one with in and out exchanged are alike; signs do not matter for an area.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

_TRIANGLES = """
-, 111, 111, 220+220, 111, 202+202, 111+111, 111+222+400, 111, 111+111, 202+202, 111+222+400, 220+220,
111+222+400, 111+222+400, 400+400, 111, 022+022, 111+111, 040+111+222, 111+111, 004+111+222, 111+111+111,
111+111+222+222, 111+111, 022+022+111, 111+202+202, 022+111+202+333, 111+220+220, 022+111+220+333,
111+111+222+400, 111+222+400, 111, 111+111, 022+022, 040+111+222, 111+111, 111+202+202, 022+022+111,
022+111+202+333, 111+111, 111+111+111, 004+111+222, 111+111+222+222, 111+220+220, 111+111+222+400,
022+111+220+333, 111+222+400, 220+220, 040+111+222, 040+111+222, 040+040, 111+220+220, 111+202+220+333,
040+111+111+222, 040+111+222, 111+220+220, 040+111+111+222, 111+202+220+333, 040+111+222, 220+220+220+220,
111+220+220, 111+220+220, 220+220, 111, 111+111, 111+111, 111+220+220, 022+022, 004+111+222, 022+022+111,
022+111+220+333, 111+111, 111+111+111, 111+202+202, 111+111+222+400, 040+111+222, 111+111+222+222,
022+111+202+333, 111+222+400, 202+202, 004+111+222, 111+202+202, 111+202+220+333, 004+111+222, 004+004,
004+111+111+222, 004+111+222, 111+202+202, 004+111+111+222, 202+202+202+202, 111+202+202, 111+202+220+333,
004+111+222, 111+202+202, 202+202, 111+111, 111+111+111, 022+022+111, 040+111+111+222, 022+022+111,
004+111+111+222, 022+022+022+022, 022+022+111, 111+111+111, 111+111+111+111, 004+111+111+222, 111+111+111,
040+111+111+222, 111+111+111, 022+022+111, 111+111, 111+222+400, 111+111+222+222, 022+111+202+333,
040+111+222, 022+111+220+333, 004+111+222, 022+022+111, 022+022, 111+111+222+400, 111+111+111, 111+202+202,
111+111, 111+220+220, 111+111, 111+111, 111
"""
"""Codes 0 to 127: triangles joined by +, each three digits (z, y, x)."""


def element_sizes(spacing: Sequence[float]) -> np.ndarray:
    """The size of the surface element of each code.

    Args:
        spacing: millimetres along (z, y, x) or (y, x).

    Returns:
        256 areas in mm², or 16 lengths in mm.

    Raises:
        ValueError: another number of axes.
    """
    if len(spacing) == 3:
        return _areas(tuple(float(edge) for edge in spacing))
    if len(spacing) == 2:
        return _lengths(float(spacing[0]), float(spacing[1]))
    raise ValueError(f"surfaces exist for 2 and 3 axes; got a spacing of {len(spacing)}")


@lru_cache(maxsize=16)
def _areas(spacing: tuple[float, ...]) -> np.ndarray:
    z, y, x = spacing
    scale = np.array([y * x, z * x, z * y]) / 8
    areas = []
    for triangles in _TRIANGLES.replace("\n", " ").split(", "):
        normals = [
            [int(digit) for digit in normal] for normal in triangles.strip().replace("-", "").split("+") if normal
        ]
        areas.append(sum(math.hypot(*(np.array(normal) * scale)) for normal in normals))
    return np.array(areas + areas[::-1])


def _lengths(vertical: float, horizontal: float) -> np.ndarray:
    """Corners in the order (0, 0), (0, 1), (1, 0), (1, 1): one corner is cut off, or the cell is halved."""
    diagonal = math.hypot(vertical, horizontal) / 2
    sizes = np.full(16, diagonal)
    sizes[[0, 15]] = 0
    sizes[[0b0011, 0b1100]] = horizontal
    sizes[[0b0101, 0b1010]] = vertical
    sizes[[0b0110, 0b1001]] = 2 * diagonal
    return sizes
