"""The faithful OSS-Net: its parts against plain formulations, any grid, what it keeps, and its refusals."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from nnunet_ext.architectures.blocks import conditional_norm
from nnunet_ext.architectures.blocks.conditional_norm import ConditionalBatchNorm
from nnunet_ext.architectures.blocks.memory import saved_bytes
from nnunet_ext.architectures.blocks.patch_mapping import PatchMapping, large_windows, pooled_pairs
from nnunet_ext.architectures.blocks.point_grid import voxel_coordinates
from nnunet_ext.architectures.blocks.windows import gather_windows
from nnunet_ext.architectures.ossnet import OSSNet
from nnunet_ext.architectures.ossnet_plans import (
    PUBLISHED_PATCHES,
    VARIANTS,
    latent_grid,
    ossnet_architecture,
    ossnet_strides,
)
from nnunet_ext.weights.transfer import build_network

CHANNELS, CLASSES = 2, 3
PATCHES = {3: (32, 16, 16), 2: (48, 32)}


def network(variant: str = "D", dim: int = 3, classes: int = CLASSES, **options: Any) -> Any:
    settings = {"n_points": 40, "decoder_width": 16, "decoder_blocks": 2, **options}
    return build_network(ossnet_architecture(PATCHES[dim], variant, **settings), CHANNELS, classes)


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("variant", VARIANTS)
def test_points_and_dense_logits(variant: str, dim: int) -> None:
    net = network(variant, dim)
    patch = PATCHES[dim]
    x, coords, on_grid = net.memory_probe(patch, 2)
    points, coarse = net(x, coords, on_grid)
    assert points.shape == (2, CLASSES, 40)
    cells = tuple(latent_grid(patch, ossnet_strides(patch)))
    assert [head.shape[1:] for head in coarse] == ([(1, *cells)] if VARIANTS[variant].skip else [])
    assert all(p.grad is None for p in net.parameters())
    (points.sum() + sum(head.sum() for head in coarse)).backward()
    assert all(p.grad is not None for p in net.parameters())
    net.eval()
    net.decode_mode = "dense"
    image = torch.randn(1, CHANNELS, *patch)
    dense = net(image)
    assert dense.shape == (1, CLASSES, *patch)
    with torch.no_grad():
        one = net.decode(net.encode(image), voxel_coordinates(patch)[None, -7:], image)
    torch.testing.assert_close(dense.flatten(2)[..., -7:], one, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("patch", "strides", "cells"),
    [
        (PUBLISHED_PATCHES["brats2020"], [1, 4, 2, 2, 2], [8, 8, 5]),
        (PUBLISHED_PATCHES["lits"], [1, 4, 2, 2, 2, 2], [8, 8, 8]),
        ((20, 160, 128), None, [5, 10, 8]),
        ((64, 64), [1, 4, 2], [8, 8]),
        ((6, 6, 6), None, [6, 6, 6]),
    ],
)
def test_plans_of_any_grid(patch: tuple[int, ...], strides: list[int] | None, cells: list[int]) -> None:
    kwargs = ossnet_architecture(patch, "C")["arch_kwargs"]
    assert kwargs["latent_shape"] == cells
    if strides is not None:
        assert kwargs["strides"] == [[step] * len(patch) for step in strides]
    assert kwargs["features_per_stage"][-1] == 128
    if min(patch) > 6:
        with torch.device("meta"):
            assert build_network(ossnet_architecture(patch, "A"), 1, 2).dim == len(patch)


@pytest.mark.parametrize("dim", [2, 3])
def test_patch_mapping_is_two_convolutions_in_each_window(dim: int) -> None:
    mapping = PatchMapping(4, {2: nn.Conv2d, 3: nn.Conv3d}[dim])
    windows = torch.randn(2, 3, 4, *[7] * dim)
    plain = mapping.mapping(windows.flatten(0, 1)).view(2, 3, -1)
    torch.testing.assert_close(mapping(windows), plain, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("pooling", ["average", "max"])
def test_large_windows_are_pooled_windows(pooling: str) -> None:
    x = torch.randn(2, 3, 9, 11)
    index = torch.tensor([[[0, 0], [8, 10], [4, 3]], [[1, 9], [8, 0], [5, 5]]])
    pool: Any = {"average": functional.avg_pool2d, "max": functional.max_pool2d}[pooling]
    plain = pool(gather_windows(x, index, (7, 7), (14, 14)).flatten(0, 1), 2).view(2, 3, 3, 7, 7)
    torch.testing.assert_close(large_windows(pooled_pairs(x, pooling), index), plain)


# ------------------------------------------------------------------------------------------------- conditional norm


def filled_norm(features: int = 4) -> ConditionalBatchNorm:
    torch.manual_seed(1)
    norm = ConditionalBatchNorm(3, features)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    return norm


def test_conditional_norm_at_first_is_a_batch_norm() -> None:
    norm, h = ConditionalBatchNorm(3, 4), torch.randn(2, 5, 4) * 3 + 1
    plain = nn.BatchNorm1d(1, affine=False)
    for _ in range(2):
        expected = plain(h.reshape(-1, 1, 4)).view_as(h)
        torch.testing.assert_close(norm(h, torch.randn(2, 3)), expected)
    for name, buffer in plain.named_buffers():
        torch.testing.assert_close(norm.normalization.get_buffer(name), buffer)
    torch.testing.assert_close(norm.eval()(h, torch.zeros(2, 3)), plain.eval()(h.reshape(-1, 1, 4)).view_as(h))


def test_gradients_of_the_conditional_norm() -> None:
    h, gamma, beta = (torch.randn(2, n, 4, dtype=torch.double, requires_grad=True) for n in (5, 1, 1))
    assert torch.autograd.gradcheck(lambda *t: conditional_norm._Normalise.apply(*t, 1e-5, None)[0], (h, gamma, beta))


def test_statistics_of_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes with one item each compute what one with both does; here they are threads."""
    barrier, shared = threading.Barrier(2, timeout=20), threading.local()
    boxes: list[Tensor] = [torch.zeros(())] * 2

    def all_reduce(tensor: Tensor, group: Any) -> None:
        boxes[shared.rank] = tensor.clone()
        barrier.wait()
        total = boxes[0] + boxes[1]
        barrier.wait()
        tensor.copy_(total)

    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    h, latent, upstream = torch.randn(2, 6, 4) * 2 + 3, torch.randn(2, 3), torch.randn(2, 6, 4)
    whole = filled_norm()
    leaf = h.clone().requires_grad_()
    expected = whole(leaf, latent)
    expected.backward(upstream)
    outputs: dict[int, Any] = {}
    norms = [filled_norm(), filled_norm()]

    def process(rank: int) -> None:
        shared.rank = rank
        norm, part = norms[rank], h[rank : rank + 1].clone().requires_grad_()
        out = norm(part, latent[rank : rank + 1])
        out.backward(upstream[rank : rank + 1])
        outputs[rank] = out, part.grad

    monkeypatch.setattr(conditional_norm, "_group", lambda norm: "both")
    threads = [threading.Thread(target=process, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    torch.testing.assert_close(torch.cat([outputs[rank][0] for rank in range(2)]), expected)
    torch.testing.assert_close(torch.cat([outputs[rank][1] for rank in range(2)]), leaf.grad)
    weight: Any = 0
    for norm in norms:
        weight = weight + norm.linear_gamma.weight.grad
    torch.testing.assert_close(weight, whole.linear_gamma.weight.grad)
    for name, buffer in whole.normalization.named_buffers():
        torch.testing.assert_close(norms[1].normalization.get_buffer(name), buffer)


def test_a_synchronised_network_is_the_same() -> None:
    """nnU-Net converts batch norms before it trains on several GPUs; without processes nothing changes."""
    net = network("A")
    x, coords = torch.randn(2, CHANNELS, *PATCHES[3]), torch.rand(2, 40, 3) * 15
    expected = net(x, coords)[0]
    synchronised = nn.SyncBatchNorm.convert_sync_batchnorm(network("A"))
    assert isinstance(synchronised.decoder.blocks[0].cnb_1.normalization, nn.SyncBatchNorm)
    torch.testing.assert_close(synchronised(x, coords)[0], expected)


# ------------------------------------------------------------------------------------------- coordinates, precision


def test_windows_are_cut_at_the_nearest_voxel_inside() -> None:
    net = network("D").eval()
    x = torch.randn(1, CHANNELS, *PATCHES[3])
    context = net.encode(x)
    coords = torch.tensor([[[3.4, 5.5, 0.0], [-2.0, 15.6, 40.0]]])
    nearest = torch.tensor([[[3.0, 6.0, 0.0], [0.0, 15.0, 15.0]]])
    assert torch.equal(net.windows(context, coords, x), net.windows(context, nearest, x))
    torch.testing.assert_close(net.decode_nearby(context, coords, x), net.decode(context, coords, x))
    for part in (coords[:, :1], coords[:, 1:]):
        assert torch.equal(net.windows(context, part, x, nearby=True), net.windows(context, part, x))
    assert not torch.allclose(net.decode(context, coords, x), net.decode(context, nearest, x))  # they stay themselves


def test_half_precision_tells_voxels_apart() -> None:
    """Raw coordinates up to 511 enter the first layer, which is float32 under autocast."""
    net = network("ONet", decoder_width=64).eval()
    x = torch.zeros(1, CHANNELS, *PATCHES[3])
    context = net.encode(x)
    coords = torch.stack([torch.tensor([500.0, 501.0]), torch.full((2,), 511.0), torch.full((2,), 3.0)], -1)[None]
    hidden: list[Tensor] = []
    net.decoder.blocks[0].cnb_1.register_forward_hook(lambda _m, inputs, _o: hidden.append(inputs[0]))
    net.decode(context, coords, x)
    with torch.autocast("cpu", torch.bfloat16):
        half = net.decode(context, coords, x)
    assert torch.isfinite(half).all()
    assert hidden[1].dtype == torch.float32
    torch.testing.assert_close(hidden[1], hidden[0])


def test_presence_of_classes() -> None:
    net = network("C").eval()
    context = net.encode(torch.randn(1, CHANNELS, *PATCHES[3]))
    some = context.head.sigmoid()
    torch.testing.assert_close(net.presence(context), torch.cat([1 - some, some], 1))
    assert network("A").presence(context._replace(head=None)) is None
    regions = network("C", regions=True)
    torch.testing.assert_close(regions.presence(context), some)
    assert network("C", classes=1).presence(context).shape[1] == 1


def test_fresh_networks_keep_their_initialisation() -> None:
    """nnU-Net calls `initialize` of a network that has it: He's would destroy norms and activations."""
    assert not hasattr(OSSNet, "initialize")
    norm = network().decoder.blocks[1].cnb_2
    assert not norm.linear_gamma.weight.any()
    assert (norm.linear_gamma.bias == 1).all()
    assert not norm.linear_beta.bias.any()


# ------------------------------------------------------------------------------------------------------------ memory


def test_memory_of_the_published_network() -> None:
    """Specification ossnet 5.4: 59 KiB a point and about 14 for the windows; 498 MiB for the encoder as published."""
    patch = PUBLISHED_PATCHES["brats2020"]
    needs = []
    for points in (1024, 2048):
        with torch.device("meta"):
            net = build_network(ossnet_architecture(patch, "C", n_points=points), 4, 2)
        needs.append(saved_bytes(net, patch, 4, 1))
    point = (needs[1] - needs[0]) / 1024
    assert point < 74 * 1024
    assert needs[0] - 1024 * point < 300 * 2**20


# ---------------------------------------------------------------------------------------------------------- refusals


def test_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"images of \(32, 16, 16\) voxels.* got \(32, 32, 16\)"):
        network()(torch.zeros(1, CHANNELS, 32, 32, 16))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_stages": 1}, "n_stages >= 2"),
        ({"strides": [[2, 1, 1], [4, 4, 4]]}, "its strides must be 1"),
        ({"strides": [[1, 1], [4, 4]]}, "need 3 entries"),
        ({"latent_shape": [9, 4, 4], "skip": False}, r"leave \[8, 4, 4\] cells.*latent_shape, \[9, 4, 4\]"),
        ({"latent_shape": [0, 4, 4]}, "at least 1"),
        ({"decoder_width": 0}, "at least 1"),
        ({"large_patches": True, "patches": False}, "large_patches come beside patches"),
        ({"head": True, "skip": False}, "only skip encoders have a coarse head"),
        ({"large_pooling": "median"}, "average, max; got 'median'"),
    ],
)
def test_impossible_arguments_are_refused(options: dict[str, Any], message: str) -> None:
    block = ossnet_architecture((32, 16, 16), "C")
    block["arch_kwargs"] |= options
    with pytest.raises(ValueError, match=message):
        build_network(block, 2, 2)


def test_another_dimension_is_refused() -> None:
    with pytest.raises(NotImplementedError, match=r"Conv2d or torch\.nn\.Conv3d"):
        build_network(ossnet_architecture((32,), "C"), 2, 2)


def test_unknown_variant_is_refused() -> None:
    with pytest.raises(ValueError, match="ONet, A, B, C, D; got 'E'"):
        ossnet_architecture((32, 32, 32), "E")
