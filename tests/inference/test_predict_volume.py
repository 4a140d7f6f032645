"""`nnunet-ext predict-volume`: labels, where they lie in the world, what is written, and what happens if it fails."""

from __future__ import annotations

import errno
import json
import os
import sys
import types
from pathlib import Path
from typing import Any

import measure
import nibabel
import numpy as np
import point_model
import pytest
import SimpleITK
import torch
import volume_peaks
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO, SimpleITKIOWithReorient
from nnunetv2.imageio.tif_reader_writer import Tiff3DIO
from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_ext.architectures.blocks.point_grid import PointGrid
from nnunet_ext.cli import main
from nnunet_ext.errors import UserError
from nnunet_ext.inference import label_volume, predict_volume
from nnunet_ext.inference.label_volume import LabelVolume, image_affine, save, write_nifti
from nnunet_ext.inference.predict_volume import decode_labels, output_grid
from nnunet_ext.inference.volume_field import CaseField

SHAPE = (9, 12, 14)  # z, y, x
TURN = (0.36, 0.48, -0.8, -0.8, 0.6, 0.0, 0.48, 0.64, 0.6)


def image(path: Path, shape: tuple[int, int, int] = SHAPE, spacing: tuple[float, ...] = (0.8, 1.0, 1.5)) -> Path:
    """Noise with a bright ball, turned in space; the spacing is that of x, y and z."""
    axes = np.meshgrid(*(np.linspace(-1, 1, edge) for edge in shape), indexing="ij")
    ball = np.float32(sum(axis**2 for axis in axes) < 0.5)
    made = SimpleITK.GetImageFromArray(3 * ball + np.random.default_rng(0).normal(size=shape).astype(np.float32))
    made.SetSpacing(spacing)
    made.SetOrigin((-11.0, 23.5, 7.25))
    made.SetDirection(TURN)
    SimpleITK.WriteImage(made, str(path))
    return path


def faces(path: Path) -> list[tuple[float, ...]]:
    """The corners of an image's extent in the world, by SimpleITK."""
    read = SimpleITK.ReadImage(str(path))
    last = [edge - 0.5 for edge in read.GetSize()]
    corners = [(-0.5, -0.5, -0.5), tuple(last), (last[0], -0.5, -0.5), (-0.5, last[1], -0.5)]
    return [read.TransformContinuousIndexToPhysicalPoint(corner) for corner in corners]


# ---------------------------------------------------------------------------------------------------------- the labels


@pytest.mark.parametrize("regions", [False, True])
def test_labels_are_nnunets(regions: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict_volume, "BRICK_EDGE", 16)
    torch.manual_seed(0)
    labels = {"background": 0, "whole": [1, 2], "core": 2} if regions else None
    network = point_model.TinyPoints(1, 2 if regions else 3, regions=regions).eval()
    predictor = point_model.predictor(network, labels=labels, order=(2, 1) if regions else None)
    data, shape = point_model.noise(1, 19, 25, 10), (20, 30, 12)
    field = CaseField(predictor, data, point_model.properties(shape, crop=[(1, 20), (0, 25), (2, 12)]))
    volume = LabelVolume(tmp_path / "labels", shape, 2)
    decode_labels(field, PointGrid.of_voxels(shape), volume)
    logits = predictor.predict_sliding_window_return_logits(data)
    inside = volume.mapped()[1:20, :25, 2:]
    agreement = inside == np.asarray(predictor.label_manager.convert_logits_to_segmentation(logits))
    assert agreement.mean() > 0.995  # nnU-Net rounds to half precision
    assert set(np.unique(inside)) == {0, 1, 2}
    assert volume.mapped().astype(int).sum() == inside.astype(int).sum()
    assert volume.dtype == np.uint8


def test_grids_of_another_spacing_have_the_same_extent() -> None:
    assert output_grid((9, 12, 14), (1.5, 1.0, 0.8), None) == PointGrid.of_voxels((9, 12, 14))
    grid = output_grid((9, 12, 14), (1.5, 1.0, 0.8), (0.5, 2.0, 0.81))
    assert grid.shape == (27, 6, 14)
    assert grid.scale == pytest.approx((1 / 3, 2, 1))
    assert grid.offset == pytest.approx((-1 / 3, 0.5, 0))
    assert output_grid((3, 3, 3), (1, 1, 1), (2.99, 3, 3.00001)).shape == (1, 1, 1)
    with pytest.raises(UserError, match=r"--spacing of 9 x 1 x 1 mm .* is larger .* at most 6 x 5 x 3 mm"):
        output_grid((3, 5, 4), (1, 1, 1.5), (1, 1, 9))


