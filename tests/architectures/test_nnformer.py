"""nnFormer's network: windows, positions, other sizes, and what it refuses."""

from __future__ import annotations

import logging
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from nnunet_ext.architectures.blocks import window_attention
from nnunet_ext.architectures.blocks.patch_convolutions import TokenEmbedding, sine_cosine_table
from nnunet_ext.architectures.blocks.shifted_windows import (
    cut_windows,
    effective_window,
    join_windows,
    relative_index,
    separation,
    shifts_of,
    table_rows,
)
from nnunet_ext.architectures.blocks.window_attention import WindowBlock, WindowOptions
from nnunet_ext.architectures.nnformer import NNFormer
from nnunet_ext.architectures.nnformer_parts import drop_path_rates
from nnunet_ext.architectures.nnformer_plans import nnformer_architecture, nnformer_strides
from nnunet_ext.losses.points import points_of
from nnunet_ext.weights.transfer import build_network

ISOTROPIC = ((32, 32, 32), None)
FLAT = ((16, 32, 48), (3.0, 1.0, 1.0))


def small(patch: tuple[int, ...] = (32, 32, 32), spacing: tuple[float, ...] | None = None, **options: Any) -> Any:
    """A narrow network in eval mode, for two channels and three classes."""
    made = nnformer_architecture(patch, nnformer_strides(patch, spacing), base_width=8)
    return build_network(made, 2, 3, **options).eval()


