"""Closed surfaces in millimetres from fields that are positive inside: marching cubes, polishing, small pieces.

Fields are sampled on a `PointGrid` of an image, whose axes are in the order of its array, (D, H, W). World coordinates
are patient millimetres in LPS, as DICOM and SimpleITK have them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.sparse import csgraph
from skimage.measure import marching_cubes

from nnunet_ext.architectures.blocks.point_grid import PointGrid
from nnunet_ext.errors import UserError

PointField = Callable[[np.ndarray], np.ndarray]

LIMIT_POINTS = 2**30  # of a surface; its field and the padded copy of marching cubes take 8 GiB together
SMALLEST = 1e-3  # of a field's absolute values: vertices keep off the grid's points, where triangles would degenerate
POLISH_STEPS = 5
POLISH_REACH = 0.5  # grid steps
GRADIENT_STEP = 0.1  # grid steps
LEAST_END = 0.05  # grid steps


@dataclass(frozen=True)
class Geometry:
    """Where an image lies.

    Attributes:
        shape: voxels (D, H, W).
        affine: (4, 4), from array indices (d, h, w, 1) to LPS millimetres.
    """

    shape: tuple[int, ...]
    affine: np.ndarray

    @property
    def spacing(self) -> tuple[float, ...]:
        """Millimetres from voxel to voxel along each axis of the array."""
        return tuple(float(length) for length in np.linalg.norm(self.affine[:3, :3], axis=0))

    def to_world(self, coords: np.ndarray) -> np.ndarray:
        """LPS millimetres (N, 3) of voxel indices (N, 3)."""
        return coords @ self.affine[:3, :3].T + self.affine[:3, 3]


@dataclass(frozen=True)
class Surface:
    """A triangle mesh whose faces turn outwards.

    Attributes:
        name: of the class or region.
        number: its place among the source's classes, for its colour.
        vertices: (V, 3) float64, millimetres.
        faces: (F, 3) int64.
        pieces: separate closed pieces, cavities included.
    """

    name: str
    number: int
    vertices: np.ndarray
    faces: np.ndarray
    pieces: int

    @property
    def volume(self) -> float:
        """Enclosed cubic millimetres."""
        return float(signed_volumes(self.vertices, self.faces).sum())

    @property
    def area(self) -> float:
        """Square millimetres."""
        return float(np.linalg.norm(_cross(self.vertices, self.faces), axis=1).sum() / 2)


def grid_of(geometry: Geometry, spacing: Sequence[float] | None) -> PointGrid:
    """Points `spacing` millimetres apart along the array's axes, centred in the image and covering all of it.

    Args:
        geometry: the image.
        spacing: of (D, H, W); None for the voxel centres themselves.
    """
    if spacing is None:
        return PointGrid.of_voxels(geometry.shape)
    scale = tuple(wanted / own for wanted, own in zip(spacing, geometry.spacing, strict=True))
    shape = tuple(max(1, int(np.ceil(n / s - 1e-4))) for n, s in zip(geometry.shape, scale, strict=True))
    offset = tuple((n - 1 - (k - 1) * s) / 2 for n, k, s in zip(geometry.shape, shape, scale, strict=True))
    return PointGrid(shape, scale, offset)


def check_size(grid: PointGrid, name: str) -> None:
    """Raise a UserError if a surface's part of the grid is more than can be held in memory."""
    points = int(np.prod([float(n) for n in grid.shape]))
    if points > LIMIT_POINTS:
        raise UserError(
            f"{name} would need {' x '.join(map(str, grid.shape))} points, and at most {LIMIT_POINTS} are computed at "
            "once; give a larger --spacing"
        )


def surface_of(
    values: np.ndarray,
    grid: PointGrid,
    geometry: Geometry,
    *,
    name: str,
    number: int = 1,
    polish: PointField | None = None,
    min_volume: float = 0.0,
) -> Surface | None:
    """The surface on which a field is zero.

    Where the inside touches the grid's end, the surface is closed at the outer faces of the image's voxels, or half a
    step beyond the last points where those are farther.

    Args:
        values: the field at the grid's points, positive inside; finite.
        grid: the points, in voxel indices of the image.
        geometry: of the image.
        name: for the result.
        number: for the result.
        polish: the field at any voxel indices (N, 3); vertices are then moved onto its own zeros.
        min_volume: pieces that enclose fewer cubic millimetres are left out, and cavities as small are filled.

    Returns:
        None if nothing is inside, or only pieces that are too small.
    """
    if not (values > 0).any():
        return None
    index, faces = closed_marching_cubes(values, ends_of(grid, geometry))
    if polish is not None:
        free = ((index > 0) & (index < np.array(grid.shape) - 1)).all(1)  # not those that close it at the grid's end
        index[free] = polished(index[free], polish, grid, geometry)
    vertices = geometry.to_world(np.array(grid.offset) + np.array(grid.scale) * index)
    if np.linalg.det(geometry.affine[:3, :3]) < 0:
        faces = faces[:, ::-1]
    vertices, faces, pieces = without_small(vertices, faces, min_volume)
    return Surface(name, number, vertices, faces, pieces) if pieces else None