# ----------------------------------------------------------------------------------------------------- the written file


@pytest.mark.parametrize("reader", [SimpleITKIO, SimpleITKIOWithReorient, NibabelIO, NibabelIOWithReorient])
def test_written_nifti_is_what_nnunets_writer_writes(reader: Any, tmp_path: Path) -> None:
    given = image(tmp_path / "a_0000.nii.gz")
    data, properties = reader().read_images([str(given)])
    labels = np.random.default_rng(0).integers(0, 200, data.shape[1:])  # one writer of nnU-Net has 8 bits only
    grid, volume = PointGrid.of_voxels(labels.shape), LabelVolume(tmp_path / "labels", labels.shape, 300)
    volume.write((slice(None),) * 3, labels)
    save(volume, tmp_path / "ours.nii.gz", grid, properties, None)
    reader().write_seg(labels.astype(np.uint16), str(tmp_path / "theirs.nii.gz"), properties)
    ours, theirs = (SimpleITK.ReadImage(str(tmp_path / name)) for name in ("ours.nii.gz", "theirs.nii.gz"))
    assert np.array_equal(SimpleITK.GetArrayFromImage(ours), SimpleITK.GetArrayFromImage(theirs))
    assert ours.GetPixelID() == SimpleITK.sitkUInt16
    for get in ("GetSpacing", "GetOrigin", "GetDirection"):
        assert getattr(ours, get)() == pytest.approx(getattr(theirs, get)(), abs=1e-5)
    before, after = (nibabel.load(tmp_path / name) for name in ("a_0000.nii.gz", "ours.nii.gz"))
    assert np.allclose(before.affine, after.affine, atol=1e-5)  # type: ignore[attr-defined]


@pytest.mark.parametrize("codes", ["LPS", "SAR", "ILA", "PSL", "RIP"])
def test_reordered_axes_are_written_slab_by_slab(codes: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label_volume, "_SLAB", 90)  # two or three slices
    volume = LabelVolume(tmp_path / "labels", (5, 6, 7), 255)
    volume.write((slice(None),) * 3, np.random.default_rng(0).integers(0, 255, volume.shape))
    affine = np.array([[1.5, 0, 0, 4], [0, 2, 0, -3], [0, 0, 3, 8], [0, 0, 0, 1]])
    orientation = nibabel.orientations.axcodes2ornt(codes)
    write_nifti(volume, tmp_path / "a.nii", affine, orientation)
    given = nibabel.Nifti1Image(np.array(volume.mapped()).T, affine)
    wanted = given.as_reoriented(nibabel.orientations.ornt_transform(nibabel.io_orientation(affine), orientation))
    written: Any = nibabel.load(tmp_path / "a.nii")
    assert "".join(nibabel.aff2axcodes(written.affine)) == codes
    assert np.allclose(written.affine, wanted.affine)
    assert np.array_equal(np.asarray(written.dataobj), np.asarray(wanted.dataobj))


@pytest.mark.parametrize(("reader", "ending"), [(SimpleITKIO, ".nrrd"), (SimpleITKIO, ".nii.gz"), (NibabelIO, ".nii")])
def test_a_finer_grid_has_the_images_extent_in_the_world(reader: Any, ending: str, tmp_path: Path) -> None:
    given = image(tmp_path / f"a_0000{ending}")
    data, properties = reader().read_images([str(given)])
    grid = output_grid(data.shape[1:], properties["spacing"], (0.75, 0.4, 1.6))
    volume = LabelVolume(tmp_path / "labels", grid.shape, 2)
    volume.write((slice(1), slice(2), slice(3)), np.ones((1, 2, 3)))
    save(volume, tmp_path / f"ours{ending}", grid, properties, reader())
    written = SimpleITK.ReadImage(str(tmp_path / f"ours{ending}"))
    assert written.GetSize() == (7, 30, 18)
    assert written.GetSpacing() == pytest.approx((1.6, 0.4, 0.75), abs=1e-6)
    assert np.allclose(faces(tmp_path / f"ours{ending}"), faces(given), atol=1e-4)
    assert SimpleITK.GetArrayFromImage(written)[0, 1, 2] == 1
    assert SimpleITK.GetArrayFromImage(written).sum() == 6


