"""`nnunet-ext import-weights swinunet` and `unet2d`: layouts, starts of trainings, model folders, and refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK
import torch
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from small_swinunet import WIDTH, backbone, block, encoded, network, published
from torch import Tensor, nn

from nnunet_ext.architectures.unet2d import PublishedUNet2d, unet2d_architecture
from nnunet_ext.cli import main
from nnunet_ext.lookup import install
from nnunet_ext.weights.loading import CheckpointError
from nnunet_ext.weights.swinunet import adapt_channels, canonical_state, initialise, layout, resize_table

SOURCES = ("official", "timm", "torchvision")
SPACING = ("--spacing", "1", "1")


def plans_file(folder: Path, channels: int = 1, **options: Any) -> Path:
    """Plans as far as the command reads them."""
    settings = {
        "patch_size": [32, 32],
        "normalization_schemes": ["ZScoreNormalization"] * channels,
        "architecture": block(**options),
    }
    volume = {**settings, "patch_size": [32, 32, 32]}
    path = folder / "SwinUNetPlans.json"
    path.write_text(json.dumps({"plans_name": path.stem, "configurations": {"2d": settings, "3d_fullres": volume}}))
    return path


def command(folder: Path, file: str, *arguments: str, method: str = "swinunet") -> list[str]:
    return ["import-weights", method, str(folder / file), "-o", str(folder / "out"), *arguments]


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """The sentence with which an import ends; nothing may be written."""

    def run(content: Any, *arguments: str, method: str = "swinunet") -> str:
        torch.save(content, tmp_path / "weights.pth")
        assert main(command(tmp_path, "weights.pth", *arguments, method=method)) == 1
        assert not (tmp_path / "out").exists()
        said = capsys.readouterr().err
        assert said.startswith("nnunet-ext: ")
        assert said.count("\n") == 1
        assert len(said) < 700
        return said

    return run


# ------------------------------------------------------------------------------------------------------------ backbones


@pytest.mark.parametrize("source", SOURCES)
def test_layouts_give_the_same_features(source: str) -> None:
    """On a full forward pass, as the backbone computes it, for three colours."""
    theirs, state = backbone(source)
    assert layout(state) == source
    canonical, left = canonical_state(state)
    assert sorted(key.rsplit(".", 1)[-1] for key in left) == ["bias", "weight"]
    ours = network((224, 224), channels=3)
    report = initialise(ours, canonical)
    assert report.left == ()
    seen: list[Tensor] = []
    ours.norm.register_forward_hook(lambda _m, _i, y: seen.append(y))
    image = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        ours(image)
    torch.testing.assert_close(seen[0], encoded(source, theirs, image), rtol=1e-4, atol=1e-5)


def test_encoder_blocks_are_copied_to_the_decoder() -> None:
    """Six blocks in the third stage, as Swin-T has: the two that our stage has are used (specification selfreg 2.2)."""
    _, state = backbone("official", (2, 2, 6, 2))
    canonical, _ = canonical_state(state)
    made = network(channels=3)
    fresh = {name: value.clone() for name, value in made.state_dict().items()}
    report = initialise(made, canonical)
    now = made.state_dict()
    for k, stage in ((1, 2), (2, 1), (3, 0)):
        for name in (n for n in now if n.startswith(f"layers_up.{k}.blocks.")):
            assert torch.equal(now[name], canonical[name.replace(f"layers_up.{k}", f"layers.{stage}")])
            assert name in report.copied
    assert {name.split(".blocks.")[1][0] for name in report.left} == {"2", "3", "4", "5"}
    assert all(name.startswith("layers.2.blocks.") for name in report.left)
    groups = ("concat_back_dim", "layers_up.0", "layers_up.1.upsample", "layers_up.2.upsample", "norm_up", "up")
    assert all(name.startswith(groups) for name in report.filled)
    for name in (*report.filled, "decoder.seg_layers.0.weight"):
        assert torch.equal(now[name], fresh[name])


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_first_convolution_is_adapted(channels: int) -> None:
    """n equal channels give what three equal colours give."""
    weight, image = torch.randn(5, 3, 4, 4), torch.randn(1, 1, 8, 8)
    adapted = adapt_channels(weight, channels)
    assert adapted.shape == (5, channels, 4, 4)
    expected = nn.functional.conv2d(image.expand(-1, 3, -1, -1), weight, stride=4)
    result = nn.functional.conv2d(image.expand(-1, channels, -1, -1), adapted, stride=4)
    torch.testing.assert_close(result, expected)


def test_position_bias_tables_of_other_windows() -> None:
    table = torch.arange(25.0)[:, None] * torch.tensor([1.0, 2.0])  # window 3: 5 x 5
    assert torch.equal(resize_table(table, 3), table)
    centre = resize_table(table, 2)
    assert centre[:, 0].tolist() == [6, 7, 8, 11, 12, 13, 16, 17, 18]
    larger = resize_table(table, 5)
    assert larger.shape == (81, 2)
    torch.testing.assert_close(larger[40], table[12])
    for rows in (26, 36):
        with pytest.raises(CheckpointError, match=f"{rows} rows"):
            resize_table(torch.zeros(rows, 2), 2)


@pytest.mark.parametrize("source", SOURCES)
def test_a_start_for_a_training(source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The file goes through nnU-Net's own loading, for images of two channels; heads stay."""
    _, state = backbone(source)
    if source == "timm":
        from safetensors.torch import save_file

        save_file({key: value.contiguous() for key, value in state.items()}, tmp_path / "weights.safetensors")
    else:
        torch.save({"model": state} if source == "official" else state, tmp_path / "weights.pth")
    file = "weights.safetensors" if source == "timm" else "weights.pth"
    plans = plans_file(tmp_path, channels=2)
    assert main(command(tmp_path, file, "--plans", str(plans))) == 0
    said = capsys.readouterr().out
    for word in ("loaded", "copied", "left", "filled", "3 channels were adapted to 2", "-pretrained_weights"):
        assert word in said
    made = network(channels=2)
    head = made.decoder.seg_layers[0].weight.clone()
    load_pretrained_weights(made, str(tmp_path / "out"))
    assert torch.equal(made.decoder.seg_layers[0].weight, head)
    canonical, _ = canonical_state(state)
    assert torch.equal(made.layers[3].blocks[1].mlp.fc2.weight, canonical["layers.3.blocks.1.mlp.fc2.weight"])
    first = torch.load(tmp_path / "out", weights_only=True)
    assert main(command(tmp_path, file, "--plans", str(plans), "--overwrite")) == 0
    again = torch.load(tmp_path / "out", weights_only=True)
    assert all(torch.equal(again["network_weights"][key], value) for key, value in first["network_weights"].items())
    assert again["import_report"]["configuration"] == {"layout": source}


