"""`nnunet-ext import-weights unetrpp`: published checkpoints to predictions by stock nnU-Net, and what is refused."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK
import torch
from published_unetrpp import (
    SMALL,
    Command,
    published_network,
    save_checkpoint,
    save_pickle,
    side_file,
    small_state,
    v1_plans,
)

from nnunet_ext.architectures.unetrpp_plans import PRESETS, Preset
from nnunet_ext.cli import main
from nnunet_ext.lookup import install

TOLD = ("--patch-size", "16", "64", "64", "--spacing", "3", "0.76", "0.75")
INTENSITIES = ("--intensities", "mean=100", "std=80", "percentile_00_5=-50", "percentile_99_5=300")
CT = (*TOLD, "--modality", "ct", *INTENSITIES)
NAME = "model_final_checkpoint.model"

Importer = Callable[..., Path]


@pytest.fixture
def import_weights(tmp_path: Path) -> Importer:
    """Import a small network's checkpoint with command-line arguments; returns the model folder."""

    def run(*arguments: str, kind: str = "tied") -> Path:
        if not (tmp_path / NAME).exists():
            save_checkpoint(tmp_path / NAME, small_state(kind))
        assert main(command(tmp_path, *arguments)) == 0
        return tmp_path / "model"

    return run


def command(folder: Path, *arguments: str) -> list[str]:
    return ["import-weights", "unetrpp", str(folder / NAME), "-o", str(folder / "model"), *arguments]


def refusal(capsys: pytest.CaptureFixture[str], folder: Path, *arguments: str) -> str:
    """The sentence with which an import ends; nothing may be written."""
    if not (folder / NAME).exists():
        save_checkpoint(folder / NAME, small_state("tied"))
    capsys.readouterr()
    assert main(command(folder, *arguments)) == 1
    assert not (folder / "model").exists()
    said = capsys.readouterr().err
    assert said.startswith("nnunet-ext: ")
    assert said.count("\n") == 1
    assert len(said) < 700
    return said


