"""Surfaces of known shapes: where they lie, what they enclose, and in which space they are written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mesh_shapes
import nibabel
import numpy as np
import pytest
import trimesh
from matplotlib.figure import Figure
from mesh_shapes import Oblique

from nnunet_ext.architectures.blocks.point_grid import PointGrid
from nnunet_ext.errors import UserError
from nnunet_ext.inference import mesh, mesh_picture, mesh_sources
from nnunet_ext.inference.mesh import Geometry, Surface, grid_of, polished, surface_of
from nnunet_ext.inference.mesh_files import encoded, in_space
from nnunet_ext.inference.mesh_images import geometry_of_properties, itk_affine, read_image, reoriented_geometry
from nnunet_ext.inference.mesh_labels import Target, numbered
from nnunet_ext.inference.mesh_picture import picture
from nnunet_ext.inference.mesh_smoothing import smoothed
from nnunet_ext.inference.mesh_sources import LabelMap, Probabilities, Source
from nnunet_ext.whole_files import write_whole

CUBE = Geometry((24, 24, 24), np.eye(4))


def made(source: Source, spacing: tuple[float, ...] | None = None, min_volume: float = 0) -> dict[str, Surface]:
    """All surfaces of a source, by name."""
    grid = grid_of(source.geometry, spacing)
    boxes = source.boxes(source.targets, grid)
    found = {}
    for target, values in source.fields(boxes, grid):
        part = grid.brick(*boxes[target])
        surface = surface_of(
            values, part, source.geometry, name=target.name, number=target.number, min_volume=min_volume
        )
        if surface is not None:
            found[target.name] = surface
    return found


def geometry_of(shape: Oblique) -> Geometry:
    return Geometry(shape.size[::-1], itk_affine(shape.spacing, mesh_shapes.ORIGIN, shape.direction))


def source_of(shape: Oblique, kind: str) -> Source:
    if kind == "labels":
        return LabelMap("case", shape.labels(), geometry_of(shape))
    return Probabilities("case", shape.probabilities()[None], geometry_of(shape), [Target("label1", (0,), 1)], True)


def as_trimesh(surface: Surface) -> trimesh.Trimesh:
    return trimesh.Trimesh(surface.vertices, surface.faces, process=False)


def ball(centre: tuple[float, float, float], radius: float, edge: int = 24) -> np.ndarray:
    index = np.stack(np.meshgrid(*[np.arange(edge)] * 3, indexing="ij"), -1)
    return np.linalg.norm(index - np.array(centre), axis=-1) < radius


# ------------------------------------------------------------------------------------------------- the known ellipsoid


@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize("spacing", [None, (0.5, 0.5, 0.5), (0.9, 0.4, 1.1)])
@pytest.mark.parametrize(("kind", "mean", "most"), [("labels", 0.13, 0.5), ("probabilities", 0.02, 0.06)])
def test_an_ellipsoid_in_an_oblique_image(
    kind: str, mean: float, most: float, spacing: tuple[float, ...] | None, flipped: bool
) -> None:
    """`mean` and `most` are millimetres; voxels are 0.8 to 1.3 mm long."""
    shape = Oblique(flipped=flipped)
    surface = made(source_of(shape, kind), spacing)["label1"]
    distances = shape.distance(surface.vertices)
    assert np.sqrt((distances**2).mean()) < mean
    assert np.abs(distances).max() < most
    assert surface.volume == pytest.approx(mesh_shapes.VOLUME, rel=0.01)
    assert surface.pieces == 1
    found = as_trimesh(surface)
    assert found.is_watertight
    assert found.is_winding_consistent
    assert found.volume == pytest.approx(surface.volume)
    assert found.area == pytest.approx(surface.area)
    outward = (found.face_normals * shape.outward(found.triangles_center)).sum(1)
    assert (outward * found.area_faces).sum() / found.area > 0.97


@pytest.mark.parametrize("kind", ["labels", "probabilities"])
def test_it_is_closed_where_the_image_ends(kind: str) -> None:
    """A cuboid that reaches two sides of the image, up to the outer faces of its voxels."""
    inside = np.zeros((12, 14, 16), np.uint8)
    inside[:5, 3:9, 8:] = 1
    geometry = Geometry(inside.shape, np.diag([2.0, 1, 1, 1]))
    source: Source = LabelMap("case", inside, geometry)
    if kind == "probabilities":
        source = Probabilities("case", inside[None].astype(np.float32), geometry, [Target("label1", (0,), 1)], True)
    for spacing in (None, (0.7, 0.6, 0.35)):
        found = as_trimesh(made(source, spacing)["label1"])
        assert found.is_watertight
        assert found.bounds[0] / [2, 1, 1] == pytest.approx([-0.5, 2.5, 7.5], abs=0.2)
        assert found.bounds[1] / [2, 1, 1] == pytest.approx([4.5, 8.5, 15.5], abs=0.2)
        assert (found.bounds[0][0], found.bounds[1][2]) == pytest.approx((-1, 15.5), abs=1e-3)  # where the image ends
        assert found.volume == pytest.approx(5 * 2 * 6 * 8, rel=0.06)


@pytest.mark.parametrize("radius", [3, 5, 9])
def test_a_ball_of_voxels_keeps_its_volume_at_finer_spacing(radius: float) -> None:
    inside = ball((11.3, 12.1, 11.8), radius)
    surface = made(LabelMap("case", inside.astype(np.uint8), CUBE), (0.34, 0.34, 0.34))["label1"]
    assert surface.volume == pytest.approx(inside.sum(), rel=0.015)
    blurred = made(LabelMap("case", inside.astype(np.uint8), CUBE, smooth=2.0), (0.34, 0.34, 0.34))["label1"]
    assert blurred.volume == pytest.approx(inside.sum(), rel=0.03)


def test_without_smoothing_there_are_stairs() -> None:
    inside = np.zeros((8, 8, 8), np.uint8)
    inside[2:5, 3:6, 2:7] = 1
    surface = made(LabelMap("case", inside, Geometry(inside.shape, np.eye(4)), smooth=0))["label1"]
    assert surface.vertices.min(0) == pytest.approx([1.5, 2.5, 1.5])
    assert surface.vertices.max(0) == pytest.approx([4.5, 5.5, 6.5])


def test_what_is_thin_or_small_is_not_lost() -> None:
    inside = np.zeros((24, 24, 24), bool)
    inside[2, 2, 2] = inside[6:8, 6:8, 3:20] = inside[14:22, 14:22, 14:22] = True
    assert smoothed(inside, [0.8] * 3).above_levels[2, 2, 2] > 0
    surface = made(LabelMap("case", inside.astype(np.uint8), CUBE), (0.34, 0.34, 0.34))["label1"]
    assert surface.pieces == 3
    assert surface.volume == pytest.approx(inside.sum(), rel=0.08)


def little(kind: str) -> np.ndarray:
    inside = np.zeros((24, 24, 24), np.uint8)
    if kind == "a voxel":
        inside[10, 11, 12] = 1
    elif kind == "a corner of the image":
        inside[0, 0, 23] = 1
    elif kind == "eight voxels":
        inside[10:12, 10:12, 10:12] = 1
    elif kind == "a line":
        inside[10, 10, 2:22] = 1
    elif kind == "a sheet":
        inside[10, 3:20, 2:22] = 1
    elif kind == "noise":
        inside[2:22, 2:22, 2:22] = np.random.default_rng(0).random((20, 20, 20)) < 0.1
    return inside


@pytest.mark.parametrize("spacing", [None, 1.0, 0.7, 3.0])
@pytest.mark.parametrize("kind", ["a voxel", "a corner of the image", "eight voxels", "a line", "a sheet", "noise"])
def test_what_is_thin_or_small_keeps_its_volume_at_any_spacing(kind: str, spacing: float | None) -> None:
    """Voxels of 2 x 1 x 1.5 mm."""
    inside = little(kind)
    source = LabelMap("case", inside, Geometry(inside.shape, np.diag([2.0, 1.0, 1.5, 1.0])))
    surface = made(source, None if spacing is None else (spacing,) * 3)["label1"]
    closed_abruptly = kind == "a corner of the image" and spacing is None  # by half a voxel on three sides, or not
    assert surface.volume == pytest.approx(3 * inside.sum(dtype=int), rel=0.35 if closed_abruptly else 0.03)
    assert as_trimesh(surface).is_watertight


def test_large_grids_go_by_counted_voxels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measuring surfaces would take more memory there."""
    inside = ball((11.3, 12.1, 11.8), 7).astype(np.uint8)
    measured = made(LabelMap("case", inside, CUBE), (0.5,) * 3)["label1"]
    monkeypatch.setattr(mesh_sources, "MOST_MEASURED", 1000)
    monkeypatch.setattr(mesh_sources, "levelled", None)
    counted = made(LabelMap("case", inside, CUBE), (0.5,) * 3)["label1"]
    assert counted.volume == pytest.approx(measured.volume, rel=0.01)


