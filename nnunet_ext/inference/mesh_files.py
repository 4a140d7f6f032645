"""Meshes as OBJ, PLY, STL and GLB files, which say in which space their coordinates are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import trimesh
from trimesh.exchange.gltf import export_glb
from trimesh.exchange.obj import export_obj
from trimesh.exchange.ply import export_ply
from trimesh.exchange.stl import export_stl
from trimesh.visual.material import PBRMaterial

from nnunet_ext.inference.mesh import Surface

FORMATS = ("obj", "ply", "stl", "glb")
COLOURS = ("#d1495b", "#1b6ca8", "#3a7d44", "#e0a526", "#7a4fa3", "#2aa7a7", "#c76b2f", "#8a8d3f", "#c25b9b", "#5b6b7a")
STL_HEADER = 80


def colour_of(number: int) -> str:
    """A colour such as #d1495b for the number of a class or region, from 1 on; they repeat."""
    return COLOURS[(number - 1) % len(COLOURS)]


def in_space(vertices: np.ndarray, space: str) -> np.ndarray:
    """LPS millimetres (N, 3) in "LPS" or "RAS"."""
    return vertices if space == "LPS" else vertices * [-1.0, -1.0, 1.0]


def encoded(surfaces: Sequence[Surface], kind: str, space: str) -> bytes:
    """The content of a file.

    Args:
        surfaces: one; several for "glb" only.
        kind: one of `FORMATS`.
        space: "LPS" or "RAS". Written into the file as 3D Slicer does, SPACE=LPS; for GLB as an extra of the scene.
    """
    if kind == "glb":
        return _glb(surfaces, space)
    (surface,) = surfaces
    mesh = _trimesh(surface, space)
    note = f"nnunet-ext mesh, {surface.name}, mm, SPACE={space}"
    if kind == "obj":
        return str(export_obj(mesh, digits=6, header=" ".join(note.split()))).encode()
    if kind == "stl":  # a file that began with "solid" would be taken for text
        header = f"nnunet-ext mesh, mm, SPACE={space}"
        return header.encode().ljust(STL_HEADER) + bytes(export_stl(mesh))[STL_HEADER:]
    start, encoding, rest = bytes(export_ply(mesh)).split(b"\n", 2)
    comment = " ".join(note.split()).encode("ascii", "replace")
    return b"\n".join([start, encoding, b"comment " + comment, rest])


def _trimesh(surface: Surface, space: str) -> trimesh.Trimesh:
    return trimesh.Trimesh(in_space(surface.vertices, space), surface.faces, process=False)


def _glb(surfaces: Sequence[Surface], space: str) -> bytes:
    scene = trimesh.Scene(metadata={"SPACE": space, "unit": "mm"})
    for surface in surfaces:
        mesh = _trimesh(surface, space)
        colour = colour_of(surface.number)
        rgba = [*(int(colour[k : k + 2], 16) for k in (1, 3, 5)), 255]
        material = PBRMaterial(name=surface.name, baseColorFactor=rgba, metallicFactor=0.0, roughnessFactor=0.6)
        mesh.visual = trimesh.visual.TextureVisuals(material=material)
        scene.add_geometry(mesh, node_name=surface.name, geom_name=surface.name)
    return bytes(export_glb(scene))