# ------------------------------------------------------------------------------------------------------- model folders


def wrapped(state: dict[str, Tensor], wrapping: str) -> Any:
    prefix = "".join(part for part in ("module.", "swin_unet.") if part in wrapping)
    content: Any = {f"{prefix}{key}": value for key, value in state.items()}
    if "swin_unet." in prefix:
        content[f"{prefix}layers.0.blocks.1.attn_mask"] = torch.zeros(4, 49, 49)
        content[f"{prefix}layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(49, 49, dtype=torch.int64)
    entry = next((name for name in ("state_dict", "model") if f"[{name}]" in wrapping), None)
    return content if entry is None else {entry: content, "epoch": 3}


@pytest.mark.parametrize(
    "wrapping", ["", "swin_unet.", "module.swin_unet.", "[model]module.swin_unet.", "[state_dict]swin_unet."]
)
def test_published_weights_in_all_wrappings(wrapping: str, tmp_path: Path) -> None:
    original = network(channels=3, classes=4)
    torch.save(wrapped(published(original.state_dict()), wrapping), tmp_path / "weights.pth")
    assert main(command(tmp_path, "weights.pth", *SPACING, "--patch-size", "64", "64", "--labels", "acdc")) == 0
    content = torch.load(tmp_path / "out" / "fold_0" / "checkpoint_final.pth", weights_only=False)
    made = network((64, 64), classes=4)
    made.load_state_dict(content["network_weights"], strict=True)
    image = torch.randn(1, 1, 50, 64)
    with torch.no_grad():
        torch.testing.assert_close(made(image), original(image.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-5)
    plans = json.loads((tmp_path / "out" / "plans.json").read_text())
    assert list(plans["configurations"]) == ["2d"]


def write_image(path: Path) -> np.ndarray:
    """3 slices of 40 x 48 pixels of 1 mm, in HU."""
    values = np.random.default_rng(0).normal(50, 100, (3, 40, 48)).astype(np.float32)
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(values), str(path))
    return values


def predict(folder: Path, image: Path, output: Path) -> tuple[np.ndarray, Any]:
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    install()
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False, use_gaussian=False)
    predictor.initialize_from_trained_model_folder(str(folder), (0,))
    predictor.predict_from_files_sequential([[str(image)]], [str(output)])
    segmentation: np.ndarray = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(f"{output}.nii.gz"))
    return segmentation, predictor