# --------------------------------------------------------------------------------------------------------- small pieces


def test_small_pieces_go_by_cubic_millimetres() -> None:
    inside = ball((11, 11, 11), 8) & ~ball((11, 11, 11), 4) | ball((21, 21, 21), 2)
    source = LabelMap("case", inside.astype(np.uint8), Geometry(CUBE.shape, np.diag([2.0, 1, 0.5, 1])))
    small, hollow, whole = float(ball((21, 21, 21), 2).sum()), float(ball((11, 11, 11), 4).sum()), float(inside.sum())
    everything = made(source)["label1"]
    assert everything.pieces == 3  # the ball, its cavity, and the small one
    assert everything.volume == pytest.approx(whole, rel=0.04)
    assert small < hollow
    without = made(source, min_volume=(small + hollow) / 2)["label1"]
    assert without.pieces == 2
    assert without.volume == pytest.approx(whole - small, rel=0.04)
    filled = made(source, min_volume=hollow * 2)["label1"]
    assert filled.pieces == 1
    assert filled.volume == pytest.approx(whole - small + hollow, rel=0.04)
    assert len(np.unique(filled.faces)) == len(filled.vertices)
    assert made(source, min_volume=1e5) == {}


# ------------------------------------------------------------------------------------------------------------ polishing


