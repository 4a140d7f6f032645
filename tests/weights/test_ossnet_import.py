"""`nnunet-ext import-weights ossnet`: model folders of published and other weights, and refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import golden_tools as golden
import numpy as np
import pytest
import torch
from golden_adapter import reference_weights
from torch import Tensor

from nnunet_ext.cli import main
from nnunet_ext.lookup import install
from nnunet_ext.weights.loading import CheckpointError
from nnunet_ext.weights.ossnet import build_network, canonical_state, load_weights
from nnunet_ext.weights.ossnet_configuration import HEAD, infer_configuration
from nnunet_ext.weights.ossnet_folder import assumptions, make_plans

GOLDEN = Path(__file__).parents[1] / "golden" / "ossnet"
GRID = ("--patch-size", "32", "32", "16")


def published(name: str = "train_step_small") -> dict[str, Tensor]:
    """Weights by published names; those of `train_step_small` are a small variant D for two channels."""
    return reference_weights(golden.load(GOLDEN / name)[0])


def command(folder: Path, *arguments: str) -> list[str]:
    return ["import-weights", "ossnet", str(folder / "weights.pt"), "-o", str(folder / "out"), *arguments]


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """The sentence with which an import ends; nothing may be written."""

    def run(state: dict[str, Tensor], *arguments: str) -> str:
        torch.save(state, tmp_path / "weights.pt")
        assert main(command(tmp_path, *arguments)) == 1
        assert not (tmp_path / "out").exists()
        said = capsys.readouterr().err
        assert said.startswith("nnunet-ext: ")
        assert said.count("\n") == 1
        return said

    return run


def test_published_brats(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({f"module.{key}": value for key, value in published("model_A_bra_ts").items()}, tmp_path / "weights.pt")
    assert main(command(tmp_path)) == 0
    said = capsys.readouterr().out
    assert f"nnunet-ext predict-volume {tmp_path / 'out'} -i IMAGES" in said
    assert "nnUNetv2_predict_from_modelfolder runs too, but with nnU-Net's own cropping" in said
    plans, dataset = (json.loads((tmp_path / "out" / f"{name}.json").read_text()) for name in ("plans", "dataset"))
    assert plans["nnunet_ext"]["case_adapter"] == "brats2020"
    assert plans["transpose_forward"] == [2, 1, 0]
    configuration = plans["configurations"]["3d_fullres"]
    assert configuration["patch_size"] == [256, 256, 160]
    assert configuration["use_mask_for_norm"] == [False] * 4
    assert list(dataset["channel_names"].values()) == ["flair", "t1", "t1ce", "t2"]
    assert dataset["labels"] == {"background": 0, "whole_tumour": 1}
    checkpoint = torch.load(tmp_path / "out" / "fold_0" / "checkpoint_final.pth", weights_only=False)
    assert checkpoint["trainer_name"] == "OSSNetTrainer_Published_A"
    assert checkpoint["inference_allowed_mirroring_axes"] is None
    head = checkpoint["network_weights"]["decoder.seg_layers.0.weight"]
    torch.testing.assert_close(head, torch.cat([torch.zeros(1, 512), published("model_A_bra_ts")[HEAD]]))


def test_stock_prediction_of_an_imported_model(tmp_path: Path) -> None:
    """nnU-Net loads the folder and predicts what the network computes; axes are x, y, z as in the file."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    state = published()
    state[HEAD] = _centred(state)
    torch.save(state, tmp_path / "weights.pt")
    assert main(command(tmp_path, *GRID, "--labels", "blob", "--large-pooling", "max")) == 0
    install()
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(tmp_path / "out"), (0,))
    image = np.random.default_rng(1).normal(1, 2, (2, 32, 32, 16)).astype(np.float32)
    found = predictor.predict_single_npy_array(image.transpose(0, 3, 2, 1), {"spacing": [1.0, 1.0, 1.0]})
    network = build_network(infer_configuration(state), (32, 32, 16), "max").eval()
    load_weights(network, canonical_state(state))
    normal = (image - image.mean((1, 2, 3), keepdims=True)) / image.std((1, 2, 3), keepdims=True)
    expected = network(torch.from_numpy(normal)[None])[0].argmax(0).numpy()
    assert 0.1 < expected.mean() < 0.9
    assert (found.transpose(2, 1, 0) == expected).mean() > 0.99
    assert "case_adapter" not in predictor.plans_manager.plans["nnunet_ext"]


def _centred(state: dict[str, Tensor]) -> Tensor:
    """A head whose logit is about as often positive as negative."""
    network: Any = build_network(infer_configuration(state), (32, 32, 16)).eval()
    load_weights(network, canonical_state(state))
    features: list[Tensor] = []
    network.decoder.seg_layers[0].register_forward_hook(lambda _m, inputs, _o: features.append(inputs[0][0]))
    x = torch.randn(1, 2, 32, 32, 16, generator=torch.Generator().manual_seed(2))
    coords = torch.rand(1, 500, 3, generator=torch.Generator().manual_seed(3)) * torch.tensor([31.0, 31, 15])
    with torch.no_grad():
        network.decode(network.encode(x), coords, x)
    mean = features[0].mean(0)
    return state[HEAD] - (state[HEAD] @ mean) / (mean @ mean) * mean


