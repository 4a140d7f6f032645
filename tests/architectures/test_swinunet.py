"""Swin-Unet's network: any size, masks, plans, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_swinunet import block, network
from timm.models.swin_transformer import SwinTransformerBlock
from torch import Tensor, nn

from nnunet_ext.architectures.blocks.swin import SwinBlock, shifts_of, window_mask
from nnunet_ext.architectures.swinunet import SwinUNet
from nnunet_ext.architectures.swinunet_plans import heads_for, swinunet_architecture
from nnunet_ext.losses.points import points_of

TWO_STAGES: dict[str, Any] = {"blocks": (2, 2)}


@pytest.mark.parametrize("size", [(32, 32), (33, 50), (1, 40), (96, 64)])
def test_images_of_any_size(size: tuple[int, int]) -> None:
    """What is right and below of an image, up to a multiple of 32, is as zeros; masks need not be prepared."""
    made, image = network(), torch.randn(2, 1, *size)
    padded = torch.zeros(2, 1, *(-(-edge // 32) * 32 for edge in size))
    padded[:, :, : size[0], : size[1]] = image
    with torch.no_grad():
        logits = made(image)
        torch.testing.assert_close(logits, made(padded)[:, :, : size[0], : size[1]])
        other = network(size)
        other.load_state_dict(made.state_dict(), strict=True)
        torch.testing.assert_close(logits, other(image))
    assert logits.shape == (2, 3, *size)
    assert logits.is_contiguous() or size == (32, 32) or size == (96, 64)


@pytest.mark.parametrize("size", [(14, 21), (28, 14)])
@pytest.mark.parametrize("shift", [0, 3])
def test_masks_are_timms_where_windows_fit(size: tuple[int, int], shift: int) -> None:
    theirs = SwinTransformerBlock(8, size, 1, window_size=7, shift_size=shift)
    mask = window_mask(size, 7, (shift, shift))
    assert (mask is None) == (theirs.attn_mask is None) == (shift == 0)
    if mask is not None:
        torch.testing.assert_close(mask, theirs.attn_mask)


@pytest.mark.parametrize("size", [(14, 21), (28, 14)])
def test_blocks_are_timms_where_windows_fit(size: tuple[int, int]) -> None:
    ours = SwinBlock(8, size, 2, 7, True, 4.0, 0.0)
    theirs = SwinTransformerBlock(8, size, 2, window_size=7, shift_size=3)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    x = torch.randn(2, *size, 8)
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=0)


@pytest.mark.parametrize("shifted", [False, True])
def test_small_maps_attend_to_themselves_only(shifted: bool) -> None:
    """A map that does not fill its window: attention over its own positions, with the bias of their distance."""
    height, width = 5, 6
    made = SwinBlock(8, (height, width), 2, 7, shifted, 4.0, 0.0)
    with torch.no_grad():
        made.attn.relative_position_bias_table.normal_()
    x = torch.randn(3, height, width, 8)
    q, k, v = made.attn.qkv(x.flatten(1, 2)).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
    row, column = (i.flatten() for i in torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"))
    distance = (row[:, None] - row + 6) * 13 + (column[:, None] - column + 6)
    bias = made.attn.relative_position_bias_table[distance].permute(2, 0, 1)
    attended = torch.softmax(q @ k.mT / 2 + bias, -1) @ v
    expected = made.attn.proj(attended.transpose(1, 2).flatten(2)).unflatten(1, (height, width))
    torch.testing.assert_close(made._attn(x), expected)


def test_what_the_shift_brings_together_is_kept_apart() -> None:
    """In a map of 9 x 7 positions with shifted rows, the first row's result does not depend on the last one's."""
    made = SwinBlock(8, (9, 7), 1, 7, True, 4.0, 0.0)
    x = torch.randn(1, 9, 7, 8)
    assert shifts_of((9, 7), 7, True) == (3, 0)
    changed = x.clone()
    changed[:, 8] = torch.randn(7, 8)
    before, after = made(x), made(changed)
    torch.testing.assert_close(before[:, 0], after[:, 0])
    assert not torch.isclose(before[:, 3:8], after[:, 3:8]).all()


def test_the_published_network() -> None:
    """Specification selfreg 2.2: parameters, heads; one channel less costs 1536 weights twice."""
    arguments = swinunet_architecture((224, 224))["arch_kwargs"]
    assert arguments["num_heads"] == [3, 6, 12, 24]
    with torch.device("meta"):
        made = SwinUNet(3, num_classes=9, **{**arguments, "conv_op": nn.Conv2d})
    assert sum(p.numel() for p in made.parameters()) == 27_168_900
    assert not any(name.endswith(("attn_mask", "relative_position_index")) for name in made.state_dict())
    blocks = [stage.blocks for stage in made.layers]
    rates = [getattr(b.drop_path1, "drop_prob", 0.0) for stage in blocks for b in stage]  # type: ignore[union-attr]
    assert rates == pytest.approx([0.2 * i / 7 for i in range(8)])
    mirrored = made.layers_up[1].blocks[1].drop_path1.drop_prob  # type: ignore[index, union-attr]
    assert mirrored == pytest.approx(0.2 * 5 / 7)


@pytest.mark.parametrize(("width", "heads"), [(96, 3), (768, 24), (4, 1), (48, 1), (80, 2), (72, 2), (100, 2)])
def test_heads_divide_the_width(width: int, heads: int) -> None:
    assert heads_for(width) == heads


def test_initialisation() -> None:
    arguments = {**block(base_width=32)["arch_kwargs"], "conv_op": nn.Conv2d}
    for module in SwinUNet(1, num_classes=2, **arguments).modules():
        if isinstance(module, nn.Linear) and module.weight.numel() > 5000:
            assert float(module.weight.detach().std()) == pytest.approx(0.02, rel=0.1)
            assert module.bias is None or not module.bias.any()
        elif isinstance(module, nn.LayerNorm):
            assert (module.weight == 1).all()


@pytest.mark.parametrize("size", [(64, 32), (40, 56)])
def test_with_deep_supervision_logits_are_averaged(size: tuple[int, int]) -> None:
    """For nnU-Net's own trainers; sizes are those of its targets."""
    made, image = network(size), torch.randn(1, 1, *size)
    logits = made(image)
    made.decoder.deep_supervision = True
    outputs = made(image)
    torch.testing.assert_close(outputs[0], logits)
    sizes = [tuple(round(edge / step) for edge in size) for step in (1, 4, 8, 16)]
    assert [tuple(y.shape[2:]) for y in outputs] == sizes
    if size == (64, 32):
        torch.testing.assert_close(outputs[1], nn.functional.avg_pool2d(logits, 4))