def test_polishing_puts_vertices_onto_the_fields_own_zeros() -> None:
    """A field that is far from linear between points 2.5 mm apart."""
    shape = Oblique()
    geometry = geometry_of(shape)

    def field(coords: np.ndarray) -> np.ndarray:
        d = -shape.distance(shape.world(coords))
        return (np.exp(np.clip(d, -30, 6)) - 1).astype(np.float32)

    grid = grid_of(geometry, (2.5, 2.5, 2.5))
    index = np.stack(np.meshgrid(*[np.arange(n) for n in grid.shape], indexing="ij"), -1).reshape(-1, 3)
    values = field(np.array(grid.offset) + np.array(grid.scale) * index).reshape(grid.shape)
    errors = {}
    for name, polish in (("plain", None), ("polished", field)):
        surface = surface_of(values, grid, geometry, name=name, polish=polish)
        assert surface is not None
        assert as_trimesh(surface).is_watertight
        errors[name] = float(np.sqrt((shape.distance(surface.vertices) ** 2).mean()))
    assert errors["polished"] < errors["plain"] / 5
    assert errors["polished"] < 0.03


def test_polishing_reaches_half_a_step_at_most_and_never_makes_it_worse() -> None:
    grid = PointGrid((5, 5, 5), (2.0, 1.0, 1.0), (0.0, 0.0, 0.0))
    start = np.array([[1.0, 2.0, 2.0], [2.0, 2.0, 2.0]])
    moved = polished(start, lambda x: x[:, 0] + 40.0, grid, CUBE)
    assert moved == pytest.approx(start - [0.5, 0, 0])
    flat = polished(start, lambda x: np.full(len(x), 3.0), grid, CUBE)
    assert flat == pytest.approx(start)
    many = np.random.default_rng(0).uniform(1, 3, (50, 3))

    def waves(x: np.ndarray) -> np.ndarray:
        return np.sin(17 * x).sum(1) + 3.1  # never zero

    scale = np.array(grid.scale)
    moved = polished(many, waves, grid, CUBE)
    assert (waves(moved * scale) <= waves(many * scale) + 1e-9).all()
    assert (waves(moved * scale) < waves(many * scale) - 0.01).any()


def test_polishing_moves_along_the_gradient_in_millimetres() -> None:
    geometry = Geometry((9, 9, 9), np.diag([3.0, 1.0, 0.5, 1.0]))
    grid = PointGrid((5, 5, 5), (0.5, 2.0, 2.0), (0.0, 0.0, 0.0))
    normal = np.array([2.0, -1.0, 0.5])
    start = np.array([[2.0, 2.0, 2.0]])
    at = geometry.to_world(start * grid.scale) @ normal + 0.2
    moved = polished(start, lambda x: geometry.to_world(x) @ normal - at, grid, geometry)
    step = geometry.to_world(moved * grid.scale) - geometry.to_world(start * grid.scale)
    assert step[0] == pytest.approx(0.2 * normal / (normal @ normal))


