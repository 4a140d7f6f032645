"""From a published checkpoint to a prediction by stock nnU-Net, against the published pipeline written out here."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from golden_adapter import gate_choice
from nibabel.orientations import axcodes2ornt, ornt_transform
from published_sshunet import fixture_state, save_published

from nnunet_ext.errors import UserError
from nnunet_ext.lookup import install
from nnunet_ext.weights import cli
from nnunet_ext.weights.dataset_json import DatasetOptions
from nnunet_ext.weights.sshunet import build_network, load_weights
from nnunet_ext.weights.sshunet_configuration import infer_configuration
from nnunet_ext.weights.sshunet_folder import FolderOptions, intensity_properties

FIXTURE = "tsm_anisotropic_input"
SIZE = (32, 28, 24)
"""Of the test volume in RAS (x, y, z), smaller than one 32 x 32 x 32 patch."""
PATCH = 32
WINDOW = (-120.0, 340.0)

Importer = Callable[..., Path]


@pytest.fixture
def import_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Importer:
    """Import a fixture's weights with command-line arguments; returns the model folder."""

    def run(*arguments: str, fixture: str = FIXTURE, folder: str = "model") -> Path:
        state, constructor = fixture_state(fixture)
        checkpoint = save_published(tmp_path / "model_fold0.pt", state, len(constructor["strides"]))
        parser = argparse.ArgumentParser()
        cli.add_arguments(parser)
        output = tmp_path / folder
        size = ["--patch-size", *[str(PATCH)] * 3]
        assert cli.run(parser.parse_args(["sshunet", str(checkpoint), "-o", str(output), *size, *arguments])) == 0
        return output

    return run


def predictor(folder: Path) -> Any:
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    install()
    made = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    made.initialize_from_trained_model_folder(str(folder), (0,))
    return made