@pytest.mark.parametrize("window", [(2, 2, 2), (4, 3, 8), (1, 6, 2)])
def test_windows_go_there_and_back(window: tuple[int, int, int]) -> None:
    x = torch.randn(2, 4, 6, 8, 3)
    cut = cut_windows(x, window)
    assert cut.shape == (2 * 4 * 6 * 8 // math.prod(window), math.prod(window), 3)
    assert torch.equal(join_windows(cut, window, (4, 6, 8)), x)


@pytest.mark.parametrize(("edge", "used"), [(2, 19), (4, 115), (8, 547)])
def test_the_published_index_shares_rows(edge: int, used: int) -> None:
    """Measured on the published code (specification alice 1.5, quirk 1); ours has one row for each offset."""
    window = (edge,) * 3
    assert len(relative_index(window, "legacy").unique()) == used
    assert len(relative_index(window, "aligned").unique()) == table_rows(window) == (2 * edge - 1) ** 3


def test_rows_are_offsets() -> None:
    """Pairs of tokens share a row exactly if they are as far apart, in windows that are no cubes, too."""
    window = (2, 3, 4)
    index = relative_index(window, "aligned")
    places = torch.stack(torch.meshgrid(*(torch.arange(n) for n in window), indexing="ij")).flatten(1).T
    rows: dict[tuple[int, ...], set[int]] = {}
    for i, a in enumerate(places):
        for j, b in enumerate(places):
            rows.setdefault(tuple((a - b).tolist()), set()).add(int(index[i, j]))
    assert all(len(found) == 1 for found in rows.values())
    assert len(set.union(*rows.values())) == len(rows) == table_rows(window)
    with pytest.raises(ValueError, match="cubic windows"):
        relative_index(window, "legacy")


def test_windows_and_shifts_fit_the_grid() -> None:
    assert effective_window((5, 20, 3), 4, "aligned") == (4, 4, 3)
    assert effective_window((5, 20, 3), 4, "legacy") == (3, 3, 3)
    assert shifts_of((5, 20, 4), (4, 4, 4), "aligned") == (2, 2, 0)
    assert shifts_of((5, 20, 4), (4, 4, 4), "legacy") == (0, 0, 0)


def test_shifted_windows_keep_apart_what_is_not_near() -> None:
    """After the cyclic shift, tokens attend to each other exactly if they were no farther apart than a window."""
    window, shifts, grid = (2, 2, 4), (1, 1, 2), (4, 4, 8)
    numbers = torch.arange(math.prod(grid)).view(1, *grid, 1)
    cut = cut_windows(numbers.roll([-s for s in shifts], (1, 2, 3)), window)[..., 0]
    places = torch.stack(torch.meshgrid(*(torch.arange(n) for n in grid), indexing="ij"), -1).view(-1, 3)
    distance = (places[cut][:, :, None] - places[cut][:, None]).abs()
    near = (distance < torch.tensor(window)).all(-1)
    assert torch.equal(separation(grid, window, shifts) == 0, near)


@pytest.mark.parametrize("style", ["aligned", "legacy"])
def test_a_block_is_attention_written_out(style: str) -> None:
    """One window, no shift: softmax of scaled products plus the table's numbers (specification alice 1.5)."""
    torch.manual_seed(0)
    block = WindowBlock(8, (2, 2, 2), 2, 4, True, False, 0.0, WindowOptions(style)).eval()
    x = torch.randn(1, 2, 2, 2, 8)
    q, k, v = block.attn.qkv(block.norm1(x).view(8, 8)).view(8, 3, 2, 4).permute(1, 2, 0, 3)
    bias = block.attn.relative_position_bias_table[relative_index((2, 2, 2), style)].permute(2, 0, 1)
    out = torch.softmax(q @ k.mT / 2 + bias, -1) @ v
    y = x + block.attn.proj(out.transpose(0, 1).reshape(8, 8)).view(x.shape)
    torch.testing.assert_close(block(x), y + block.mlp(block.norm2(y)))


@pytest.mark.parametrize(("patch", "spacing"), [ISOTROPIC, FLAT], ids=str)
def test_features(patch: tuple[int, ...], spacing: tuple[float, ...] | None) -> None:
    """Neck and context have their widths and grids, and the output is that of the forward pass."""
    network, image = small(patch, spacing), torch.randn(2, 2, *patch)
    strides = network.strides
    fine = [math.prod(axis) for axis in zip(*strides[:-1], strict=True)]
    with torch.no_grad():
        features = network.features(image)
        logits = network(image)
        network.decoder.deep_supervision = True
        outputs = network(image)
    grid = tuple(edge // step // last for edge, step, last in zip(patch, fine, strides[-1], strict=True))
    assert features.neck.shape == (2, 64, *grid)
    assert features.context.shape == (2, 32, *(edge // step for edge, step in zip(patch, fine, strict=True)))
    assert torch.equal(features.output, logits)
    assert torch.equal(outputs[0], logits)
    assert len(outputs) == 4


def test_kd_points_are_the_features() -> None:
    network, image, seen = small(), torch.randn(1, 2, 32, 32, 32), dict[str, Tensor]()
    points = points_of(network)
    for point in (points.encoder[-1][0], points.decoder[0][0]):
        select: Any = point.select
        network.get_submodule(point.module).register_forward_hook(
            lambda _m, _i, y, name=point.module, select=select: seen.update({name: select(y)})
        )
    with torch.no_grad():
        features = network.features(image)
    neck, context = seen.values()
    assert torch.equal(neck, features.neck)
    assert torch.equal(context, features.context)


def test_other_sizes_than_the_plans() -> None:
    """Sizes that the strides divide: windows are filled up, positions interpolated; others are refused by name."""
    network = small()
    with torch.no_grad():
        assert network(torch.randn(1, 2, 48, 32, 64)).shape == (1, 3, 48, 32, 64)
    with pytest.raises(
        ValueError, match=r"\(40, 32, 32\) is not divisible .* \(16, 16, 16\); use e\.g\. \(48, 32, 32\)"
    ):
        network(torch.randn(1, 2, 40, 32, 32))
    with pytest.raises(ValueError, match="3 spatial axes"):
        network(torch.randn(1, 2, 32, 32))


def test_position_table_is_saved_and_may_be_absent(caplog: pytest.LogCaptureFixture) -> None:
    """A defect of the published code was a random table that was never saved."""
    network = small()
    state = network.state_dict()
    table = state["encoder.absolute_pos_embed"]
    assert torch.equal(table, small().encoder.absolute_pos_embed)
    assert len(torch.unique(table[0], dim=0)) == table.shape[1], "two positions look alike"
    other = small()
    other.encoder.absolute_pos_embed.fill_(1)
    other.load_state_dict(state, strict=True)
    assert torch.equal(other.encoder.absolute_pos_embed, table)
    without = {key: value for key, value in state.items() if key != "encoder.absolute_pos_embed"}
    with caplog.at_level(logging.WARNING):
        other.load_state_dict(without, strict=True)
    assert not other.encoder.absolute_pos_embed.any()
    assert "zeros are used" in caplog.text


@pytest.mark.parametrize("width", [1, 4, 48, 50])
def test_table_of_any_width(width: int) -> None:
    assert sine_cosine_table((2, 3, 4), width).shape == (1, 24, width)


def test_stems() -> None:
    """Alice's stride is all in the first convolution, the original nnFormer's in the first and third."""
    for stride, first, third in (([2, 2, 2], (2, 2, 2), (1, 1, 1)), ([2, 4, 4], (2, 2, 2), (1, 2, 2))):
        stem: Any = TokenEmbedding(1, 4, 8, stride)
        assert (stem.proj1.conv1.stride, stem.proj2.conv1.stride) == (first, third)
        assert stem(torch.randn(1, 1, 8, 8, 8)).shape == (1, *(8 // step for step in stride), 8)


def test_drop_path() -> None:
    """Linear over the encoder's eight blocks, and over the decoder's six, lowest resolution first; only in training."""
    assert drop_path_rates(0.2, [2, 2])[1][1] == pytest.approx(0.2)
    network = small(drop_path_rate=0.5)
    rates = [float(getattr(b.drop_path, "drop_prob", 0)) for s in network.encoder.stages for b in s.blocks]
    assert rates == pytest.approx([0.5 * i / 7 for i in range(8)])
    rates = [float(getattr(b.drop_path, "drop_prob", 0)) for s in network.decoder.stages for b in s.blocks]
    assert rates == pytest.approx([0.5 * i / 5 for i in range(6)])
    image = torch.randn(1, 2, 32, 32, 32)
    with torch.no_grad():
        assert torch.equal(network(image), network(image))
        assert not torch.equal(network.train()(image), network(image))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"relative_index": "right"}, "'right' unknown; choose aligned or legacy"),
        ({"num_heads": [3, 6, 12, 24]}, "must divide the widths"),
        ({"window_size": [4, 4]}, "window_size needs 4 positive entries"),
        ({"drop_path_rate": 1.0}, "drop_path_rate"),
        ({"features_per_stage": [8, 8, 16, 32, 60]}, "must double"),
        ({"strides": [[2, 2, 2]] * 5}, "start with a stage of ones"),
        ({"strides": [[1, 1, 1], [3, 2, 2], *([2, 2, 2],) * 3]}, "patch embedding"),
        ({"strides": [[1, 1, 1], [2, 2, 2], [4, 2, 2], *([2, 2, 2],) * 2]}, "must be 1 or 2"),
        ({"patch_size": [24, 32, 32]}, "not divisible"),
    ],
)
def test_refusals(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**changes)


def test_parameters_get_gradients_in_checkpointed_stages() -> None:
    """Stages are called as modules, so that whoever checkpoints them reaches all blocks."""
    network: NNFormer = small()
    calls = []
    for stage in (*network.encoder.stages, *network.decoder.stages):
        stage.register_forward_hook(lambda *_: calls.append(1))
    network(torch.randn(1, 2, 32, 32, 32))
    assert len(calls) == 7


def test_many_windows_are_attended_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    network, image = small(), torch.randn(2, 2, 32, 32, 32)
    with torch.no_grad():
        expected = network(image)
        monkeypatch.setattr(window_attention, "MOST_WINDOWS", 5)
        torch.testing.assert_close(network(image), expected)


def test_mixed_precision_keeps_the_result() -> None:
    network, image = small().train(), torch.randn(1, 2, 32, 32, 32)
    expected = network.eval()(image)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = network(image)
    logits.float().mean().backward()
    assert (logits.float() - expected).abs().max() < 0.1 * expected.std()
