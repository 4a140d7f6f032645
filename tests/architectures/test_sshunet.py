"""SSH-UNet's properties: views, shapes, deep supervision, compilation, errors. Its numbers: tests/test_golden.py."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nnunet_ext.architectures.blocks.gates import make_gate
from nnunet_ext.architectures.blocks.view_blocks import ViewTransposedConv
from nnunet_ext.architectures.blocks.views import swap_volume
from nnunet_ext.architectures.sshunet import SSHUNet

VARIANTS: dict[str, dict[str, Any]] = {
    "tsm": {},
    "gsm": {"gate": "gsm"},
    "gsf": {"gate": "gsf"},
    "none": {"gate": "none"},
    "vfn": {"fusion": "vfn"},
    "affine": {"norm_op_kwargs": {"affine": True}},
    "basic": {"decoder_block": "basic"},
}


def network(features: tuple[int, ...] = (8, 12, 16), classes: int = 3, **options: Any) -> SSHUNet:
    torch.manual_seed(0)
    n = len(features)
    options.setdefault("strides", [[1, 1, 1]] + [[2, 2, 2]] * (n - 1))
    options.setdefault("input_channels", 1)
    net = SSHUNet(
        n_stages=n,
        features_per_stage=features,
        conv_op=nn.Conv3d,
        kernel_sizes=[[1, 3, 3]] * n,
        num_classes=classes,
        **options,
    )
    net.apply(net.initialize)
    return net


@pytest.mark.parametrize("variant", VARIANTS)
def test_batched_equals_sequential_with_gradients(variant: str) -> None:
    net = network(deep_supervision=True, **VARIANTS[variant])
    x = torch.randn(2, 1, 16, 16, 16)
    results = []
    for execution in ("batched", "sequential"):
        net.view_execution = execution
        net.zero_grad()
        outputs = net(x)
        sum(y.square().mean() for y in outputs).backward()
        results.append([*outputs, *(p.grad for p in net.parameters() if p.grad is not None)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
def test_channels_last_equals_contiguous(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU's memory layout changes nothing but the speed."""
    net = network(**VARIANTS[variant]).double()
    x = torch.randn(2, 1, 16, 8, 24, dtype=torch.float64)
    fast = net(x)
    monkeypatch.setattr("nnunet_ext.architectures.sshunet.to_channels_last", lambda t: t)
    torch.testing.assert_close(fast, net(x))


@pytest.mark.parametrize("axis", [1, 2])
@pytest.mark.parametrize("gate", ["tsm", "gsm", "gsf"])
def test_a_gate_in_volume_coordinates_is_the_gate_of_the_transposed_volume(gate: str, axis: int) -> None:
    torch.manual_seed(0)
    module = make_gate(gate, 8)
    assert module is not None
    x = torch.randn(2, 8, 4, 5, 6)
    torch.testing.assert_close(module(x, axis), swap_volume(module(swap_volume(x, axis).contiguous(), 0), axis))


@pytest.mark.parametrize("gate", ["tsm", "gsm", "gsf"])
def test_a_single_slice_is_not_shifted(gate: str) -> None:
    module = make_gate(gate, 8)
    assert module is not None
    x = torch.randn(1, 8, 1, 4, 4)
    assert torch.equal(module(x, 0), x)