def contents(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(path.read_text())
    return loaded


def predictor(folder: Path) -> Any:
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    install()
    made = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    made.initialize_from_trained_model_folder(str(folder), (0,))
    return made


def published_probabilities(kind: str, normalised: np.ndarray) -> np.ndarray:
    """The published network on (channels, z, y, x), mirrored along all axes."""
    network, x = published_network(kind), torch.from_numpy(normalised[None].astype(np.float32))
    subsets = [axes for n in range(4) for axes in itertools.combinations((2, 3, 4), n)]
    with torch.no_grad():
        logits = sum(torch.flip(network(torch.flip(x, axes))[0], axes) for axes in subsets)
    return np.asarray((torch.as_tensor(logits) / len(subsets))[0].softmax(0))


def predict(folder: Path, channels: np.ndarray, spacing: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Segmentation and probabilities by stock nnU-Net, of images (channels, z, y, x) in files."""
    files = []
    for i, channel in enumerate(channels):
        image = SimpleITK.GetImageFromArray(channel)
        image.SetSpacing(tuple(reversed(spacing)))
        files.append(str(folder.parent / f"case_{i:04d}.nii.gz"))
        SimpleITK.WriteImage(image, files[-1])
    predictor(folder).predict_from_files_sequential([files], [str(folder.parent / "case")], save_probabilities=True)
    segmentation = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(folder.parent / "case.nii.gz")))
    return segmentation, np.load(folder.parent / "case.npz")["probabilities"]


def images(kind: str) -> np.ndarray:
    """(channels, z, y, x): one patch without zeros."""
    channels = {"no_bias": 4}.get(kind, 1)
    values = np.random.default_rng(0).normal(100, 80, (channels, *SMALL[kind].patch)).astype(np.float32)
    return np.where(values == 0, 1, values)


def check(folder: Path, kind: str, channels: np.ndarray, normalised: np.ndarray, spacing: tuple[float, ...]) -> None:
    segmentation, probabilities = predict(folder, channels, spacing)
    expected = published_probabilities(kind, normalised)
    # nnU-Net adds windows up in half precision, with Gaussian weights that are tiny towards the patch's corners
    inside = (slice(None), *(slice(edge // 8, -(edge // 8)) for edge in segmentation.shape))
    np.testing.assert_allclose(probabilities[inside], expected[inside], atol=1e-2)
    assert (segmentation == expected.argmax(0)).mean() > 0.99
    mirrored = published_probabilities(kind, normalised[:, ::-1].copy())
    assert (segmentation == mirrored.argmax(0)).mean() < 0.9, "the position matters to this test"


def test_prediction_from_plans_equals_the_published_network(import_weights: Importer, tmp_path: Path) -> None:
    """CT by the plans of the side file, which lies beside the checkpoint and is found there."""
    save_pickle(tmp_path / f"{NAME}.pkl", side_file(v1_plans()))
    folder = import_weights()
    volume = images("tied")
    normalised = (np.clip(volume, -50, 300) - 100) / 80
    check(folder, "tied", volume, normalised, (3.0, 0.76, 0.75))


@pytest.mark.parametrize("kind", ["separate", "no_bias"])
def test_prediction_from_options_equals_the_published_network(import_weights: Importer, kind: str) -> None:
    """MR as the user describes it."""
    patch = map(str, SMALL[kind].patch)
    options = ("--modality", "mr", "--patch-size", *patch, "--spacing", "1", "1", "1", "--non-zero-mask")
    folder = import_weights(*options, kind=kind)
    channels = images(kind)
    mean, std = channels.mean((1, 2, 3), keepdims=True), channels.std((1, 2, 3), keepdims=True)
    check(folder, kind, channels, (channels - mean) / std, (1.0, 1.0, 1.0))


def test_files_of_the_folder(import_weights: Importer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = import_weights(*CT, "--labels", "acdc", "--dataset-name", "Dataset027_Heart")
    printed = capsys.readouterr().out
    assert f"use      nnUNetv2_predict_from_modelfolder -i IMAGES -o PREDICTIONS -m {folder} -f 0" in printed
    assert "loaded   405 weights" in printed
    assert "zeroed   2 weights" in printed
    assert "dropped  28 second names" in printed
    plans, dataset = contents(folder / "plans.json"), contents(folder / "dataset.json")
    assert plans["plans_name"] == "UNETRPPPlans_Imported"
    assert dataset["labels"] == {"background": 0, "right_ventricle": 1, "myocardium": 2, "left_ventricle": 3}
    assert dataset["channel_names"] == {"0": "CT"}
    configuration = plans["configurations"]["3d_fullres"]
    assert configuration["architecture"]["arch_kwargs"]["sa_layout"] == "legacy"
    assert configuration["spacing"] == [3, 0.76, 0.75]
    properties = plans["foreground_intensity_properties_per_channel"]["0"]
    assert (properties["mean"], properties["std"], properties["percentile_00_5"]) == (100, 80, -50)
    assert (properties["median"], properties["min"], properties["max"]) == (100, -50, 300)
    assert contents(folder / "dataset_fingerprint.json")["shapes_after_crop"] == []
    assert contents(folder / "fold_0" / "validation" / "summary.json")["metric_per_case"] == []
    assert (folder / "fold_0" / "progress.png").is_file()
    report = contents(folder / "import_report.json")
    assert report["source"]["epoch"] == 1000
    assert report["source"]["best_validation_criterion"] == 0.85
    assert report["configuration"]["projections"] == "tied"
    assert str(tmp_path) not in (folder / "import_report.json").read_text(), "no path of this machine"
    checkpoint = torch.load(folder / "fold_0" / "checkpoint_final.pth", weights_only=False)
    assert checkpoint["inference_allowed_mirroring_axes"] == (0, 1, 2)
    assert checkpoint["trainer_name"] == "UNETRPPTrainer"
    assert set(checkpoint) == {
        *("network_weights", "optimizer_state", "grad_scaler_state", "logging", "_best_ema", "current_epoch"),
        *("init_args", "trainer_name", "inference_allowed_mirroring_axes"),
    }


def test_plans_are_named(import_weights: Importer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plans = save_pickle(tmp_path / "plans.pkl", v1_plans())
    folder = import_weights("--plans", str(plans))
    assert "those of plans.pkl." in capsys.readouterr().out
    assert contents(folder / "plans.json")["configurations"]["3d_fullres"]["batch_dice"] is True


def test_side_file_is_mentioned_and_options_replace_it(
    import_weights: Importer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_pickle(tmp_path / f"{NAME}.pkl", side_file(v1_plans()))
    import_weights()
    assert f"those of {NAME}.pkl, found beside the checkpoint." in capsys.readouterr().out
    folder = import_weights(*CT, "--spacing", "1", "1", "1", "--overwrite")
    assert "found beside the checkpoint" not in capsys.readouterr().out
    assert contents(folder / "plans.json")["configurations"]["3d_fullres"]["spacing"] == [1, 1, 1]


def test_published_patch_where_the_plans_have_another(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], pytestconfig: pytest.Config
) -> None:
    """The reference's plans may hold nnU-Net's own patch size (specification unetrpp 4.4)."""
    import golden_tools as golden
    from golden_adapter import reference_weights

    spec, _ = golden.load(pytestconfig.rootpath / "tests" / "golden" / "unetrpp" / "acdc_small")
    save_checkpoint(tmp_path / NAME, reference_weights(spec))
    plans = v1_plans("tied", "MRI")
    plans["plans_per_stage"][1]["patch_size"] = np.array([20, 256, 224])
    save_pickle(tmp_path / f"{NAME}.pkl", side_file(plans))
    assert main(command(tmp_path)) == 0
    printed = capsys.readouterr().out
    assert f"The patch size in {NAME}.pkl, 20 x 256 x 224, does not fit the weights; that of the" in printed
    assert "for the published acdc weights add --labels acdc" in printed
    configuration = contents(tmp_path / "model" / "plans.json")["configurations"]["3d_fullres"]
    assert configuration["patch_size"] == [16, 160, 160]
    assert configuration["use_mask_for_norm"] == [True]


def test_patch_size_beside_plans(import_weights: Importer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plans = v1_plans()
    plans["plans_per_stage"][1]["patch_size"] = np.array([20, 256, 224])
    save_pickle(tmp_path / f"{NAME}.pkl", side_file(plans))
    said = refusal(capsys, tmp_path)
    assert "patch size 20 x 256 x 224 is not divisible" in said
    assert "give --patch-size Z Y X" in said
    folder = import_weights("--patch-size", "16", "64", "64")
    assert "a patch is 16 x 64 x 64 voxels in this order (z, y, x) is not checked." in capsys.readouterr().out
    assert contents(folder / "plans.json")["configurations"]["3d_fullres"]["patch_size"] == [16, 64, 64]


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the small network had been published."""
    options = {"projections": "tied", "fusion": "concat", "n_res_blocks": 1}
    monkeypatch.setitem(PRESETS, "small", Preset(SMALL["tied"].patch, (2, 4, 4), 2, 1, 4, options))


@pytest.mark.usefixtures("published")
def test_as_many_tokens_as_published(
    import_weights: Importer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mistaken = ("--patch-size", "16", "32", "128", *CT[4:])
    said = refusal(capsys, tmp_path, *mistaken)
    assert "patch size 16 x 32 x 128 (z, y, x) is not that of the published small network, 16 x 64 x 64," in said
    assert "give --patch-size 16 64 64, or" in said
    import_weights(*CT)
    assert "is not checked" not in capsys.readouterr().out
    folder = import_weights(*mistaken, "--unpublished-patch", "--overwrite")
    assert "a patch is 16 x 32 x 128 voxels in this order (z, y, x) is not checked." in capsys.readouterr().out
    assert contents(folder / "plans.json")["configurations"]["3d_fullres"]["patch_size"] == [16, 32, 128]


@pytest.mark.usefixtures("published")
def test_plans_with_as_many_tokens_as_published(
    import_weights: Importer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plans = v1_plans()
    plans["plans_per_stage"][1]["patch_size"] = np.array([16, 32, 128])
    save_pickle(tmp_path / f"{NAME}.pkl", side_file(plans))
    folder = import_weights()
    printed = capsys.readouterr().out
    assert "16 x 32 x 128, fits only the numbers of the weights' tokens (--unpublished-patch takes it" in printed
    assert "that of the published small network is used: 16 x 64 x 64 (z, y, x)." in printed
    assert contents(folder / "plans.json")["configurations"]["3d_fullres"]["patch_size"] == [16, 64, 64]
    import_weights("--unpublished-patch", "--overwrite")
    assert contents(folder / "plans.json")["configurations"]["3d_fullres"]["patch_size"] == [16, 32, 128]
    plans["plans_per_stage"][1]["patch_size"] = np.array([20, 256, 224])
    save_pickle(tmp_path / f"{NAME}.pkl", side_file(plans))
    assert main(command(tmp_path, "--unpublished-patch", "--overwrite")) == 1
    assert "give --patch-size Z Y X" in capsys.readouterr().err


def test_everything_that_is_missing_is_asked_for_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refusal(capsys, tmp_path)
    for part in (
        "missing: --patch-size Z Y X (voxels), --spacing Z Y X (mm), --modality ct or mr, for CT --intensities mean=..",
        "--plans FILE.pkl",
    ):
        assert part in said
    said = refusal(capsys, tmp_path, *TOLD, "--modality", "ct")
    assert "missing: --intensities mean=.. std=.. percentile_00_5=.. percentile_99_5=.. (once a channel)." in said
    assert "missing: --spacing Z Y X (mm)." in refusal(capsys, tmp_path, *TOLD[:4], "--modality", "mr")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--patch-size", "16", "64", "96", *CT[4:]), "3072 tokens in stage 1, these weights are for 2048"),
        (("--patch-size", "16", "64", "65", *CT[4:]), "not divisible by the strides of these weights, 16 x 32 x 32"),
        ((*TOLD, "--spacing", "0", "1", "1"), "spacing must be positive"),
        ((*TOLD, "--spacing", "nan", "1", "1"), "(z, y, x), each a finite number; got (nan, 1.0, 1.0)"),
        ((*TOLD, "--spacing", "1", "inf", "1"), "each a finite number"),
        ((*TOLD, "--modality", "mr", *INTENSITIES), "--intensities belongs to CT"),
        ((*CT, "--non-zero-mask"), "--non-zero-mask belongs to MR"),
        ((*CT, *INTENSITIES), "1 input channels; give --intensities that many times, got 2"),
        ((*TOLD, "--modality", "ct", *INTENSITIES[:-1]), "missing: percentile_99_5"),
        ((*TOLD, "--modality", "ct", "--intensities", "mean:3"), "each once; got 'mean:3'"),
        ((*TOLD, "--modality", "ct", "--intensities", "mean=x"), "'x' is not a number"),
        ((*TOLD, "--modality", "ct", *INTENSITIES, "max=inf"), "must be finite"),
        ((*TOLD, "--modality", "ct", "--intensities", "mean=nan", *INTENSITIES[2:]), "must be finite"),
        ((*TOLD, "--modality", "ct", *INTENSITIES[:2], "std=0", *INTENSITIES[3:]), "with std > 0"),
        ((*TOLD, "--modality", "ct", *INTENSITIES, "sd=9"), "each once; got 'sd=9'"),
        ((*CT, "--labels", "synapse"), "3 classes after the background"),
        ((*CT, "--dataset-name", "Heart"), "must look like Dataset900_Name"),
        (("--plans", "absent.pkl"), "absent.pkl: there is no such file"),
        ((*CT, "--plans", "plans.pkl"), "--plans already says what --spacing"),
    ],
)
def test_impossible_options(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    assert message in refusal(capsys, tmp_path, *arguments)


def test_options_of_another_method(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for method, option in (("unetrpp", "--gate"), ("unetrpp", "--window"), ("sshunet", "--plans"), ("nobody", "-o")):
        with pytest.raises(SystemExit):
            main(["import-weights", method, "a.pt", "-o", str(tmp_path / "x"), option, "tsm"])
    assert "invalid choice: 'nobody'" in capsys.readouterr().err


def test_files_mixed_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As users of the original did (its issue 57)."""
    plans = save_pickle(tmp_path / "plans.pkl", side_file(v1_plans()))
    checkpoint = save_checkpoint(tmp_path / NAME, small_state("tied"))
    said = refusal(capsys, tmp_path, "--plans", str(checkpoint))
    assert f"{NAME}: this is a PyTorch checkpoint, not a pickle of plans" in said
    plans.replace(checkpoint)
    said = refusal(capsys, tmp_path)
    assert f"{NAME}: this is a plain Python pickle" in said
    assert "give the .model file as the checkpoint" in said


def test_plans_of_another_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for content, what in (
        (v1_plans(num_classes=13), "has 14 classes with the background, the weights have 4"),
        (v1_plans("no_bias", "MRI"), "has 4 input channels, the weights have 1"),
    ):
        save_pickle(tmp_path / f"{NAME}.pkl", side_file(content))
        assert what in refusal(capsys, tmp_path)


def test_dangerous_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trap = tmp_path / "executed"
    dangerous = Command(f"touch {trap}")
    save_pickle(tmp_path / f"{NAME}.pkl", {**side_file(v1_plans()), "name": dangerous})
    assert "nothing was executed" in refusal(capsys, tmp_path)
    save_checkpoint(tmp_path / NAME, small_state("tied"), best_stuff=dangerous)
    assert "asks for Python objects" in refusal(capsys, tmp_path, *CT)
    assert not trap.exists()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("cut", "not a readable PyTorch checkpoint, perhaps cut off or damaged"),
        ("edited", "checkpoint is damaged or edited: epa_block.E and epa_block.F"),
        ("nnformer", "not a UNETR++ checkpoint: unetr_pp_encoder"),
        ("prefixed", ""),
    ],
)
def test_wrong_files(tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str, message: str) -> None:
    state, path = small_state("tied"), tmp_path / NAME
    if damage == "edited":
        state["unetr_pp_encoder.stages.1.1.epa_block.F.bias"] += 1
    if damage == "nnformer":
        state = {"model_down.patch_embed.proj1.conv1.weight": torch.zeros(2), "final.0.up.weight": torch.zeros(2)}
    if damage == "prefixed":
        save_checkpoint(path, {f"module.{key}": value for key, value in state.items()})
        assert main(command(tmp_path, *CT)) == 0
        return
    save_checkpoint(path, state)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-5000])
    assert message in refusal(capsys, tmp_path, *CT)