@pytest.mark.parametrize("method", ["swinunet", "unet2d"])
def test_stock_prediction(method: str, tmp_path: Path) -> None:
    """A slice is mapped to [0, 1], padded, and gets the class of the largest logit of the original network."""
    torch.manual_seed(0)
    original: Any
    if method == "swinunet":
        original = network((64, 64), channels=3)
        state = published(original.state_dict())
    else:
        original = PublishedUNet2d(1, 3, **{**unet2d_architecture(4)["arch_kwargs"], "conv_op": nn.Conv2d}).eval()
        state = {key.replace("decoder.seg_layers.0", "outc.conv"): v for key, v in original.state_dict().items()}
    torch.save({f"module.{key}": value for key, value in state.items()}, tmp_path / "weights.pth")
    assert main(command(tmp_path, "weights.pth", *SPACING, "--patch-size", "40", "48", method=method)) == 0
    values = write_image(tmp_path / "case_0000.nii.gz")
    segmentation, predictor = predict(tmp_path / "out", tmp_path / "case_0000.nii.gz", tmp_path / "predicted")
    assert predictor.allowed_mirroring_axes is None
    scaled = torch.from_numpy((np.clip(values, -125, 275) + 125) / 400)[:, None]
    with torch.no_grad():
        logits = original(scaled.expand(-1, original.input_channels, -1, -1))
    agreement = (logits.argmax(1).numpy() == segmentation).mean()
    assert agreement > 0.99


# ------------------------------------------------------------------------------------------------------------ refusals


def test_a_published_network_starts_a_training_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    original = network(channels=3, classes=9)
    torch.save(published(original.state_dict()), tmp_path / "weights.pth")
    assert main(command(tmp_path, "weights.pth", "--plans", str(plans_file(tmp_path)))) == 0
    assert "filled" not in capsys.readouterr().out
    made = network()
    load_pretrained_weights(made, str(tmp_path / "out"))
    assert torch.equal(made.concat_back_dim[1].weight, original.concat_back_dim[1].weight)
    assert torch.equal(made.layers_up[1].blocks[0].norm1.weight, original.layers_up[1].blocks[0].norm1.weight)


def test_imagenet_weights_need_plans(refused: Callable[..., str]) -> None:
    assert "holds ImageNet weights (timm layout)" in refused(backbone("timm")[1])


def test_a_folder_needs_a_spacing(refused: Callable[..., str]) -> None:
    assert "--spacing Y X" in refused(published(network(channels=3).state_dict()))


@pytest.mark.parametrize("source", SOURCES)
def test_a_few_names_of_swin_t(source: str, refused: Callable[..., str], tmp_path: Path) -> None:
    _, state = backbone(source)
    known = {"features.0.0.weight", "features.1.0.attn.qkv.weight", "features.7.1.norm1.weight"}
    known |= {"patch_embed.proj.weight", "layers.0.blocks.0.attn.qkv.weight", "layers.3.blocks.1.norm1.weight"}
    few = {key: value for key, value in state.items() if key in known}
    assert len(few) == 3
    said = refused(few, "--plans", str(plans_file(tmp_path)))
    assert "are missing: found 3 of ours, but not layers.0.blocks.0.attn.proj.bias" in said
    assert "Give a whole file of Swin-T" in said


