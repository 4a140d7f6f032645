"""Surfaces as a picture to look at: from the front, the left and below, with axes in millimetres."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from nnunet_ext.inference.mesh import Surface
from nnunet_ext.inference.mesh_files import colour_of, in_space

LIGHT = np.array([0.35, 0.45, 0.82])  # to the right, up, towards the viewer
SEE_THROUGH = 0.6
MANY_FACES = 40_000
CELLS = 160  # along the longest edge
LETTERS = ("RL", "AP", "IS")  # at the lower and the higher end of LPS axes


@dataclass(frozen=True)
class View:
    """Directions in LPS, each as an axis and its sign."""

    title: str
    right: tuple[int, int]
    up: tuple[int, int]
    viewer: tuple[int, int]


VIEWS = (
    View("from the front", (0, 1), (2, 1), (1, -1)),
    View("from the left", (1, 1), (2, 1), (0, 1)),
    View("from below", (0, 1), (1, -1), (2, -1)),
)


def picture(surfaces: Sequence[Surface], title: str, space: str) -> bytes:
    """A PNG of the surfaces; one that surrounds another is see-through.

    Args:
        surfaces: vertices in LPS.
        title: above the picture.
        space: "LPS" or "RAS", of the numbers at the axes.
    """
    figure = Figure(figsize=(13.5, 5.2), facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    surfaces = [_coarsened(surface) for surface in surfaces]
    low = np.min([surface.vertices.min(0) for surface in surfaces], axis=0)
    high = np.max([surface.vertices.max(0) for surface in surfaces], axis=0)
    through = [one for one in surfaces if any(_surrounds(one, other) for other in surfaces if other is not one)]
    layers = [[one for one in surfaces if one not in through], *([one] for one in sorted(through, key=_extent))]
    for view, axes in zip(VIEWS, figure.subplots(1, len(VIEWS)), strict=True):
        for depth, layer in enumerate(layer for layer in layers if layer):
            drawn = _shaded(layer, view, space)
            drawn.set_zorder(3 + depth)
            drawn.set_in_layout(False)  # which would measure every triangle
            if layer[0] in through:
                drawn.set_agg_filter(_see_through)
            axes.add_collection(drawn)
        _frame(axes, view, space, low, high)
    named = [Patch(color=colour_of(surface.number), label=surface.name) for surface in surfaces]
    figure.legend(handles=named, loc="outside lower center", ncols=min(len(named), 8), frameon=False)
    figure.suptitle(title, fontsize=11)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110)
    return content.getvalue()


def _coarsened(surface: Surface) -> Surface:
    """With one vertex in each cell that is about as large as a pixel; so that large surfaces are drawn soon enough."""
    if len(surface.faces) <= MANY_FACES:
        return surface
    low = surface.vertices.min(0)
    cells = np.floor((surface.vertices - low) / (np.ptp(surface.vertices, axis=0).max() / CELLS)).astype(np.int64)
    _, cell = np.unique(cells @ [1, 2 * CELLS, 4 * CELLS**2], return_inverse=True)
    number = np.bincount(cell)
    vertices = np.stack([np.bincount(cell, surface.vertices[:, axis]) / number for axis in range(3)], 1)
    faces = cell[surface.faces]
    distinct = (faces != np.roll(faces, 1, axis=1)).all(1)
    return Surface(surface.name, surface.number, vertices, faces[distinct], surface.pieces)


def _shaded(surfaces: Sequence[Surface], view: View, space: str) -> PolyCollection:
    """All triangles that turn to the viewer, the farthest first."""
    triangles, colours, depths = [], [], []
    for surface in surfaces:
        corners = surface.vertices[surface.faces]
        normals = _smooth_normals(surface)
        facing = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        towards = facing[:, view.viewer[0]] * view.viewer[1] > 0
        corners, normals = corners[towards], normals[towards]
        directions = np.stack([normals[:, axis] * sign for axis, sign in (view.right, view.up, view.viewer)], 1)
        shade = 0.45 + 0.55 * np.clip(directions @ (LIGHT / np.linalg.norm(LIGHT)), 0, 1)
        colours.append(shade[:, None] * np.array(to_rgb(colour_of(surface.number))))
        depths.append(corners[:, :, view.viewer[0]].mean(1) * view.viewer[1])
        shown = in_space(corners.reshape(-1, 3), space).reshape(corners.shape)
        triangles.append(shown[:, :, [view.right[0], view.up[0]]])
    order = np.argsort(np.concatenate(depths), kind="stable")
    faces = np.concatenate(colours)[order]
    polygons: Any = np.concatenate(triangles)[order]
    return PolyCollection(polygons, facecolors=faces, edgecolors=faces, linewidths=0.6)


def _see_through(image: Any, dpi: float) -> tuple[np.ndarray, float, float]:
    """What was drawn, as a whole and not triangle by triangle, with less opacity."""
    return image * [1.0, 1.0, 1.0, SEE_THROUGH], 0.0, 0.0


def _smooth_normals(surface: Surface) -> np.ndarray:
    """Of each face, the mean of its vertices' normals, (F, 3)."""
    corners = surface.vertices[surface.faces]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    at_vertices: np.ndarray = np.stack(
        [
            np.bincount(surface.faces.ravel(), np.repeat(normals[:, axis], 3), minlength=len(surface.vertices))
            for axis in range(3)
        ],
        1,
    )
    at_vertices = at_vertices / np.maximum(np.linalg.norm(at_vertices, axis=1, keepdims=True), 1e-12)
    found: np.ndarray = at_vertices[surface.faces].mean(1)
    return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)


def _surrounds(outer: Surface, inner: Surface) -> bool:
    """By their boxes."""
    low, high = outer.vertices.min(0), outer.vertices.max(0)
    return bool((low <= inner.vertices.min(0)).all() and (high >= inner.vertices.max(0)).all())


def _extent(surface: Surface) -> float:
    return float(np.prod(np.ptp(surface.vertices, axis=0)))


def _frame(axes: Any, view: View, space: str, low: np.ndarray, high: np.ndarray) -> None:
    """Equal millimetres along both axes, a margin, and the patient's sides in their names."""
    flip = in_space(np.ones((1, 3)), space)[0]
    reach = 0.05 * float((high - low).max())
    limits = []
    for axis, sign in (view.right, view.up):
        ends = np.array([low[axis] - reach, high[axis] + reach])[::sign]
        limits.append(ends * flip[axis])
    axes.set_xlim(*limits[0])
    axes.set_ylim(*limits[1])
    axes.set_aspect("equal")
    letters = [LETTERS[axis][::sign] for axis, sign in (view.right, view.up)]
    axes.set_xlabel(f"{letters[0][0]} to {letters[0][1]}, {space} mm")
    axes.set_ylabel(f"{letters[1][0]} to {letters[1][1]}, {space} mm")
    axes.set_title(view.title, fontsize=10)
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