def test_features_for_self_regularisation() -> None:
    made = network((64, 32), blocks=(1, 2, 2))
    points = points_of(made)
    assert [len(stage) for stage in (*points.encoder, *points.decoder)] == [1, 2, 2, 2, 1]
    shapes: dict[str, tuple[int, ...]] = {}
    for point in (*points.students, points.teacher):
        select = point.select
        assert select is not None

        def hook(_m: nn.Module, _i: Any, y: Tensor, name: str = point.module, select: Any = select) -> None:
            shapes[name] = tuple(select(y).shape)

        made.get_submodule(point.module).register_forward_hook(hook)
    made(torch.randn(2, 1, 64, 32))
    assert shapes["up"] == (2, 8, 64, 32)
    assert shapes["layers.0.blocks.0"] == shapes["layers_up.2.blocks.0"] == (2, 8, 16, 8)
    assert shapes["layers.2.blocks.1"] == (2, 32, 4, 2)
    assert shapes["layers_up.1.blocks.0"] == (2, 16, 8, 4)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"conv_op": "torch.nn.Conv3d"}, "2D network.*configuration 2d"),
        ({"patch": (32, 32, 32)}, "2 spatial axes; got 3"),
        ({"strides": [[1, 1], [2, 2], [2, 2], [2, 2], [2, 2]]}, r"strides must be \[\[1, 1\], \[4, 4\]"),
        ({"features_per_stage": [8, 8, 16, 32, 48]}, "must double"),
        ({"num_heads": [3, 2, 2, 4]}, "must divide the widths"),
        ({"num_heads": [1, 2, 2]}, "one entry for each"),
        ({"n_stages": 4}, "one entry for each"),
        ({"drop_path_rate": 1.0}, "drop_path_rate at least 0 and below 1"),
    ],
)
def test_impossible_arguments_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises((ValueError, NotImplementedError), match=said):
        network(**changes)


def test_volumes_are_refused() -> None:
    with pytest.raises(ValueError, match="2 spatial axes; got 3"):
        network(**TWO_STAGES)(torch.zeros(1, 1, 8, 8, 8))


def test_compiles_as_one_graph() -> None:
    made = network((16, 24), **TWO_STAGES).train()
    compiled = torch.compile(made, backend="eager", fullgraph=True)
    image = torch.randn(2, 1, 15, 24)
    torch.manual_seed(3)
    expected = made(image)
    torch.manual_seed(3)
    torch.testing.assert_close(compiled(image), expected)


def test_mixed_precision_is_close() -> None:
    made, image = network(), torch.randn(2, 1, 32, 32)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        mixed = made(image)
    expected = made(image)
    assert (mixed - expected).abs().mean() < 0.05 * expected.std()