@pytest.mark.parametrize("lost", ["layers.2.blocks.1.", "layers.3.blocks.", "layers.1.downsample.", "patch_embed.norm"])
def test_a_part_of_the_encoder_is_missing(lost: str) -> None:
    """Block 1 of the third stage has a successor; the other parts every Swin-T has."""
    canonical, _ = canonical_state(backbone("official", (2, 2, 6, 2))[1])
    made = network(channels=3)
    before = {name: value.clone() for name, value in made.state_dict().items()}
    with pytest.raises(CheckpointError, match=f"are missing: .* but not {lost}"):
        initialise(made, {name: value for name, value in canonical.items() if not name.startswith(lost)})
    assert all(torch.equal(value, before[name]) for name, value in made.state_dict().items())


def test_a_shallower_file_fills_our_further_blocks() -> None:
    canonical, _ = canonical_state(backbone("official", (2, 2, 1, 2))[1])
    report = initialise(network(channels=3), canonical)
    assert {name[:18] for name in report.filled if name.startswith("layers.")} == {"layers.2.blocks.1."}


def test_torchvision_s_convnext(refused: Callable[..., str], tmp_path: Path) -> None:
    state = {"features.0.0.weight": torch.zeros(96, 3, 4, 4), "features.1.0.block.0.weight": torch.zeros(96, 1, 7, 7)}
    said = refused(state, "--plans", str(plans_file(tmp_path)))
    assert "neither a Swin-Unet nor Swin-T's weights: found features.0.0.weight" in said
    assert "torchvision (swin_t)" in said


def test_plans_that_do_not_fit(refused: Callable[..., str], tmp_path: Path) -> None:
    state = backbone("official")[1]
    assert "2D network" in refused(state, "--plans", str(plans_file(tmp_path)), "-c", "3d_fullres")
    assert "'4d'" in refused(state, "--plans", str(plans_file(tmp_path)), "-c", "4d")
    wider = plans_file(tmp_path, base_width=2 * WIDTH)
    said = refused(state, "--plans", str(wider))
    assert "(8, 3, 4, 4) in the file" in said or "(8, 1, 4, 4) in the file" in said
    assert "SwinUNetPlanner without _W<n>" in said


BIAS = "layers.0.blocks.0.attn.relative_position_bias_table"


@pytest.mark.parametrize(
    ("name", "value", "found"),
    [
        (BIAS, torch.zeros(169), "torch.float32 of shape (169,)"),
        (BIAS, torch.zeros(169, 1, dtype=torch.int64), "torch.int64 of shape (169, 1)"),
        (BIAS, torch.zeros(0, 1), "torch.float32 of shape (0, 1)"),
        ("patch_embed.proj.weight", torch.tensor(1.0), "torch.float32 of shape ()"),
        ("patch_embed.proj.weight", torch.zeros(WIDTH), "torch.float32 of shape (8,)"),
        ("patch_embed.proj.weight", torch.zeros(WIDTH, 0, 4, 4), "torch.float32 of shape (8, 0, 4, 4)"),
        ("patch_embed.proj.weight", torch.zeros(WIDTH, 3, 4, 4, dtype=torch.int64), "torch.int64 of shape (8, 3, 4, 4"),
    ],
)
def test_weights_of_another_type_or_axes(
    name: str, value: Tensor, found: str, refused: Callable[..., str], tmp_path: Path
) -> None:
    said = refused({**backbone("official")[1], name: value}, "--plans", str(plans_file(tmp_path)))
    assert f"{name} holds {found}" in said
    assert "give an undamaged file" in said


def test_a_folder_s_weights_of_another_type(refused: Callable[..., str]) -> None:
    state = published(network(channels=3).state_dict())
    for name in ("patch_embed.proj.weight", "norm.weight"):
        said = refused({**state, name: state[name].long()}, *SPACING)
        assert f"1 of another type: {name} is torch.int64, expected torch.float32" in said


