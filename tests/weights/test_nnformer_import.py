"""`nnunet-ext import-weights nnformer`: layouts, the corrected index, other windows and strides, and refusals."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from made_nnformer import PATCH, block, published, wrapped
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from torch import Tensor, nn

from nnunet_ext.architectures.blocks.shifted_windows import offset_rows, relative_index, table_rows
from nnunet_ext.cli import main
from nnunet_ext.weights.loading import CheckpointError
from nnunet_ext.weights.nnformer import POSITIONS, adapt_channels, initialise
from nnunet_ext.weights.nnformer_tables import convert_table
from nnunet_ext.weights.transfer import build_network

LAYOUTS = ("raw", "extracted student", "extracted teacher", "nnformer")
TABLE = "model_down.layers.0.blocks.0.attn.relative_position_bias_table"
FLAT = [[1, 1, 1], [1, 2, 2], [1, 2, 2], [2, 2, 2], [2, 2, 2]]


def plans_file(folder: Path, channels: int = 1, architecture: dict[str, Any] | None = None) -> Path:
    """Plans as far as the command reads them."""
    settings = {
        "patch_size": list(PATCH),
        "normalization_schemes": ["ZScoreNormalization"] * channels,
        "architecture": architecture or block(),
    }
    image = {**settings, "patch_size": [32, 32]}
    path = folder / "NNFormerPlans.json"
    path.write_text(json.dumps({"plans_name": path.stem, "configurations": {"3d_fullres": settings, "2d": image}}))
    return path


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., int]:
    """The command on a file with some content, for plans."""

    def command(content: Any, *arguments: str, **plans: Any) -> int:
        torch.save(content, tmp_path / "weights.pth")
        file = str(plans_file(tmp_path, **plans))
        given = ["import-weights", "nnformer", str(tmp_path / "weights.pth"), "-o", str(tmp_path / "out")]
        return main([*given, "--plans", file, *arguments])

    return command


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_start_a_training(
    layout: str, run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By nnU-Net's own loading: the published function, up to the head, whose numbers are the training's."""
    network, state = published(seed=1)
    _, other = published(seed=2)
    pair = (state, other) if "student" in layout else (other, state)
    assert run(wrapped(layout, *pair)) == 0
    said = capsys.readouterr().out
    for word in ("loaded", "left", "zeroed", "no position table", "corrected index", "-pretrained_weights"):
        assert word in said
    assert ("The teacher's weights were taken" in said) == (layout == "raw")
    content = torch.load(tmp_path / "out", weights_only=True)
    assert content["import_report"]["configuration"]["layout"] in ("training", "student", "state_dict")
    made: Any = build_network(block(), 1, 5, 7).eval()
    heads = made.decoder.seg_layers[3].weight.clone()
    load_pretrained_weights(made, str(tmp_path / "out"))
    assert torch.equal(made.decoder.seg_layers[3].weight, heads)
    image = torch.randn(1, 1, *PATCH)
    with torch.no_grad():
        expected, features = network.features(image), made.features(image)
    torch.testing.assert_close(features.neck, expected.neck, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(features.context, expected.context, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("wanted", ["student", "teacher"])
def test_the_wanted_network_is_taken(wanted: str, run: Callable[..., int], tmp_path: Path) -> None:
    (_, student), (_, teacher) = published(seed=1), published(seed=2)
    assert run(wrapped("raw", student, teacher), "--network", wanted) == 0
    weights = torch.load(tmp_path / "out", weights_only=True)["network_weights"]
    expected = {"student": student, "teacher": teacher}[wanted]
    assert torch.equal(weights["encoder.norms.3.weight"], expected["model_down.norm3.weight"])
    assert not weights[POSITIONS].any()


def test_files_without_the_index_count_as_published() -> None:
    _, state = published()
    bare = {key: value for key, value in state.items() if not key.endswith("relative_position_index")}
    first, second = (build_network(block(), 1, 2) for _ in range(2))
    initialise(first, state)
    initialise(second, bare)
    for name, value in first.state_dict().items():
        assert torch.equal(second.state_dict()[name], value)


def test_files_with_the_corrected_index_are_taken_as_they_are() -> None:
    _, state = published()
    window = (4, 4, 4)
    key = TABLE.replace("bias_table", "index")
    state[key] = relative_index(window, "aligned")
    made: Any = build_network(block(), 1, 2)
    initialise(made, state)
    assert torch.equal(made.encoder.stages[0].blocks[0].attn.relative_position_bias_table, state[TABLE])
    state[key] = state[key].flip(0)
    with pytest.raises(CheckpointError, match="not the published index"):
        initialise(made, state)


def test_biases_of_pairs_stay() -> None:
    """Each pair of tokens has the bias that the published index gave it."""
    window = (4, 4, 4)
    table = torch.randn(table_rows(window), 3)
    converted = convert_table("t", table, "legacy", window, "aligned")
    assert torch.equal(converted[relative_index(window, "aligned")], table[relative_index(window, "legacy")])
    assert len(offset_rows(window, "legacy").unique()) == 115


@pytest.mark.parametrize("window", [(2, 2, 2), (3, 4, 2), (8, 8, 8)])
def test_tables_of_other_windows_are_interpolated(window: tuple[int, int, int]) -> None:
    """A bias that is linear in the offset stays so; no offset keeps its bias."""
    axes = torch.meshgrid(*(torch.linspace(-1, 1, 7) for _ in range(3)), indexing="ij")
    table = torch.stack([axes[0] + 2 * axes[1] - axes[2], axes[1]], -1).view(-1, 2)
    made = convert_table("t", table, "aligned", window, "aligned")
    wanted = torch.meshgrid(*(torch.linspace(-1, 1, 2 * edge - 1) for edge in window), indexing="ij")
    torch.testing.assert_close(made[:, 0], (wanted[0] + 2 * wanted[1] - wanted[2]).flatten())
    assert made.shape == (table_rows(window), 2)
    torch.testing.assert_close(made[len(made) // 2], table[len(table) // 2])


def test_the_published_index_cannot_be_interpolated() -> None:
    with pytest.raises(CheckpointError, match="'aligned' in the plans"):
        convert_table("t", torch.zeros(343, 1), "legacy", (2, 2, 2), "legacy")
    with pytest.raises(CheckpointError, match="340 rows"):
        convert_table("t", torch.zeros(340, 1), "legacy", (2, 2, 2), "aligned")


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_first_convolution_is_adapted(channels: int) -> None:
    """Of one channel to n equal ones: what the one gave."""
    weight, image = torch.randn(5, 1, 3, 3, 3), torch.randn(1, 1, 4, 4, 4)
    result = nn.functional.conv3d(image.expand(-1, channels, -1, -1, -1), adapt_channels(weight, channels))
    torch.testing.assert_close(result, nn.functional.conv3d(image, weight))
    two = torch.randn(5, 2, 3, 3, 3)
    assert torch.equal(adapt_channels(two, 1), two.mean(1, keepdim=True))
    assert torch.equal(adapt_channels(two, 4)[:, 2:], two / 2)


def test_other_plans_get_what_fits(run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two channels, another window and an axis that is halved later: it loads, and all changes are said."""
    _, state = published()
    architecture = block(strides=FLAT, window_size=[8, 4, 4, 2])
    assert run({"state_dict": state}, architecture=architecture, channels=2) == 0
    said = capsys.readouterr().out
    for word in ("adapted to 2", "interpolated for the windows", "averaged along the axes", "corrected index"):
        assert word in said
    made: Any = build_network(architecture, 2, 3)
    load_pretrained_weights(made, str(tmp_path / "out"))
    weight = state["decoder.layers.0.Upsample.up.weight"]
    torch.testing.assert_close(made.decoder.stages[2].upsample.up.weight, weight.mean(2, keepdim=True))


def test_plans_of_another_network(run: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    """They get the nnFormer that the trainer would make, of the plain width, which these weights do not have."""
    stock = {"network_class_name": "some.UNet", "arch_kwargs": {"strides": [[1, 1, 1], *([2, 2, 2],) * 3]}}
    assert run({"state_dict": published()[1]}, architecture=stock) == 1
    assert "NNFormerPlanner without _W<n>" in capsys.readouterr().err


REFUSED: list[tuple[Callable[[dict[str, Tensor]], Any], tuple[str, ...], str]] = [
    (lambda s: {"state_dict": {"unetr_pp_encoder.x": torch.zeros(1)}}, (), "no nnFormer: found .* like UNETR"),
    (lambda s: {"student": s, "epoch": 1}, (), "there is no teacher in it, only student"),
    (lambda s: {"state_dict": s}, ("--network", "student"), "nothing to choose"),
    (lambda s: s, ("-c", "2d"), "nnFormer is a 3D network"),
    (lambda s: s, ("-c", "3d_lowres"), "cannot read the configuration"),
    (lambda s: {k: v for k, v in s.items() if "mlp.fc2" not in k}, (), "of its weights are missing"),
    (lambda s: {**s, "model_down.norm9.weight": torch.zeros(1)}, (), "have no place in it"),
    (lambda s: {**s, TABLE: torch.zeros(10, 1)}, (), "10 rows"),
    (lambda s: {**s, "model_down.norm0.weight": torch.zeros(4)}, (), r"\(4,\) in the file"),
    (lambda s: {"teacher": s, "args": argparse.Namespace(out=Path("x"))}, (), "asks for Python objects"),
]


@pytest.mark.parametrize(("content", "arguments", "message"), REFUSED, ids=[message for *_, message in REFUSED])
def test_refusals(
    content: Callable[[dict[str, Tensor]], Any],
    arguments: tuple[str, ...],
    message: str,
    run: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import re

    assert run(content(published()[1]), *arguments) == 1
    said = capsys.readouterr().err
    assert re.search(message, said), said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_nothing_is_overwritten(run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").write_text("mine")
    assert run(published()[1]) == 1
    assert "add --overwrite" in capsys.readouterr().err
    assert (tmp_path / "out").read_text() == "mine"
    assert run(published()[1], "--overwrite") == 0