# ---------------------------------------------------------------------------------------------------------- the files


@pytest.mark.parametrize("space", ["LPS", "RAS"])
@pytest.mark.parametrize("kind", ["obj", "ply", "stl", "glb"])
def test_files_hold_the_surface_and_their_space(kind: str, space: str, tmp_path: Path) -> None:
    shape = Oblique(flipped=True)
    surface = made(source_of(shape, "labels"))["label1"]
    path = tmp_path / f"surface.{kind}"
    write_whole(path, encoded([surface], kind, space))
    assert list(tmp_path.iterdir()) == [path]
    found: Any = trimesh.load(path, force="mesh")
    assert f"SPACE={space}".encode() in path.read_bytes()[:300] or kind == "glb"
    assert found.is_watertight
    assert found.volume == pytest.approx(surface.volume, rel=1e-4)
    assert found.bounds == pytest.approx(
        as_trimesh(surface).bounds * 1.0 if space == "LPS" else _ras(surface), abs=1e-3
    )
    back = found.vertices * ([1, 1, 1] if space == "LPS" else [-1, -1, 1])
    assert np.abs(shape.distance(back)).max() < 0.5


def _ras(surface: Surface) -> np.ndarray:
    turned = in_space(surface.vertices, "RAS")
    return np.stack([turned.min(0), turned.max(0)])


def test_a_glb_has_all_surfaces_with_names_and_colours(tmp_path: Path) -> None:
    labels = ball((8, 8, 8), 4).astype(np.uint8) + 2 * ball((17, 17, 17), 4).astype(np.uint8)
    surfaces = list(made(LabelMap("case", labels, CUBE)).values())
    path = tmp_path / "all.glb"
    path.write_bytes(encoded(surfaces, "glb", "LPS"))
    scene: Any = trimesh.load(path)
    assert scene.metadata["SPACE"] == "LPS"
    assert set(scene.geometry) == {"label1", "label2"}
    colours = {tuple(one.visual.material.baseColorFactor) for one in scene.geometry.values()}
    assert len(colours) == 2
    for surface in surfaces:
        assert scene.geometry[surface.name].volume == pytest.approx(surface.volume, rel=1e-4)


def test_a_failed_write_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.ply"
    path.write_bytes(b"old")

    def full(source: object, target: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(UserError, match="No space left"):
        write_whole(path, b"new")
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"old"]


