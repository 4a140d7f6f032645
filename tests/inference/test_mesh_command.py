"""`nnunet-ext mesh`: what a user types, what comes of it, and what is said if it cannot be."""

from __future__ import annotations

import itertools
import json
import math
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mesh_shapes
import numpy as np
import point_model
import pytest
import SimpleITK
import torch
import trimesh
from mesh_shapes import Oblique
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_ext.architectures.blocks.adaptive_decoding import Decoded
from nnunet_ext.architectures.blocks.point_grid import PointGrid, voxel_coordinates
from nnunet_ext.cli import main
from nnunet_ext.inference import mesh, mesh_making, mesh_model, volume_field
from nnunet_ext.inference.mesh import grid_of, surface_of
from nnunet_ext.inference.mesh_labels import Target

SHAPE = Oblique(size=(34, 40, 26), spacing=(0.9, 1.0, 1.3))
NAMES = {"background": 0, "organ": 1, "core": 2, "rest": 3, "ignore": 4}


def two_labels() -> np.ndarray:
    """1 in the ellipsoid, 2 in its core."""
    distance = SHAPE.distance(SHAPE.world(SHAPE.voxels()))
    return (distance < 0).astype(np.uint8) + (distance < -4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Predictions as nnU-Net leaves them, for reading only."""
    made = tmp_path_factory.mktemp("predicted")
    SHAPE.write(two_labels(), made / "case.nii.gz")
    p = SHAPE.probabilities()
    values = np.stack([1 - p, p * 0.6, p * 0.4, p * 0])
    np.savez_compressed(made / "case.npz", probabilities=values)
    np.savez_compressed(made / "lonely.npz", probabilities=values)
    np.savez_compressed(made / "other.npz", values=p)
    spoilt = {"two": values[:2], "logits": np.log(values + 1e-3), "bare": values[:0]}
    for name, wrong in {
        **spoilt,
        "nan": np.where(p > 0.9, np.nan, values),
        "inf": np.where(p > 0.9, np.inf, values),
    }.items():
        np.savez_compressed(made / f"{name}.npz", probabilities=wrong.astype(np.float16))
        SHAPE.write(p, made / f"{name}.nii.gz")
    (made / "bad.npz").write_text("no zip")
    (made / "dataset.json").write_text(json.dumps({"labels": NAMES, "file_ending": ".nii.gz"}))
    alone = made / "alone"
    alone.mkdir()
    SHAPE.write(two_labels(), alone / "labels.nrrd")
    SHAPE.write(p, alone / "p.mha")
    SHAPE.write(np.zeros_like(two_labels()), alone / "empty.nii.gz")
    SHAPE.write(1000 * p, alone / "mri.nii.gz")
    SHAPE.write((1000 * p).astype(np.int16), alone / "ct.nii.gz")
    SHAPE.write(np.where(p > 0.5, np.float32("nan"), p), alone / "nan.mha")
    SimpleITK.WriteImage(SimpleITK.JoinSeries([SHAPE.image(p), SHAPE.image(p)]), str(alone / "four.nii.gz"))
    SimpleITK.WriteImage(SHAPE.image(p)[:, :, 3], str(alone / "flat.mha"))
    (alone / "text.nii.gz").write_text("no image")
    (alone / "names.json").write_text(json.dumps({"labels": {"background": 0, "whole organ/all": [1, 2], "core": [2]}}))
    return made


def run(*arguments: object) -> int:
    return main(["mesh", *map(str, arguments)])


def load(path: Path) -> Any:
    return trimesh.load(path, force="mesh")


# -------------------------------------------------------------------------------------------------------- what is made


def test_all_labels_of_a_prediction_in_a_folder(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "meshes"
    assert run(folder / "case.nii.gz", "-o", out, "--format", "stl", "--picture", tmp_path / "a.png") == 0
    assert sorted(path.name for path in out.iterdir()) == ["case_core.stl", "case_organ.stl"]
    printed = capsys.readouterr()
    assert "rest does not occur: no surface" in printed.err  # nothing that was asked for by its name
    assert f"written  {out / 'case_core.stl'}" in printed.out
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    organ, core = load(out / "case_organ.stl"), load(out / "case_core.stl")
    assert organ.is_watertight
    assert core.is_watertight
    assert organ.volume + core.volume == pytest.approx(mesh_shapes.VOLUME, rel=0.02)
    assert f"organ: {organ.volume:.4g}"[:9] in printed.out


@pytest.mark.parametrize("label", ["organ+core", "1+2", "organ+2"])
def test_joined_labels_in_one_file(label: str, folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.ply"
    options = ["--label", label, "--spacing", 0.9, 1.0, 0.65, "--coordinates", "ras", "--smooth", 1]
    assert run(folder / "case.nii.gz", "-o", path, *options) == 0
    found = load(path)
    assert found.volume == pytest.approx(mesh_shapes.VOLUME, rel=0.015)
    assert np.abs(SHAPE.distance(found.vertices * [-1, -1, 1])).max() < 0.6


def test_spacing_is_along_x_y_z(folder: Path, tmp_path: Path) -> None:
    """Points twice as dense along the image's z, the voxels' long side: vertices lie at their heights."""
    path = tmp_path / "a.obj"
    assert run(folder / "case.nii.gz", "-o", path, "--label", 2, "--spacing", 0.9, 1.0, 0.65) == 0
    along = (load(path).vertices - mesh_shapes.ORIGIN) @ SHAPE.direction / SHAPE.spacing
    steps = np.stack([along[:, 0], along[:, 1], 2 * along[:, 2] + 0.5], 1)
    on_points = np.abs(steps - np.rint(steps)) < 2e-3
    assert (on_points.sum(1) == 2).mean() > 0.99


def test_regions_by_their_names_and_label_maps_without_names(folder: Path, tmp_path: Path) -> None:
    alone = folder / "alone"
    assert run(alone / "labels.nrrd", "-o", tmp_path, "--names", alone / "names.json", "--format", "obj") == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["labels_core.obj", "labels_whole_organ_all.obj"]
    assert load(tmp_path / "labels_whole_organ_all.obj").volume == pytest.approx(mesh_shapes.VOLUME, rel=0.015)
    assert run(alone / "labels.nrrd", "-o", tmp_path / "all.glb") == 0
    scene: Any = trimesh.load(tmp_path / "all.glb")
    assert set(scene.geometry) == {"label1", "label2"}


def test_probabilities_of_nnunet_and_of_an_image(folder: Path, tmp_path: Path) -> None:
    """The organ alone is never above 0.6; with its core it is the ellipsoid."""
    options = ["--spacing", 0.7]
    assert run(folder / "case.npz", "-o", tmp_path / "a.obj", "--label", "organ+core", *options) == 0
    assert run(folder / "alone" / "p.mha", "-o", tmp_path / "b.obj", *options) == 0
    for name in ("a", "b"):
        found = load(tmp_path / f"{name}.obj")
        assert np.abs(SHAPE.distance(found.vertices)).max() < 0.07
        assert found.volume == pytest.approx(mesh_shapes.VOLUME, rel=0.01)
    assert run(folder / "case.npz", "-o", tmp_path / "c.obj", "--label", "organ", *options) == 0
    assert load(tmp_path / "c.obj").volume < 0.9 * mesh_shapes.VOLUME
    assert run(folder / "lonely.npz", "-o", tmp_path / "d.ply", "--label", 1, "--image", folder / "two.nii.gz") == 0


def test_what_was_asked_for_and_is_not_there(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(folder / "case.nii.gz", "-o", tmp_path, "--label", "rest", "--label", "core", "--label", 9) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["case_core.ply"]
    error = capsys.readouterr().err
    assert "rest does not occur" in error
    assert "label9 does not occur" in error
    assert run(folder / "case.nii.gz", "-o", tmp_path / "big.glb", "--min-volume", 1e6) == 1
    assert "organ has no piece of 1e+06 mm3" in capsys.readouterr().err
    assert not (tmp_path / "big.glb").exists()


def test_files_are_replaced_only_if_asked(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.ply", "a.png"):
        (tmp_path / name).write_text("mine")
        command = [folder / "case.nii.gz", "-o", tmp_path / "a.ply", "--label", 2, "--picture", tmp_path / "a.png"]
        assert run(*command) == 1
        assert f"{tmp_path / name} exists" in capsys.readouterr().err
        assert (tmp_path / name).read_text() == "mine"
        (tmp_path / name).unlink()
    (tmp_path / "a.ply").write_text("mine")
    assert run(*command, "--overwrite") == 0
    assert load(tmp_path / "a.ply").is_watertight


# ---------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("given", "options", "text"),
    [
        ("none.nii.gz", [], "there is no such file"),
        ("none.npz", [], "there is no such file"),
        ("alone/text.nii.gz", [], "cannot read"),
        ("alone/four.nii.gz", [], "surfaces need an image of three dimensions and one channel"),
        ("alone/flat.mha", [], "surfaces need an image of three dimensions and one channel"),
        ("alone/mri.nii.gz", [], "that are not whole"),
        ("alone/ct.nii.gz", [], "an image rather than a label map"),
        ("alone/nan.mha", [], "no numbers (NaN)"),
        ("alone/empty.nii.gz", [], "no label but the background"),
        ("alone/names.json", [], "cannot read"),
        ("alone", [], "not a model's"),
        ("bad.npz", [], "cannot read"),
        ("other.npz", [], 'no "probabilities"'),
        ("lonely.npz", [], "its image lonely.nii.gz is not beside it"),
        ("logits.npz", [], "logits.npz has values from -6.90625 to 0.000999451; probabilities are between 0 and 1"),
        ("nan.npz", [], "nan.npz has values that are no numbers (NaN) or infinite"),
        ("inf.npz", [], "inf.npz has values that are no numbers (NaN) or infinite"),
        ("bare.npz", [], "has no probabilities: its shape is (0, 26, 40, 34)"),
        ("lonely.npz", ["--image", "{}/alone/flat.mha"], "three dimensions"),
        ("two.npz", [], "2 channels of probabilities, which are not those of the names"),
        ("case.nii.gz", ["--label", "liver"], "there is no class or region liver; there are: organ (1), core (2)"),
        ("case.nii.gz", ["--label", "organ+liver"], "there is no class or region organ+liver"),
        ("case.npz", ["--label", "7"], "there is no class or region 7"),
        ("case.nii.gz", ["--names", "{}/none.json"], "cannot read"),
        ("case.nii.gz", ["--names", "{}/case.nii.gz"], "cannot read"),
        ("case.nii.gz", ["--spacing", "1", "2"], "--spacing takes one number, or three"),
        ("case.nii.gz", ["--spacing", "0"], "positive millimetres"),
        ("case.nii.gz", ["--spacing", "0.0001"], "give a larger --spacing"),
        ("case.nii.gz", ["--min-volume", "-1"], "--min-volume must not be negative"),
        ("case.nii.gz", ["--smooth", "nan"], "--smooth must not be negative"),
        ("case.npz", ["--smooth", "1"], "--smooth is for a label map"),
        ("case.nii.gz", ["--polish"], "--polish is for a model folder"),
        ("case.nii.gz", ["--image", "{}/case.nii.gz"], "--image is for a model folder or a .npz file"),
        ("case.nii.gz", ["--picture", "a.jpg"], "--picture writes a .png file"),
        ("case.nii.gz", ["-o", "{}/new.vtk"], "meshes are written as obj, ply, stl, glb"),
        ("case.nii.gz", ["-o", "{}/new.obj"], "can hold one surface, and there are 3: organ, core, rest"),
        ("case.nii.gz", ["-o", "{}/new.obj", "--format", "stl"], "--format stl is for folders"),
    ],
)
def test_what_cannot_be_done_is_said(
    given: str, options: list[str], text: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(path.name for path in folder.iterdir())
    command = [folder / given, "-o", tmp_path / "out", *(option.format(folder) for option in options)]
    assert run(*command) == 1
    error = capsys.readouterr().err
    assert text in error
    assert "Traceback" not in error
    assert not (tmp_path / "out").exists()
    assert sorted(path.name for path in folder.iterdir()) == before


# ------------------------------------------------------------------------------------------------------------ a model


def plans_with(spacing: list[float]) -> dict[str, Any]:
    def resampling(of: str) -> dict[str, Any]:
        kwargs = {"is_seg": of == "seg", "order": 3, "order_z": 0, "force_separate_z": False}
        return {f"resampling_fn_{of}": "resample_data_or_seg_to_shape", f"resampling_fn_{of}_kwargs": kwargs}

    configuration = {
        "spacing": spacing,
        "patch_size": [26, 28, 28],
        "architecture": {"network_class_name": "tiny", "arch_kwargs": {}, "_kw_requires_import": []},
        "preprocessor_name": "DefaultPreprocessor",
        "normalization_schemes": ["NoNormalization"],
        "use_mask_for_norm": [False],
        **resampling("data"),
        **resampling("seg"),
        **resampling("probabilities"),
    }
    return {
        "dataset_name": "Dataset001_x",
        "plans_name": "p",
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [1, 0, 2],
        "transpose_backward": [1, 0, 2],
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": {}},
        "configurations": {"3d_fullres": configuration},
    }


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model whose network says organ where the image is positive; the image is the depth in the ellipsoid."""
    made = tmp_path / "model"
    (made / "fold_0").mkdir(parents=True)
    (made / "fold_0" / "checkpoint_final.pth").touch()
    (made / "plans.json").write_text(json.dumps(plans_with([1.0, 1.2, 0.9])))
    labels = {"background": 0, "organ": 1}
    (made / "dataset.json").write_text(
        json.dumps({"labels": labels, "channel_names": {"0": "x"}, "file_ending": ".nii.gz"})
    )

    def initialise(self: Any, given: str, folds: tuple[str, ...], checkpoint: str) -> None:
        self.network = point_model.TinyPoints(1, 2).eval()
        with torch.no_grad():
            self.network.conv.weight.zero_()
            self.network.conv.weight[1, 0, 1, 1, 1] = 1
            self.network.conv.bias.zero_()
        self.list_of_parameters = [self.network.state_dict()]
        self.dataset_json = json.loads((Path(given) / "dataset.json").read_text())
        self.plans_manager = PlansManager(json.loads((Path(given) / "plans.json").read_text()))
        self.configuration_manager = self.plans_manager.get_configuration("3d_fullres")
        self.label_manager = self.plans_manager.get_label_manager(self.dataset_json)
        self.allowed_mirroring_axes = None

    monkeypatch.setattr(nnUNetPredictor, "initialize_from_trained_model_folder", initialise)
    depth = -SHAPE.distance(SHAPE.world(SHAPE.voxels()))
    SHAPE.write(np.clip(depth, -6, 6).astype(np.float32), tmp_path / "case_0000.nii.gz")
    return made


@pytest.mark.parametrize(
    ("spacing", "brick"), [([], 128), (["--spacing", "0.6"], 16), (["--spacing", "3"], 128), (["--spacing", "3"], 5)]
)
def test_a_model_is_asked_at_any_spacing(
    model: Path, spacing: list[str], brick: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mesh_model, "BRICK", brick)
    command = [model, "--image", tmp_path / "case_0000.nii.gz", "-o", tmp_path / "out", *spacing, "-device", "cpu"]
    assert run(*command) == 0
    found = load(tmp_path / "out" / "case_organ.ply")
    errors = np.abs(SHAPE.distance(found.vertices))
    assert found.is_watertight
    assert errors.max() < 0.3
    assert np.sqrt((errors**2).mean()) < 0.05
    if spacing == ["--spacing", "3"]:  # polished: coarser than the image
        assert run(*command, "--overwrite", "--no-polish") == 0
        plain = load(tmp_path / "out" / "case_organ.ply")
        assert np.sqrt((SHAPE.distance(plain.vertices) ** 2).mean()) > 2 * np.sqrt((errors**2).mean())
    else:
        assert found.volume == pytest.approx(mesh_shapes.VOLUME, rel=0.01)


class Balls:
    """A case of four classes: two are balls of 5 mm far apart, the last is nowhere; `asked` are the grids."""

    shape, spacing = (24, 24, 60), (1.0, 1.0, 1.0)

    def __init__(self) -> None:
        self.asked: list[PointGrid] = []
        self.properties = {"spacing": self.spacing}

    def logits_at(self, coords: torch.Tensor) -> torch.Tensor:
        middles = torch.tensor([[11.0, 12, 12], [12.0, 11, 48]])
        depths = [5 - (coords - middle).norm(dim=1) for middle in middles]
        return torch.stack([torch.zeros_like(depths[0]), *depths, torch.full_like(depths[0], -90)])

    def logits(self, grid: PointGrid) -> Decoded:
        self.asked.append(grid)
        found = self.logits_at(grid.coordinates(voxel_coordinates(grid.shape).long())).unflatten(1, grid.shape)
        return Decoded(found, torch.ones(grid.shape, dtype=torch.bool))

    def bricks(self, grid: PointGrid, edge: int) -> list[tuple[slice, ...]]:
        starts = itertools.product(*(range(0, n, 16) for n in grid.shape))
        return [tuple(slice(s, min(s + 16, n)) for s, n in zip(start, grid.shape, strict=True)) for start in starts]


def balls() -> tuple[mesh_model.ModelField, list[PointGrid]]:
    field = Balls()
    names: dict[str, tuple[int, ...]] = {"first": (1,), "second": (2,), "absent": (3,)}
    return mesh_model.ModelField("case", field, names, regions=False), field.asked


def test_a_model_is_asked_only_where_a_class_lies() -> None:
    """Each of two balls gets its field in a box around it."""
    source, asked = balls()
    grid = grid_of(source.geometry, (0.5, 0.5, 0.5))
    boxes = source.boxes(source.targets, grid)
    coarse, asked[:] = list(asked), []
    found = dict(source.fields(boxes, grid))
    assert sum(math.prod(part.shape) for part in coarse) == math.prod(Balls.shape)
    assert sum(math.prod(part.shape) for part in asked) < 0.5 * math.prod(grid.shape)
    assert [target.name for target in boxes] == ["first", "second"]
    for target, middle in zip(boxes, [(11, 12, 12), (12, 11, 48)], strict=True):
        surface = surface_of(found[target], grid.brick(*boxes[target]), source.geometry, name=target.name)
        assert surface is not None
        expected = np.array(middle)[::-1]
        assert np.linalg.norm(surface.vertices - expected, axis=1) == pytest.approx(5, abs=0.05)


def test_classes_that_cannot_be_held_together_go_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    source, asked = balls()
    grid = grid_of(source.geometry, (0.5, 0.5, 0.5))
    boxes = source.boxes(source.targets, grid)
    expected = dict(source.fields(boxes, grid))
    first, second = (math.prod(shape) for _, shape in boxes.values())
    assert first == second
    for limit, groups in ((first, 2), (first * 3 // 2, 1)):  # of one, with its copy; of two and one copy
        monkeypatch.setattr(mesh, "LIMIT_POINTS", limit)
        asked.clear()
        fields = source.fields(boxes, grid)
        found = dict([next(fields)])
        at_first = len(asked)
        found.update(fields)
        assert (len(asked) > at_first) == (groups == 2)
        for target, values in expected.items():
            np.testing.assert_array_equal(found[target], values)


def test_one_field_is_gone_before_the_next_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, _ = balls()
    made: list[weakref.ref[np.ndarray]] = []

    def fields(boxes: Any, grid: PointGrid) -> Iterator[tuple[Target, np.ndarray]]:
        for target, (_, shape) in boxes.items():
            assert not made or made[-1]() is None
            values = np.zeros(shape, np.float32)
            made.append(weakref.ref(values))
            yield target, values
            del values

    monkeypatch.setattr(source, "fields", fields)
    mesh_making.make(source, {target: tmp_path / f"{target.name}.ply" for target in source.targets})
    assert len(made) == 3


@pytest.mark.parametrize("one_pass", [True, False])
@pytest.mark.parametrize(
    ("mm", "reason"),
    [
        (None, "absent does not occur"),
        (0.7, "absent does not occur"),
        (2.5, "absent does not occur at the points of this spacing; give a smaller --spacing"),
    ],
)
def test_why_a_class_of_a_model_has_no_surface(
    one_pass: bool, mm: float | None, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether or not a least volume is asked for, and however the field is evaluated."""
    if not one_pass:
        monkeypatch.setattr(mesh_model, "ONE_PASS_BYTES", 0)
    source, _ = balls()
    files = {target: tmp_path / f"{target.name}.ply" for target in source.targets}
    spacing = None if mm is None else (mm,) * 3
    for least in (0.0, 1.0):
        made = mesh_making.make(source, files, spacing=spacing, min_volume=least)
        assert list(made.missing.values()) == [reason]
    made = mesh_making.make(source, files, spacing=spacing, min_volume=1e4)
    assert sorted(made.missing.values()) == [
        reason,
        *(f"{name} has no piece of 10000 mm3 (--min-volume) at this spacing" for name in ("first", "second")),
    ]


def test_regions_and_joined_classes_of_logits() -> None:
    logits = torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(0))
    p = logits.softmax(0)
    joined = mesh_model.margin_of(logits, (1, 3), False)
    assert torch.allclose(joined.sigmoid(), p[1] + p[3], atol=1e-6)
    assert torch.equal(mesh_model.margin_of(logits, (2,), True), logits[2])


def test_models_that_cannot_be_used(
    model: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    image, out = tmp_path / "case_0000.nii.gz", tmp_path / "out"
    for options, text in (
        ([], "is a model: give the image by --image"),
        (["--image", image, image], "needs 1 channel(s) of the image by --image; got 2"),
        (["--image", tmp_path / "none.nii.gz"], "there is no such file"),
        (["--image", folder / "alone" / "text.nii.gz"], "cannot read"),
        (["--image", image, "--smooth", 1], "--smooth is for a label map"),
        (["--image", image, "-f", 3], "fold 3"),
        (["--image", image, "--label", "core"], "there is no class or region core; there are: organ (1)"),
    ):
        assert run(model, "-o", out, *options) == 1
        assert text in capsys.readouterr().err
    monkeypatch.setattr(volume_field, "OccupancyNetwork", int)
    assert run(model, "-o", out, "--image", image) == 1
    assert "nnUNetv2_predict for this one, with --save_probabilities" in capsys.readouterr().err