def ends_of(grid: PointGrid, geometry: Geometry) -> list[tuple[float, float]]:
    """Grid steps from the first and the last point of each axis to where the image ends, at most a half."""
    found = []
    for n, count, scale, offset in zip(geometry.shape, grid.shape, grid.scale, grid.offset, strict=True):
        before, after = (offset + 0.5) / scale, (n - 0.5 - offset - scale * (count - 1)) / scale
        found.append((min(max(before, LEAST_END), 0.5), min(max(after, LEAST_END), 0.5)))
    return found


def closed_marching_cubes(values: np.ndarray, ends: Sequence[tuple[float, float]]) -> tuple[np.ndarray, np.ndarray]:
    """Vertices in indices of the values, float64, and faces that turn outwards in a right-handed space.

    Args:
        values: positive inside.
        ends: of each axis, how many steps before the first and after the last point the inside ends at most.
    """
    padded = np.pad(values.astype(np.float32, copy=False), 1, mode="edge")
    small = (padded < SMALLEST) & (padded > -SMALLEST)
    padded[small] = np.where(padded[small] > 0, SMALLEST, -SMALLEST)
    for axis, steps in enumerate(ends):
        for end, step in zip((0, -1), steps, strict=True):
            side = np.moveaxis(padded, axis, 0)[end]
            side[side > 0] *= (step - 1) / step  # a line between both values is zero there
    vertices, faces, _, _ = marching_cubes(padded, 0.0, gradient_direction="ascent")
    return vertices.astype(np.float64) - 1, faces.astype(np.int64)


def polished(index: np.ndarray, field: PointField, grid: PointGrid, geometry: Geometry) -> np.ndarray:
    """Vertices moved along the field's gradient towards its zeros, by at most half a grid step along any axis.

    One gradient a vertex by central differences, then secant steps along it; of the points tried, the best is kept.

    Args:
        index: (N, 3) vertices in grid indices.
        field: of voxel indices (M, 3).
        grid: the grid.
        geometry: of the image; the gradient is that in millimetres.
    """

    def at(points: np.ndarray) -> np.ndarray:
        return field(np.array(grid.offset) + np.array(grid.scale) * points).astype(np.float64)

    steps = np.eye(3) * GRADIENT_STEP
    gradient = np.stack([(at(index + step) - at(index - step)) / (2 * GRADIENT_STEP) for step in steps], 1)
    direction = gradient / (np.array(grid.scale) * np.array(geometry.spacing)) ** 2
    direction /= np.maximum(np.abs(direction).max(1, keepdims=True), 1e-30)
    slope = (gradient * direction).sum(1)
    before, value_before = np.zeros(len(index)), at(index)
    best, value_best = before.copy(), np.abs(value_before)
    now = _reached(-value_before, slope)
    for step in range(POLISH_STEPS):
        value = at(index + now[:, None] * direction)
        better = np.abs(value) < value_best
        best[better], value_best[better] = now[better], np.abs(value[better])
        if step + 1 < POLISH_STEPS:
            following = now + _reached(-value * (now - before), value - value_before)
            before, value_before, now = now, value, np.clip(following, -POLISH_REACH, POLISH_REACH)
    return index + best[:, None] * direction


def _reached(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """The quotient within the reach; zero where there is none."""
    usable = np.abs(denominator) > 1e-12
    quotient = np.divide(numerator, denominator, out=np.zeros_like(numerator), where=usable)
    return np.clip(quotient, -POLISH_REACH, POLISH_REACH)


def without_small(vertices: np.ndarray, faces: np.ndarray, min_volume: float) -> tuple[np.ndarray, np.ndarray, int]:
    """Vertices and faces of the pieces that enclose at least so many cubic millimetres, and how many they are."""
    n, corners = len(vertices), faces[:, [0, 1]]
    links = np.concatenate([corners, faces[:, [1, 2]]])
    graph = sparse.coo_matrix((np.ones(len(links), np.int8), (links[:, 0], links[:, 1])), shape=(n, n))
    count, piece = csgraph.connected_components(graph, directed=False)
    piece_of_face = piece[faces[:, 0]]
    volumes = np.abs(np.bincount(piece_of_face, signed_volumes(vertices, faces), minlength=count))
    occurs = np.bincount(piece_of_face, minlength=count) > 0
    kept = occurs & (volumes >= min_volume)
    faces = faces[kept[piece_of_face]]
    used, renumbered = np.unique(faces, return_inverse=True)
    return vertices[used], renumbered.reshape(faces.shape), int(kept.sum())


def _cross(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    a, b, c = (vertices[faces[:, corner]] for corner in range(3))
    return np.cross(b - a, c - a)


def signed_volumes(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Of the tetrahedra between each face and the vertices' centre; their sum is what closed surfaces enclose."""
    centred = vertices - vertices.mean(0) if len(vertices) else vertices
    return (centred[faces[:, 0]] * _cross(centred, faces)).sum(1) / 6