def test_the_picture_is_drawn_for_many_triangles_too(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = ball((7, 7, 7), 5, 16).astype(np.uint8) + ball((7, 7, 7), 2, 16).astype(np.uint8)
    surfaces = list(made(LabelMap("case", labels, Geometry((16, 16, 16), np.eye(4)))).values())
    fine = picture(surfaces, "case", "RAS")
    assert fine.startswith(b"\x89PNG")
    monkeypatch.setattr("nnunet_ext.inference.mesh_picture.MANY_FACES", 10)
    monkeypatch.setattr("nnunet_ext.inference.mesh_picture.CELLS", 5)
    assert len(picture(surfaces, "case", "LPS")) > 5000


@pytest.mark.parametrize("space", ["LPS", "RAS"])
def test_pictures_have_the_patients_left_on_the_right(space: str) -> None:
    """Front and from below as radiologists look; from the left, the face looks to the left."""
    low, high = np.array([-10.0, 20, 30]), np.array([40.0, 60, 90])
    for view, corner in zip(mesh_picture.VIEWS, [(1, 1, 1), (1, 1, 1), (1, 0, 1)], strict=True):
        axes = Figure().add_subplot()
        mesh_picture._frame(axes, view, space, low, high)
        upper_right = in_space(np.where(corner, high, low)[None], space)[0]
        ends = axes.get_xlim()[1], axes.get_ylim()[1]
        assert ends == pytest.approx(upper_right[[view.right[0], view.up[0]]], abs=3.01)
        assert axes.get_aspect() == 1


# ----------------------------------------------------------------------------------------------- where an image lies


def test_simpleitk_and_nibabel_say_the_same_place(tmp_path: Path) -> None:
    shape = Oblique(flipped=True)
    path = shape.write(shape.labels(), tmp_path / "a.nii.gz")
    array, geometry = read_image(path)
    assert array.shape == shape.size[::-1]
    points = np.array([[0, 0, 0], [3, 5, 7], [29, 0, 1.5]])
    assert geometry.to_world(points) == pytest.approx(shape.world(points), abs=1e-3)
    nifti: Any = nibabel.load(path)
    affine = nifti.affine
    said = geometry_of_properties({"nibabel_stuff": {"original_affine": affine}}, array.shape, geometry.spacing)
    assert said.to_world(points) == pytest.approx(shape.world(points), abs=1e-3)
    itk = {"sitk_stuff": {"spacing": shape.spacing, "origin": mesh_shapes.ORIGIN, "direction": shape.direction.ravel()}}
    assert geometry_of_properties(itk, array.shape, geometry.spacing).affine == pytest.approx(geometry.affine, abs=1e-4)
    bare = geometry_of_properties({}, array.shape, (3.0, 2.0, 1.0))
    assert bare.to_world(np.array([[1.0, 1.0, 1.0]])) == pytest.approx(np.array([[1, 2, 3]]))


def test_reoriented_images_lie_where_they_lay(tmp_path: Path) -> None:
    affine = np.array([[0, 0, -2.0, 10], [1, 0, 0, 20], [0, -3, 0, 30], [0, 0, 0, 1]])
    values = np.zeros((4, 5, 6), np.uint8)
    values[1, 2, 3] = 1
    nibabel.save(nibabel.Nifti1Image(values, affine), tmp_path / "a.nii.gz")
    turned: Any = nibabel.as_closest_canonical(nibabel.load(tmp_path / "a.nii.gz"))
    where = np.argwhere(np.asarray(turned.dataobj).T)
    assert reoriented_geometry(tmp_path / "a.nii.gz", "SimpleITKIO") is None
    expected = (affine @ [1, 2, 3, 1])[:3] * [-1, -1, 1]
    for reader in ("NibabelIOWithReorient", "SimpleITKIOWithReorient"):
        geometry = reoriented_geometry(tmp_path / "a.nii.gz", reader)
        assert geometry is not None
        assert geometry.shape == turned.shape[::-1]
        assert geometry.to_world(where.astype(float)) == pytest.approx(expected[None], abs=1e-4)


def test_sheared_axes_are_read_by_nibabel(tmp_path: Path) -> None:
    affine = np.array([[1, 0.4, 0, 0], [0, 1, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1.0]])
    image = nibabel.Nifti1Image(np.ones((4, 4, 4), np.uint8), affine)
    image.set_qform(None, code=0)
    image.set_sform(affine, code=1)
    nibabel.save(image, tmp_path / "a.nii.gz")
    _, geometry = read_image(tmp_path / "a.nii.gz")
    assert geometry.to_world(np.array([[1.0, 1.0, 1.0]])) == pytest.approx(np.array([[-1.4, -1, 2]]))


def test_grids_cover_the_image_at_exact_spacing() -> None:
    geometry = Geometry((10, 20, 30), np.diag([2.0, 1.0, 0.5, 1.0]))
    grid = grid_of(geometry, (3.0, 0.5, 0.5))
    assert grid.scale == (1.5, 0.5, 1.0)
    assert grid.shape == (7, 40, 30)
    for n, count, scale, offset in zip(geometry.shape, grid.shape, grid.scale, grid.offset, strict=True):
        assert offset - scale / 2 <= -0.5 + 1e-9
        assert offset + scale * (count - 0.5) >= n - 0.5 - 1e-9
        assert offset + scale * (count - 1) / 2 == pytest.approx((n - 1) / 2)
    assert grid_of(geometry, None) == PointGrid.of_voxels(geometry.shape)
    assert grid_of(geometry, geometry.spacing) == PointGrid.of_voxels(geometry.shape)


def test_too_many_points_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mesh, "LIMIT_POINTS", 1000)
    with pytest.raises(UserError, match="larger --spacing"):
        mesh.check_size(PointGrid((11, 10, 10), (1.0,) * 3, (0.0,) * 3), "liver")


def test_labels_without_names_are_numbered() -> None:
    assert [target.name for target in numbered([1, 4])] == ["label1", "label4"]