def test_other_files_get_what_their_writer_puts_beside_them(tmp_path: Path) -> None:
    volume = LabelVolume(tmp_path / "labels", (2, 3, 4), 1)
    (tmp_path / "out").mkdir()
    grid = PointGrid.resized((2, 3, 2), (2, 3, 4))
    save(volume, tmp_path / "out" / "case.tif", grid, {"spacing": (3.0, 1.0, 1.0)}, Tiff3DIO())
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["case.json", "case.tif"]
    assert json.loads((tmp_path / "out" / "case.json").read_text()) == {"spacing": [3, 1, 0.5]}


def test_nothing_is_left_of_what_could_not_be_written(tmp_path: Path) -> None:
    class Broken:
        def write_seg(self, labels: Any, path: str, properties: Any) -> None:
            Path(path).write_text("half")
            raise OSError("no more")

    volume = LabelVolume(tmp_path / "labels", (2, 3, 4), 1)
    (tmp_path / "case.tif").write_text("earlier")
    with pytest.raises(OSError, match="no more"):
        save(volume, tmp_path / "case.tif", PointGrid.of_voxels((2, 3, 4)), {"spacing": (1, 1, 1)}, Broken())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["case.tif", "labels"]
    assert (tmp_path / "case.tif").read_text() == "earlier"


def test_two_dimensional_images_are_refused() -> None:
    with pytest.raises(UserError, match="the image has 2 axes; it must have 3"):
        image_affine({"sitk_stuff": {"spacing": (1, 1), "direction": (1, 0, 0, 1), "origin": (0, 0)}})


# ---------------------------------------------------------------------------------------------------------- the command


PLANS: dict[str, Any] = {
    "dataset_name": "Dataset001_x",
    "plans_name": "p",
    "image_reader_writer": "SimpleITKIO",
    "transpose_forward": [1, 0, 2],
    "transpose_backward": [1, 0, 2],
    "label_manager": "LabelManager",
    "foreground_intensity_properties_per_channel": {"0": {}},
    "configurations": {
        "3d_fullres": {
            "spacing": [1.3, 1.5, 0.8],
            "patch_size": [8, 9, 10],
            "architecture": {"network_class_name": "tiny", "arch_kwargs": {}, "_kw_requires_import": []},
            "preprocessor_name": "DefaultPreprocessor",
            "normalization_schemes": ["ZScoreNormalization"],
            "use_mask_for_norm": [False],
            **{f"resampling_fn_{of}": "resample_data_or_seg_to_shape" for of in ("data", "seg", "probabilities")},
            **{
                f"resampling_fn_{of}_kwargs": {
                    "is_seg": of == "seg",
                    "order": 1,
                    "order_z": 0,
                    "force_separate_z": None,
                }
                for of in ("data", "seg", "probabilities")
            },
        }
    },
}
DATASET_JSON = {
    "channel_names": {"0": "MRI"},
    "labels": {"background": 0, "organ": 1, "core": 2},
    "file_ending": ".nii.gz",
}


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model folder; nnU-Net's predictor takes a tiny network instead of what its checkpoint names."""
    folder = tmp_path / "model"
    for fold in (0, 1):
        (folder / f"fold_{fold}").mkdir(parents=True)
        (folder / f"fold_{fold}" / "checkpoint_final.pth").touch()
    (folder / "plans.json").write_text(json.dumps(PLANS))
    (folder / "dataset.json").write_text(json.dumps(DATASET_JSON))

    def initialise(self: Any, given: str, folds: tuple[str, ...], checkpoint: str) -> None:
        torch.manual_seed(int(folds[0]))
        self.network = point_model.TinyPoints(1, 3).eval()
        torch.nn.init.normal_(self.network.conv.weight)
        self.list_of_parameters = [self.network.state_dict()]
        self.dataset_json = json.loads((Path(given) / "dataset.json").read_text())
        self.plans_manager = PlansManager(json.loads((Path(given) / "plans.json").read_text()))
        self.configuration_manager = self.plans_manager.get_configuration("3d_fullres")
        self.label_manager = self.plans_manager.get_label_manager(self.dataset_json)
        self.allowed_mirroring_axes = (0, 1, 2)

    monkeypatch.setattr(nnUNetPredictor, "initialize_from_trained_model_folder", initialise)
    return folder


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for case in "ab":
        image(folder / f"{case}_0000.nii.gz")
    return folder