def edit(file: Path, change: Callable[[dict[str, Any]], Any]) -> str:
    """The plans with a changed configuration 2d."""
    plans = json.loads(file.read_text())
    change(plans["configurations"]["2d"])
    file.write_text(json.dumps(plans))
    return str(file)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c["architecture"]["arch_kwargs"].update(window_size=1), "window_size must be at least 2"),
        (lambda c: c["architecture"]["arch_kwargs"].update(window_size="x"), "network cannot be built (TypeError"),
        (lambda c: c["architecture"]["arch_kwargs"].update(colour=1), "correct its arch_kwargs"),
        (lambda c: c["architecture"]["arch_kwargs"].pop("conv_op"), "network cannot be built (KeyError: 'conv_op'"),
        (lambda c: c["architecture"].pop("arch_kwargs"), "network cannot be built (KeyError: 'arch_kwargs'"),
        (lambda c: c["architecture"].pop("network_class_name"), "(KeyError('network_class_name'))"),
        (lambda c: c.update(architecture=3), "as plans of nnU-Net (TypeError"),
        (lambda c: c.update(inherits_from="2d"), "one of its configurations to -c"),
        (lambda c: c.update(patch_size=32), "must be a list of positive whole numbers; got 32"),
        (lambda c: c.update(patch_size=[32, "32"]), "got [32, '32']"),
        (lambda c: c.update(normalization_schemes=[]), "one scheme for each channel"),
    ],
)
def test_broken_plans(
    change: Callable[[dict[str, Any]], Any], said: str, refused: Callable[..., str], tmp_path: Path
) -> None:
    assert said in refused(backbone("official")[1], "--plans", edit(plans_file(tmp_path), change))


@pytest.mark.parametrize("content", ["[]", "{}", "3", '{"configurations": []}', "{"])
def test_no_plans(content: str, refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "plans.json").write_text(content)
    said = refused(backbone("official")[1], "--plans", str(tmp_path / "plans.json"))
    assert "cannot read the configuration '2d'" in said


def test_plans_with_inheritance(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A configuration with a batch size of its own has the other's patch and network, as nnU-Net resolves it."""
    file = plans_file(tmp_path)
    plans = json.loads(file.read_text())
    plans["configurations"]["2d_big"] = {"inherits_from": "2d", "batch_size": 64}
    file.write_text(json.dumps(plans))
    torch.save(backbone("official")[1], tmp_path / "weights.pth")
    assert main(command(tmp_path, "weights.pth", "--plans", str(file), "-c", "2d_big")) == 0
    assert "DATASET 2d_big FOLD" in capsys.readouterr().out


def test_incomplete_and_foreign_weights(refused: Callable[..., str]) -> None:
    state = published(network(channels=3).state_dict())
    missing = {key: value for key, value in state.items() if not key.startswith("concat_back_dim.2.")}
    assert "2 missing: concat_back_dim.2.bias" in refused(missing, *SPACING)
    more = {**state, "layers.0.blocks.0.gamma": torch.ones(1)}
    assert "1 unexpected" in refused(more, *SPACING)
    without_head = {key: value for key, value in state.items() if key != "output.weight"}
    assert "output.weight is missing" in refused(without_head, *SPACING)
    unet = {"inc.double_conv.0.weight": torch.zeros(4, 1, 3, 3)}
    assert "import-weights unet2d" in refused(unet, *SPACING)
    assert "import-weights swinunet" in refused(state, *SPACING, method="unet2d")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--spacing", "0", "1"), "positive millimetres"),
        ((*SPACING, "--window", "5", "5"), "must rise"),
        ((*SPACING, "--modality", "mr", "--window", "0", "5"), "belongs to CT"),
        ((*SPACING, "--patch-size", "8", "32"), "at least 16 x 16"),
        ((*SPACING, "--channels", "0"), "must be positive"),
        ((*SPACING, "--labels", "synapse_8"), "the weights have 2 classes"),
    ],
)
def test_impossible_options(arguments: tuple[str, ...], said: str, refused: Callable[..., str]) -> None:
    assert said in refused(published(network(channels=3).state_dict()), *arguments)


def test_a_cut_safetensors_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "weights.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    assert main(command(tmp_path, "weights.safetensors", *SPACING)) == 1
    assert "not a readable safetensors file" in capsys.readouterr().err