@pytest.mark.parametrize("size", [(16, 16, 16), (4, 16, 8), (8, 12, 20)])
def test_deep_supervision_outputs_are_nnunets(size: tuple[int, ...]) -> None:
    strides = [[1, 1, 1], [1, 2, 2], [2, 2, 2]]
    net = network(strides=strides, input_channels=2, deep_supervision=True)
    x = torch.randn(1, 2, *size)
    outputs = net(x)
    assert [tuple(y.shape) for y in outputs] == [(1, 3, *size), (1, 3, size[0], size[1] // 2, size[2] // 2)]
    assert all(y.is_leaf is False for y in outputs)
    net.decoder.deep_supervision = False
    net.eval()
    with torch.inference_mode():
        y = net(x)
        torch.testing.assert_close(y, outputs[0].detach())
        y.mul_(2)  # nnU-Net's predictor works in place
        torch.testing.assert_close(net(x), outputs[0].detach())


def test_anisotropic_strides_keep_one_transposed_kernel() -> None:
    net = network(strides=[[1, 1, 1], [1, 2, 2], [2, 2, 2]])
    kernel = net.decoder.transpconvs[1]
    assert isinstance(kernel, ViewTransposedConv)
    assert kernel.weight.shape[2:] == (2, 2, 2)
    x = torch.randn(1, 12, 4, 4, 4)
    expected = nn.functional.conv_transpose3d(
        x, swap_volume(kernel.weight, 1).mean(2, keepdim=True), kernel.bias, (1, 2, 2)
    )
    torch.testing.assert_close(kernel(x, 1), expected)


def test_swapped_axes_are_the_network_of_the_transposed_volume() -> None:
    """With axes "xyz" a (z, y, x) volume goes through as (x, y, z), with its own shape, and comes back."""
    net = network()
    x = torch.randn(1, 1, 8, 12, 16)
    expected = net(x.transpose(2, 4).contiguous()).transpose(2, 4)
    net.axes = "xyz"
    torch.testing.assert_close(net(x), expected)
    assert net(x).is_contiguous()


@pytest.mark.parametrize("variant", VARIANTS)
def test_trained_weights_load_strictly_without_deep_supervision(variant: str) -> None:
    trained, loaded = network(deep_supervision=True, **VARIANTS[variant]), network(**VARIANTS[variant])
    loaded.load_state_dict(trained.state_dict(), strict=True)
    heads = [key for key in trained.state_dict() if ".seg_layers." in key]
    other = network(classes=5, **VARIANTS[variant]).state_dict()
    state = trained.state_dict()
    assert heads
    assert all(state[key].shape == other[key].shape for key in state if key not in heads)


def test_training_compiles_in_one_graph_with_the_same_gradients() -> None:
    net = network(deep_supervision=True)
    x = torch.randn(1, 1, 16, 16, 16)
    torch._dynamo.reset()
    gradients = []
    for function in (net, torch.compile(net, backend="aot_eager", fullgraph=True)):
        net.zero_grad()
        sum(y.square().mean() for y in function(x)).backward()
        gradients.append([p.grad.clone() for p in net.parameters() if p.grad is not None])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_gates_and_fusion_have_no_graph_break() -> None:
    net = network(gate="gsf", fusion="vfn").eval()
    x = torch.randn(1, 1, 16, 16, 16)
    torch._dynamo.reset()
    with torch.no_grad():
        compiled = torch.compile(net, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), net(x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("variant", ["tsm", "gsf"])
def test_exports(variant: str) -> None:
    net = network(**VARIANTS[variant]).eval()
    x = torch.randn(1, 1, 16, 16, 16)
    with torch.no_grad():
        program = torch.export.export(net, (x,))
        torch.testing.assert_close(program.module()(x), net(x), rtol=1e-3, atol=1e-4)


def test_learns_one_patch() -> None:
    """The loss on one patch must halve in 30 steps."""
    net = network((8, 8, 16), classes=2)
    x = torch.randn(1, 1, 16, 16, 16)
    target = (nn.functional.avg_pool3d(x, 3, 1, 1)[:, 0] > 0.1).long()
    optimizer = torch.optim.AdamW(net.parameters(), 3e-3)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(x), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


ERRORS: list[tuple[dict[str, Any], str]] = [
    ({"gate": "xyz"}, "gate 'xyz' unknown; choose tsm, gsm, gsf or none"),
    ({"gate": "gsm", "features": (7, 8, 8)}, "gsm needs even feature counts; gate_stages stage 0 has 7"),
    ({"features": (2, 4, 8)}, "tsm needs at least 4 channels .*got 2"),
    ({"features": (8, 8)}, "at least 3 stages are needed; got n_stages 2"),
    ({"strides": [[2, 2, 2], [2, 2, 2], [2, 2, 2]]}, "strides must start with a stage of ones"),
    ({"strides": [[1, 1, 1], [2, 2, 2]]}, "strides has 2 entries for 3 stages"),
    ({"gate_stages": [True]}, "gate_stages has 1 entries; this network has 3 such stages"),
    ({"fusion": "max"}, "fusion 'max' unknown; choose sum or vfn"),
]


@pytest.mark.parametrize(("options", "message"), ERRORS, ids=[message[:30] for _, message in ERRORS])
def test_impossible_options_say_what_is_allowed(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        network(**options)


def test_two_dimensions_name_the_way_out() -> None:
    with pytest.raises(NotImplementedError, match=r"3d_fullres or 3d_lowres; for 2d use an nnU-Net network"):
        SSHUNet(1, 3, 8, nn.Conv2d, 3, [[1, 1], [2, 2], [2, 2]], 2)


SIZES: list[tuple[tuple[int, ...], dict[str, Any], str]] = [
    ((18, 16, 16), {}, r"\(18, 16, 16\): axis 0 must be divisible by 4 .*1,2,2.*use e.g. 16 or 20"),
    ((4, 4, 4), {}, "leaves a 1 x 1 x 1 bottleneck"),
    ((20, 20, 20), {"fusion": "vfn"}, r"divisible by 8.*\(20, 20, 20\)"),
    ((16, 16, 32), {"fusion": "vfn", "vfn_alignment": "legacy"}, "cubes only"),
    ((16, 16), {}, "three spatial axes"),
]


@pytest.mark.parametrize(("size", "options", "message"), SIZES, ids=[str(size) for size, _, _ in SIZES])
def test_impossible_patches_say_what_is_allowed(size: tuple[int, ...], options: dict[str, Any], message: str) -> None:
    net = network(**options)
    with pytest.raises(ValueError, match=message):
        net.check_patch_size(size)
    with pytest.raises(ValueError, match=message):
        net(torch.zeros(1, 1, *size))


def test_batched_views_need_cubes() -> None:
    with pytest.raises(ValueError, match="'batched' needs a cubic patch"):
        network(view_execution="batched")(torch.zeros(1, 1, 8, 8, 16))


def test_dropout_acts_in_training_only_and_never_on_logits() -> None:
    net = network(dropout_op=nn.Dropout3d, dropout_op_kwargs={"p": 0.5})
    x = torch.randn(1, 1, 8, 8, 8)
    assert not torch.equal(net(x), net(x))
    net.eval()
    assert torch.equal(net(x), net(x))
    assert not any(isinstance(m, nn.Dropout3d) for m in net.decoder.seg_layers.modules())


def test_stacked_supervision_repeats_voxels() -> None:
    net = network(deep_supervision=True, stacked_supervision=1)
    x = torch.randn(1, 1, 8, 8, 8)
    stacked = net(x)
    assert stacked.shape == (1, 2, 3, 8, 8, 8)
    net.eval()
    low = net(x)[1]
    for corner in itertools.product((0, 1), repeat=3):
        part: Tensor = stacked[:, 1, :, corner[0] :: 2, corner[1] :: 2, corner[2] :: 2]
        torch.testing.assert_close(part, low)