def labels_of(path: Path) -> np.ndarray:
    return SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))


def test_images_own_resolution(model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "there" / "out"
    assert main(["predict-volume", str(model), "-i", str(images), "-o", str(output), "-device", "cpu"]) == 0
    printed = capsys.readouterr()
    assert f"written  {output / 'a.nii.gz'}  14 x 12 x 9 voxels" in printed.out
    assert "b: 100%" in printed.err
    assert sorted(path.name for path in output.iterdir()) == ["a.nii.gz", "b.nii.gz", "dataset.json", "plans.json"]
    found = labels_of(output / "a.nii.gz")
    assert np.allclose(faces(output / "a.nii.gz"), faces(images / "a_0000.nii.gz"), atol=1e-4)
    assert (found == nnunets(model, images / "a_0000.nii.gz")).mean() > 0.93  # its logits go through another grid


def nnunets(model: Path, path: Path) -> np.ndarray:
    """The labels by nnU-Net's own prediction, which resamples logits."""
    predictor: Any = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(model), ("0",), "checkpoint_final.pth")
    plans, configuration = predictor.plans_manager, predictor.configuration_manager
    data, _, properties = configuration.preprocessor_class(verbose=False).run_case(
        [str(path)], None, plans, configuration, predictor.dataset_json
    )
    logits = predictor.predict_sliding_window_return_logits(torch.from_numpy(data)).float()
    return convert_predicted_logits_to_segmentation_with_correct_shape(
        logits, plans, configuration, predictor.label_manager, properties
    )


def test_another_spacing_two_folds_and_mirroring(model: Path, images: Path, tmp_path: Path) -> None:
    def run(name: str, *options: str) -> np.ndarray:
        command = ["predict-volume", str(model), "-i", str(images), "-o", str(tmp_path / name), *options]
        assert main([*command, "--spacing", "0.4", "0.5", "0.75"]) == 0
        return labels_of(tmp_path / name / "a.nii.gz")

    one, both = run("one"), run("both", "-f", "0", "1")
    assert one.shape == both.shape == (18, 24, 28)
    assert np.allclose(faces(tmp_path / "one" / "a.nii.gz"), faces(images / "a_0000.nii.gz"), atol=1e-4)
    assert 0.3 < (one == both).mean() < 0.99
    assert 0.3 < (one == run("mirrored", "--mirroring")).mean() < 0.999