@pytest.mark.parametrize(
    ("name", "data_set", "variant"),
    [
        ("model_C_lits", "lits", "C"),
        ("model_onet_bra_ts", "brats2020", "ONet"),
        ("train_step_small_onet", None, "ONet"),
    ],
)
def test_what_is_recognised(name: str, data_set: str | None, variant: str) -> None:
    spec, _ = golden.load(GOLDEN / name)
    state = {key: torch.empty(shape, device="meta") for key, shape, _ in spec["state"]}
    configuration = infer_configuration(state)
    assert (configuration.data_set, configuration.variant) == (data_set, variant)
    if data_set == "lits":
        assert configuration.patch(None) == (512, 512, 512)
        plans = make_plans(configuration, (512, 512, 512), "average", "Dataset904_OSSNetImport")
        assert plans["nnunet_ext"]["case_adapter"] == "lits"
        assert "large_pooling" not in plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
        assert any("liver" in sentence for sentence in assumptions(configuration, (512, 512, 512), "average"))


def test_large_pooling_is_recorded(tmp_path: Path) -> None:
    torch.save(published(), tmp_path / "weights.pt")
    for pooling, source in (("average", "training"), ("max", "inference script")):
        assert main(command(tmp_path, *GRID, "--large-pooling", pooling, "--overwrite")) == 0
        plans = json.loads((tmp_path / "out" / "plans.json").read_text())
        architecture = plans["configurations"]["3d_fullres"]["architecture"]
        assert architecture["arch_kwargs"]["large_pooling"] == pooling
        record = json.loads((tmp_path / "out" / "import_report.json").read_text())
        assert any(f"as in the authors' {source}" in sentence for sentence in record["assumptions"])


def test_grids_that_do_not_fit_are_refused(refused: Callable[..., str]) -> None:
    assert "--patch-size X Y Z" in refused(published())
    said = refused(published(), "--patch-size", "32", "32", "32")
    assert "32 x 32 x 32 voxels leave 4 x 4 x 4 = 64 cells" in said
    assert "have 32" in said
    said = refused(published(), "--patch-size", "-32", "-32", "16")
    assert "--patch-size takes numbers of voxels above 0; got -32 -32 16" in said


def test_other_weights_are_refused(refused: Callable[..., str]) -> None:
    state = published()
    assert "1 unexpected: encoder.more" in refused({**state, "encoder.more": torch.zeros(1)}, *GRID)
    lacking = {key: value for key, value in state.items() if not key.startswith("encoder.final_mapping.0.")}
    assert "2 missing: encoder.final_mapping.0.bias" in refused(lacking, *GRID)
    gap = {key: value for key, value in state.items() if not key.startswith("decoder.blocks.1.")}
    assert "incomplete" in refused(gap, *GRID)
    assert "not an OSS-Net" in refused({"inc.double_conv.0.weight": torch.zeros(2)}, *GRID)
    assert "published OSS-Nets have one" in refused({**state, HEAD: torch.zeros(3, 24)}, *GRID)
    wide = {**state, "decoder.patch_mapping.mapping.0.weight": torch.zeros(2, 3, 7, 7, 7)}
    assert "has 3 channels" in refused(wide, *GRID)
    assert "1 classes after the background" in refused(state, *GRID, "--labels", "one", "two")


@pytest.mark.parametrize(
    ("key", "shape", "text"),
    [
        ("encoder.blocks.1.main_mapping.0.weight", (), "is of shape (); it has 5 axes"),
        ("encoder.blocks.1.main_mapping.0.weight", (0, 8, 3, 3, 3), "is of shape (0, 8, 3, 3, 3); it has 5 axes, none"),
        (HEAD, (), "is of shape (); it has 2 axes"),
        (HEAD, (1, 0), "is of shape (1, 0); it has 2 axes, none of them empty"),
    ],
)
def test_weights_without_the_axes_that_they_are_read_by(
    key: str, shape: tuple[int, ...], text: str, refused: Callable[..., str]
) -> None:
    assert f"{key} {text}" in refused({**published(), key: torch.zeros(shape)}, *GRID)


def test_a_coarse_head_without_a_skip_encoder_is_refused(refused: Callable[..., str]) -> None:
    state = {key: value for key, value in published().items() if not key.startswith("encoder.output_mappings.")}
    assert "only skip encoders have a coarse head" in refused(state, *GRID)


def test_shapes_that_belong_to_no_network_are_refused() -> None:
    state = published()
    state["decoder.blocks.2.linear_layer_1.weight"] = torch.zeros(24, 23)
    configuration = infer_configuration(state)
    with pytest.raises(CheckpointError, match=r"1 of another shape: decoder\.blocks\.2"):
        load_weights(build_network(configuration, (32, 32, 16)), canonical_state(state))