def contents(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(path.read_text())
    return loaded


def volume_in_hounsfield_units() -> np.ndarray:
    """(x, y, z) in RAS, with no zeros at its borders that nnU-Net would crop."""
    smooth = np.add.outer(np.add.outer(np.arange(SIZE[0]) * 9.0, np.arange(SIZE[1]) * -7.0), np.arange(SIZE[2]) * 5.0)
    return (smooth + np.random.default_rng(0).normal(0, 150, SIZE) + 30.5).astype(np.float32)


def published_logits(volume: np.ndarray, axes: tuple[int, int, int] = (0, 1, 2)) -> np.ndarray:
    """Window, padding to one patch, network on an (x, y, z) tensor, padding removed: (classes, x, y, z).

    Args:
        volume: (x, y, z) in RAS, HU, 1 mm.
        axes: the order in which the network gets the axes; the published one by default.
    """
    state, constructor = fixture_state(FIXTURE)
    configuration = infer_configuration(state, gate_choice(constructor))
    network = build_network(configuration, axes="zyx").eval()
    load_weights(network, state, configuration)
    scaled = np.clip((volume - WINDOW[0]) / (WINDOW[1] - WINDOW[0]), 0, 1)
    margins = [((PATCH - n) // 2, PATCH - n - (PATCH - n) // 2) for n in SIZE]
    patch = torch.from_numpy(np.pad(scaled, margins).transpose(axes)[None, None].copy())
    with torch.no_grad():
        logits = network(patch)[0].numpy()
    logits = logits.transpose(0, *(1 + np.argsort(axes)))
    inside = (slice(None), *(slice(before, PATCH - after) for before, after in margins))
    return np.asarray(logits[inside])


def test_prediction_equals_the_published_pipeline(import_weights: Importer, tmp_path: Path) -> None:
    folder = import_weights("--window", str(WINDOW[0]), str(WINDOW[1]))
    volume = volume_in_hounsfield_units()
    ras = nibabel.Nifti1Image(volume, np.diag([1.0, 1.0, 1.0, 1.0]))
    turned = ras.as_reoriented(ornt_transform(axcodes2ornt("RAS"), axcodes2ornt("PIL")))
    assert turned.shape == (SIZE[1], SIZE[2], SIZE[0])
    image = tmp_path / "case_0000.nii.gz"
    nibabel.save(turned, image)

    made = predictor(folder)
    made.predict_from_files_sequential([[str(image)]], [str(tmp_path / "case")], save_probabilities=True)

    expected = published_logits(volume)
    written: Any = nibabel.load(tmp_path / "case.nii.gz")
    assert "".join(nibabel.aff2axcodes(written.affine)) == "PIL"
    np.testing.assert_allclose(written.affine, turned.affine)
    segmentation = np.asarray(nibabel.as_closest_canonical(written).dataobj)
    assert (segmentation == expected.argmax(0)).mean() > 0.998
    probabilities = np.load(tmp_path / "case.npz")["probabilities"]
    softmax = torch.from_numpy(expected).softmax(0).numpy().transpose(0, 3, 2, 1)
    # nnU-Net keeps logits in half precision, and its Gaussian weights are tiny in the patch's corners
    inside = (slice(None), *[slice(2, -2)] * 3)
    np.testing.assert_allclose(probabilities[inside], softmax[inside], atol=5e-3)
    np.testing.assert_allclose(probabilities, softmax, atol=0.1)

    other_order = published_logits(volume, axes=(2, 1, 0))
    assert (segmentation == other_order.argmax(0)).mean() < 0.9, "the axis order matters to this test"
    assert (segmentation == published_logits(volume[::-1].copy()).argmax(0)).mean() < 0.9, "so does the orientation"


def test_files_of_the_folder(import_weights: Importer, capsys: pytest.CaptureFixture[str]) -> None:
    folder = import_weights("--labels", "liver", "spleen", "aorta", "veins", "--dataset-name", "Dataset042_Organs")
    printed = capsys.readouterr().out
    assert f"nnUNetv2_predict_from_modelfolder -i IMAGES -o PREDICTIONS -m {folder} -f 0" in printed
    assert "loaded   31 weights" in printed
    assert "parameter-free gate: tsm (the published setting)" in printed
    plans, dataset = contents(folder / "plans.json"), contents(folder / "dataset.json")
    assert dataset["labels"] == {"background": 0, "liver": 1, "spleen": 2, "aorta": 3, "veins": 4}
    assert dataset["channel_names"] == {"0": "CT"}
    assert plans["dataset_name"] == "Dataset042_Organs"
    assert plans["image_reader_writer"] == "NibabelIOWithReorient"
    configuration = plans["configurations"]["3d_fullres"]
    assert configuration["normalization_schemes"] == ["CTNormalization"]
    assert configuration["architecture"]["arch_kwargs"]["axes"] == "xyz"
    assert contents(folder / "dataset_fingerprint.json")["spacings"] == []
    report = contents(folder / "import_report.json")
    assert report["source"]["file"] == "model_fold0.pt"
    assert (report["source"]["epoch"], report["source"]["best_acc"]) == (2699, 0.8264)
    assert len(report["source"]["sha256"]) == 64
    assert set(report["versions"]) == {"nnunet_ext", "nnunetv2", "torch"}
    assert len(report["loaded"]) == 31
    assert len(report["filled"]) == 8
    assert all(name.startswith("skip_layers.") for name in report["dropped_aliases"])
    assert report["assumptions"]
    assert str(folder.parent) not in (folder / "import_report.json").read_text(), "no path of this machine"
    assert {p.name for p in folder.parent.iterdir()} == {"model", "model_fold0.pt"}, "nothing is left beside it"


def test_no_mirroring_at_prediction(import_weights: Importer) -> None:
    made = predictor(import_weights())
    assert made.use_mirroring
    assert made.allowed_mirroring_axes is None
    assert made.trainer_name == "SSHUNetTrainer"


@pytest.mark.parametrize("window", [(-175.0, 250.0), (-991.0, 362.0)])
def test_ct_window_becomes_nnunets_normalisation(window: tuple[float, float]) -> None:
    from nnunetv2.preprocessing.normalization.default_normalization_schemes import CTNormalization

    image = np.linspace(-2000, 2000, 999, dtype=np.float32).reshape(1, 9, 111)
    expected = np.clip((image - window[0]) / (window[1] - window[0]), 0, 1)
    normalisation = CTNormalization(
        False, intensity_properties(FolderOptions(DatasetOptions("Dataset900_X"), window=window))
    )
    np.testing.assert_allclose(normalisation.run(image.copy()), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("labels", "window", "expected"),
    [
        (None, None, (-175, 250)),
        (("btcv",), None, (-175, 250)),
        (("amos",), None, (-991, 362)),
        (("amos",), (-100.0, 100.0), (-100, 100)),
        (("liver", "spleen"), None, (-175, 250)),
    ],
)
def test_the_window_is_that_of_the_published_run(
    labels: tuple[str, ...] | None, window: tuple[float, float] | None, expected: tuple[float, float]
) -> None:
    properties = intensity_properties(FolderOptions(DatasetOptions("Dataset900_X", labels), window=window))
    assert (properties["percentile_00_5"], properties["percentile_99_5"]) == expected


def test_magnetic_resonance(import_weights: Importer, capsys: pytest.CaptureFixture[str]) -> None:
    folder = import_weights("--modality", "mr", "--spacing", "2", "1", "1")
    assert "MR: z-score over the non-zero region" in capsys.readouterr().out
    configuration = contents(folder / "plans.json")["configurations"]["3d_fullres"]
    assert configuration["normalization_schemes"] == ["ZScoreNormalization"]
    assert configuration["use_mask_for_norm"] == [True]
    assert configuration["spacing"] == [2.0, 1.0, 1.0]
    assert contents(folder / "dataset.json")["channel_names"] == {"0": "MR"}
    image = np.random.default_rng(1).normal(300, 50, (1, 20, 24, 28)).astype(np.float32)
    made = predictor(folder)
    logits = made.predict_single_npy_array(image, {"spacing": [2.0, 1.0, 1.0]})
    scaled = made.predict_single_npy_array(image * 3, {"spacing": [2.0, 1.0, 1.0]})
    assert logits.shape == (20, 24, 28)
    assert (logits == scaled).mean() > 0.99, "the scale of the intensities does not matter"


@pytest.mark.parametrize(
    "fixture", ["gsf_train_deepsup", "tsm_vfn_small", "tsm_plain_decoder", "gsm_decoder_last_gate"]
)
def test_other_networks_load_into_stock_nnunet(import_weights: Importer, fixture: str) -> None:
    made = predictor(import_weights(fixture=fixture))
    with torch.no_grad():
        assert made.network(torch.zeros(1, 1, PATCH, PATCH, PATCH)).shape == (1, 4, PATCH, PATCH, PATCH)


def test_named_published_labels(import_weights: Importer) -> None:
    folder = import_weights("--labels", "btcv", fixture="tsm_full_btcv")
    labels = contents(folder / "dataset.json")["labels"]
    assert len(labels) == 14
    assert (labels["background"], labels["spleen"], labels["left_adrenal_gland"]) == (0, 1, 13)


def test_own_dataset_json(import_weights: Importer, tmp_path: Path) -> None:
    own = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "a": 1, "b": 2, "c": 3, "d": 4},
        "file_ending": ".nii",
    }
    path = tmp_path / "own.json"
    path.write_text(json.dumps(own))
    assert contents(import_weights("--dataset-json", str(path)) / "dataset.json") == own


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": {"background": 0, "a": 1}}, "has 2 classes with the background, the weights have 5"),
        ({"labels": {"background": 0, "a": [1, 2], "b": 2}, "regions_class_order": [1, 2]}, "regions"),
        ({"channel_names": {"0": "CT", "1": "PET"}}, "names 2 channels, the weights have 1"),
        ({"file_ending": ".png"}, "must be .nii or .nii.gz"),
        ({"labels": None}, "it has no labels"),
    ],
)
def test_unsuitable_dataset_json(
    import_weights: Importer, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    own = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "a": 1, "b": 2, "c": 3, "d": 4},
        "file_ending": ".nii",
    }
    path = tmp_path / "own.json"
    path.write_text(json.dumps({**own, **change}))
    with pytest.raises(UserError, match=message):
        import_weights("--dataset-json", str(path))
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--labels", "liver"], "4 classes after the background; got labels liver"),
        (["--labels", "a", "a", "b", "c"], "4 classes after the background"),
        (["--window", "250", "-175"], "must rise from A_MIN to A_MAX"),
        (["--window", "nan", "250"], r"both finite numbers; got \(nan, 250.0\)"),
        (["--window", "-175", "inf"], "both finite numbers"),
        (["--modality", "mr", "--window", "0", "1"], "--window belongs to CT"),
        (["--spacing", "0", "1", "1"], "spacing must be positive"),
        (["--spacing", "nan", "1", "1"], r"\(z, y, x\), each a finite number; got \(nan, 1.0, 1.0\)"),
        (["--spacing", "1", "1", "inf"], "each a finite number"),
        (["--dataset-name", "Organs"], "must look like Dataset900_Name"),
        (["--patch-size", "36", "36", "36"], "must be divisible by 8"),
        (["--gate", "gsm"], "no gate parameters"),
        (["--gate-pos", "4"], "gate position 4 does not exist"),
        (["--dataset-json", "absent.json"], "cannot read absent.json"),
    ],
)
def test_impossible_options(import_weights: Importer, tmp_path: Path, arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        import_weights(*arguments)
    assert not (tmp_path / "model").exists()


def test_gates_can_be_told(import_weights: Importer) -> None:
    folder = import_weights("--gate", "tsm", "--gate-pos", "1", "--no-gate-bottleneck", "--no-gate-decoder")
    kwargs = contents(folder / "plans.json")["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    assert kwargs["gate_stages"] == [True, False, True, False]
    assert kwargs["gate_decoder"] == [False, False, False]
    assert any("tsm (as told)" in line for line in contents(folder / "import_report.json")["assumptions"])


def test_negative_gate_position(import_weights: Importer) -> None:
    folder = import_weights("--gate-pos", "-1")
    kwargs = contents(folder / "plans.json")["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    assert kwargs["gate_decoder"] == [False, False, True]


def test_overwriting(import_weights: Importer, tmp_path: Path) -> None:
    folder = import_weights()
    with pytest.raises(UserError, match="exists; choose another folder, or add --overwrite"):
        import_weights("--window", "0", "1")
    assert contents(folder / "plans.json")["foreground_intensity_properties_per_channel"]["0"]["mean"] == -175
    import_weights("--window", "0", "1", "--overwrite")
    assert contents(folder / "plans.json")["foreground_intensity_properties_per_channel"]["0"]["mean"] == 0
    assert {p.name for p in tmp_path.iterdir()} == {"model", "model_fold0.pt"}


def test_somebody_elses_folder_is_never_replaced(import_weights: Importer, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="not an earlier import"):
        import_weights("--overwrite")
    assert (tmp_path / "model" / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("No space left on device")])
def test_failing_write_leaves_nothing(
    import_weights: Importer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    save = torch.save

    def full(content: Any, path: Path) -> None:
        if path.name == "checkpoint_final.pth":
            raise error
        save(content, path)

    import_weights()
    before = (tmp_path / "model" / "fold_0" / "checkpoint_final.pth").read_bytes()
    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match=r"cannot write the model folder .*: .*No space left on device"):
        import_weights("--overwrite")
    assert (tmp_path / "model" / "fold_0" / "checkpoint_final.pth").read_bytes() == before, "the earlier import stays"
    assert {p.name for p in tmp_path.iterdir()} == {"model", "model_fold0.pt"}


def test_weights_start_another_training(import_weights: Importer) -> None:
    """`-pretrained_weights`: everything but the heads, in nnU-Net's own axis order and to another number of classes."""
    from nnunetv2.run.load_pretrained_weights import load_pretrained_weights

    folder = import_weights()
    state, constructor = fixture_state(FIXTURE)
    configuration = infer_configuration(
        {**state, "output_block.conv.conv.weight": torch.zeros(9, 8, 1, 1, 1)}, gate_choice(constructor)
    )
    network = build_network(configuration, axes="zyx")
    load_pretrained_weights(network, str(folder / "fold_0" / "checkpoint_final.pth"))
    loaded = network.state_dict()
    assert torch.equal(loaded["encoder.stages.0.conv1.weight"], state["input_block.conv1.conv.weight"])
    assert torch.equal(loaded["decoder.fusion.2.weight"], state["output_block.conv1.conv.weight"])
    assert loaded["decoder.seg_layers.2.weight"].shape[0] == 9


def test_export_and_install_as_zip(import_weights: Importer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands nnUNetv2_export_model_to_zip and nnUNetv2_install_pretrained_model_from_zip."""
    from nnunetv2.model_sharing import model_export, model_import
    from nnunetv2.utilities import dataset_name_id_conversion, file_path_utilities

    model = "results/Dataset900_SSHUNetImport/SSHUNetTrainer__SSHUNetPlans_Imported__3d_fullres"
    folder = import_weights(folder=model)
    results, elsewhere = tmp_path / "results", tmp_path / "elsewhere"
    for module in (model_export, file_path_utilities, dataset_name_id_conversion):
        monkeypatch.setattr(module, "nnUNet_results", str(results), raising=False)
    zipped = tmp_path / "model.zip"
    model_export.export_pretrained_model(
        "Dataset900_SSHUNetImport", str(zipped), ("3d_fullres",), "SSHUNetTrainer", "SSHUNetPlans_Imported", (0,)
    )
    monkeypatch.setattr(model_import, "nnUNet_results", str(elsewhere))
    model_import.install_model_from_zip_file(str(zipped))
    installed = elsewhere / Path(model).relative_to("results")
    again = predictor(installed).network.state_dict()
    original = predictor(folder).network.state_dict()
    assert all(torch.equal(again[name], original[name]) for name in original)