def test_a_bad_case_is_named_and_the_rest_goes_on(
    model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (images / "a_0000.nii.gz").write_bytes(b"no image")
    command = ["predict-volume", str(model), "-i", str(images), "-o", str(tmp_path / "out"), "--mode", "dense"]
    assert main(command) == 1
    error = capsys.readouterr().err
    assert "a is not predicted: " in error
    assert "1 of 2 cases failed: a" in error
    assert "Traceback" not in error
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["b.nii.gz", "dataset.json", "plans.json"]
    image(images / "a_0000.nii.gz")
    stamp = (tmp_path / "out" / "b.nii.gz").stat().st_mtime_ns
    assert main([*command, "--continue_prediction"]) == 0
    assert "there already" in capsys.readouterr().out
    assert (tmp_path / "out" / "b.nii.gz").stat().st_mtime_ns == stamp
    assert (tmp_path / "out" / "a.nii.gz").is_file()


def test_a_full_disk_ends_the_run_with_a_sentence(
    model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    assert main(["predict-volume", str(model), "-i", str(images), "-o", str(tmp_path / "out")]) == 1
    assert "no space left on the device" in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["dataset.json", "plans.json"]


def test_an_output_too_large_for_its_format_is_refused_before_the_work(
    model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["predict-volume", str(model), "-i", str(images), "-o", str(tmp_path / "out")]
    assert main([*command, "--spacing", "0.8", "1e-4", "1.5"]) == 1
    assert "a is not predicted: an output of (9, 120000, 14) voxels (z, y, x) is too large" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--spacing", "1", "2"], "--spacing takes one number of millimetres or three, each above 0; got 1 2"),
        (["--spacing", "0"], "each above 0; got 0"),
        (["--spacing", "nan"], "each above 0; got nan"),
        (["--mode", "reference"], "--mode reference is for imported published models"),
        (["-f", "0", "7"], "has no fold 7 with checkpoint_final.pth; there is: 0, 1"),
        (["-f", "0", "1", "0"], "-f names fold 0 more than once"),
        (["--spacing", "1000"], "a is not predicted: --spacing of 1000 x 1000 x 1000 mm (x, y, z) is larger than"),
        (["-device", "cuda"], "nnunet-ext: -device cuda: PyTorch finds no such device here; there is: cpu"),
    ],
)
def test_what_cannot_be_used_is_said(
    options: list[str],
    text: str,
    model: Path,
    images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["predict-volume", str(model), "-i", str(images), "-o", str(tmp_path / "out"), *options]) == 1
    assert text in capsys.readouterr().err


@pytest.mark.parametrize(
    ("place", "text"),
    [("file/out", "file/out: Not a directory"), ("out", "out/dataset.json: Is a directory")],
)
def test_an_output_that_cannot_be_written_is_said(
    place: str, text: str, model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "out" / "dataset.json").mkdir(parents=True)
    assert main(["predict-volume", str(model), "-i", str(images), "-o", str(tmp_path / place)]) == 1
    assert f"nnunet-ext: cannot write {tmp_path}/{text}; choose another folder\n" in capsys.readouterr().err


def test_an_output_that_is_a_file_and_a_model_of_voxels(
    model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["predict-volume", str(model), "-i", str(images), "-o", str(tmp_path / "out")]
    (tmp_path / "out").touch()
    assert main(command) == 1
    assert "is a file; choose another folder" in capsys.readouterr().err
    load = nnUNetPredictor.initialize_from_trained_model_folder
    other = torch.nn.Conv3d(1, 3, 3)

    def foreign(self: Any, *given: Any) -> None:
        load(self, *given)
        self.network = other

    monkeypatch.setattr(nnUNetPredictor, "initialize_from_trained_model_folder", foreign)
    assert main(command) == 1
    assert "network is Conv3d, which knows voxels only" in capsys.readouterr().err


def test_imported_models_get_their_authors_preprocessing(
    model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (model / "plans.json").write_text(json.dumps({**PLANS, "nnunet_ext": {"case_adapter": "lits"}}))
    given: list[Any] = []

    def predict_published(network: Any, image: np.ndarray, adapter: str, mode: str | None) -> np.ndarray:
        given.extend([adapter, mode])
        return (image[0] > 2).astype(np.uint8)

    module = types.ModuleType("published_volume")
    module.predict_published = predict_published  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "nnunet_ext.inference.published_volume", module)
    command = ["predict-volume", str(model), "-i", str(images), "-o", str(tmp_path / "out"), "--mode", "reference"]
    assert main(command) == 0
    assert given == ["lits", "reference"] * 2
    voxels = labels_of(images / "a_0000.nii.gz")
    assert np.array_equal(labels_of(tmp_path / "out" / "a.nii.gz"), voxels > 2)
    assert np.allclose(faces(tmp_path / "out" / "a.nii.gz"), faces(images / "a_0000.nii.gz"), atol=1e-4)
    assert main([*command, "--spacing", "1"]) == 1
    assert "imported published one: it gives labels at the images' own voxels" in capsys.readouterr().err


# ----------------------------------------------------------------------------------------------------------- the memory


@pytest.fixture(scope="module")
def peaks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[int]]:
    """Peak bytes by quantity, from a process where nothing else allocates."""
    if sys.platform != "linux":
        pytest.skip("peak memory is read from /proc")
    found: dict[str, list[int]] = measure.in_fresh_process(
        volume_peaks.__file__, [str(tmp_path_factory.mktemp("peaks"))]
    )
    return found


def test_memory_does_not_grow_with_the_output(peaks: dict[str, list[int]]) -> None:
    _, small, large = peaks["decoding"]
    logits = 3 * 4 * volume_peaks.EDGES[2] ** 3
    assert large < small + logits / 4


def test_reordered_axes_do_not_need_the_whole_file(peaks: dict[str, list[int]]) -> None:
    assert peaks["reordering"][1] < 0.6 * volume_peaks.REORDERED[1] ** 3, "the labels' bytes are mapped as a whole"
