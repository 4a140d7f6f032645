"""OSSNetLocal: its two ways to local features, points and dense logits, what it keeps, precision, and refusals."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from measured import really_saved_bytes
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from nnunetv2.utilities.helpers import softmax_helper_dim1
from torch import Tensor
from torch.nn import functional

from nnunet_ext.architectures.blocks import local_features
from nnunet_ext.architectures.blocks.local_features import LocalFeatures
from nnunet_ext.architectures.blocks.memory import kept_for_backward, saved_bytes
from nnunet_ext.architectures.blocks.point_decoder import PointDecoder
from nnunet_ext.architectures.blocks.point_features import cell_position, sample_map
from nnunet_ext.architectures.blocks.point_grid import voxel_coordinates
from nnunet_ext.architectures.blocks.windows import gather_windows
from nnunet_ext.architectures.graph import unused_parameters
from nnunet_ext.architectures.ossnet_local_plans import number_of_points, ossnet_local_architecture
from nnunet_ext.architectures.ossnet_plans import ossnet_architecture
from nnunet_ext.losses.occupancy import OccupancyLoss, OccupancyTarget
from nnunet_ext.losses.point_sampling import Sampling, draw_points
from nnunet_ext.weights.transfer import build_network

CHANNELS, CLASSES = 2, 3
SIZES = {3: (16, 24, 16), 2: (24, 16)}


def architecture(dim: int = 3, stages: int = 4, width: int = 4, **options: Any) -> dict[str, Any]:
    strides = options.pop("strides", [[1] * dim] + [[2] * dim] * (stages - 1))
    kernels = options.pop("kernel_sizes", [[3] * dim] * len(strides))
    settings = {"n_points": 64, "decoder_blocks": 1, **options}
    return ossnet_local_architecture(SIZES[dim], strides, kernels, base_width=width, **settings)


def network(dim: int = 3, classes: int = CLASSES, **options: Any) -> Any:
    torch.manual_seed(0)
    return build_network(architecture(dim, **options), CHANNELS, classes)


def image(dim: int = 3, batch: int = 1, size: Sequence[int] | None = None) -> Tensor:
    return torch.randn(batch, CHANNELS, *(size or SIZES[dim]), generator=torch.Generator().manual_seed(1))


def anywhere(size: Sequence[int], points: int, on_grid: int, batch: int = 1, beyond: float = 0.0) -> Tensor:
    """Coordinates (B, N, dim) in an image and `beyond` it, the first of them whole numbers, its corners among both."""
    generator = torch.Generator().manual_seed(2)
    last = torch.tensor([float(edge - 1) for edge in size])
    coords = torch.rand(batch, points, len(size), generator=generator) * (last + 2 * beyond) - beyond
    corners = torch.tensor(list(itertools.product((0.0, 1.0), repeat=len(size)))) * last
    coords[:, on_grid - len(corners) : on_grid + len(corners)] = corners.repeat(2, 1)
    coords[:, :on_grid] = coords[:, :on_grid].round()
    return coords


def by(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Local features by windows, or of the whole image, whatever costs less."""
    cost = {"windows": 0, "image": 10**6}[way]
    for name in ("WINDOW_COST", "WIDER_COST"):
        monkeypatch.setattr(local_features, name, {2: cost, 3: cost})


# ------------------------------------------------------------------------------------------------------ local features


@pytest.mark.parametrize("activation", ["leaky_relu", "pade"])
@pytest.mark.parametrize(
    ("size", "kernel"), [((9, 8, 7), (3, 3, 3)), ((5, 8, 9), (1, 3, 3)), ((3, 2, 4), (3, 3, 3)), ((9, 8), (3, 3))]
)
def test_windows_and_whole_image_give_equal_features(
    size: tuple[int, ...], kernel: tuple[int, ...], activation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the grid and between, at corners and beyond the border; and equal gradients."""
    dim = len(size)
    torch.manual_seed(0)
    local = LocalFeatures(dim, CHANNELS, (3, 4, 5), [kernel, kernel, (3,) * dim], activation)
    assert local.reach == tuple(3 if k == 3 else 1 for k in kernel)
    x, coords, on_grid = image(size=size, batch=2), anywhere(size, 60, 20, batch=2, beyond=2.4), 20
    found = []
    for way in ("windows", "image"):
        by(way, monkeypatch)
        features = local(x, coords, on_grid)
        gradients = torch.autograd.grad(features.square().sum(), list(local.parameters()))
        found.append([features, *gradients])
    assert found[0][0].shape == (2, 60, 5)
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    for way in ("windows", "image"):  # points on the grid cost less when that is said, and are the same
        by(way, monkeypatch)
        torch.testing.assert_close(local(x, coords, 0), found[0][0], rtol=1e-4, atol=1e-5)


def test_local_features_are_convolutions_of_the_padded_image() -> None:
    local = LocalFeatures(3, CHANNELS, (3, 4, 5), [(3, 3, 3)] * 3, "leaky_relu")
    x = image(size=(6, 5, 7))
    plain = functional.pad(x, [3] * 6)
    for layer in local.layers:
        plain = functional.leaky_relu(layer(plain), 0.01)
    coords = voxel_coordinates(x.shape[2:])[None]
    torch.testing.assert_close(local(x, coords, coords.shape[1]), plain.flatten(2).transpose(1, 2))


@pytest.mark.parametrize(("before", "size"), [((3, 3), (7, 7)), ((0, 2), (2, 3)), ((1, 0), (1, 1))])
def test_windows_are_an_unfolded_view(before: tuple[int, ...], size: tuple[int, ...]) -> None:
    x = image(size=(6, 9), batch=2)
    padded = functional.pad(x, [before[1], size[1] - 1 - before[1], before[0], size[0] - 1 - before[0]])
    view = padded.unfold(2, size[0], 1).unfold(3, size[1], 1)  # (B, C, D, H, *size)
    index = torch.tensor([[[0, 0], [5, 8], [2, 3]], [[5, 0], [0, 8], [1, 1]]])
    plain = torch.stack([view[b, :, index[b, :, 0], index[b, :, 1]].transpose(0, 1) for b in range(2)])
    assert torch.equal(gather_windows(x, index, before, size), plain)


# ------------------------------------------------------------------------------------------------ points, dense logits


@pytest.mark.parametrize(
    ("dim", "options"),
    [
        (3, {}),
        (3, {"stages": 2}),
        (3, {"stages": 3}),
        (3, {"strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2]], "kernel_sizes": [[1, 3, 3], [1, 3, 3], [3, 3, 3]]}),
        (2, {"stages": 3}),
        (3, {"regions": True, "classes": 2}),
    ],
    ids=["3d", "two stages", "three stages", "anisotropic", "2d", "regions"],
)
def test_points_are_the_dense_logits(dim: int, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """By every way: with and without gradients, windows and whole image, dense and adaptive."""
    net = network(dim, **options)
    classes = options.get("classes", CLASSES)
    x = image(dim, batch=2)
    everywhere = voxel_coordinates(x.shape[2:]).expand(2, -1, -1)
    chosen = torch.randperm(everywhere.shape[1])[:50]
    trained = net.train()(x)
    assert trained.shape == (2, classes, *SIZES[dim])
    assert trained.requires_grad
    net.eval()
    for way in ("windows", "image"):
        by(way, monkeypatch)
        points, coarse = net(x, everywhere[:, chosen], len(chosen))
        torch.testing.assert_close(points, trained.flatten(2)[..., chosen], rtol=1e-4, atol=1e-5)
    assert [len(head.shape) for head in coarse] == [dim + 2] * len(net.pyramid.projections)
    assert coarse[0].shape == (2, classes, *(s // c for s, c in zip(SIZES[dim], net.cell, strict=True)))
    for mode in ("dense", "adaptive", "budget"):
        net.decode_mode = mode
        dense = net(x)
        assert not dense.requires_grad
        assert dense.shape == trained.shape
        if mode == "dense":
            torch.testing.assert_close(dense, trained.detach(), rtol=1e-4, atol=1e-5)


def test_decoding_nearby_points_is_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    net = network().eval()
    x = image()
    context = net.encode(x)
    corners = [torch.tensor(c) for c in ((0.0, 0.0, 0.0), (8.0, 9.0, 7.0), (13.0, 21.0, 13.0))]
    spread = anywhere((3, 3, 3), 40, 20, beyond=1.3)[0]
    for way, corner, whole in itertools.product(("windows", "image"), corners, (True, False)):
        by(way, monkeypatch)
        coords = (corner + (spread.round() if whole else spread))[None]
        with torch.no_grad():
            nearby, plain = net.decode_nearby(context, coords, x), net.decode(context, coords, x)
        torch.testing.assert_close(nearby, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dim", [2, 3])
def test_the_field_is_continuous(dim: int) -> None:
    """Steps of a hundredth change little, across voxels, cells and the image's border too; smaller steps, less."""
    net = network(dim).eval()
    x = image(dim)
    largest = []
    for steps in (4000, 40_000):
        line = torch.linspace(-1.5, max(SIZES[dim]) + 0.5, steps)
        coords = torch.stack([line * (1 - 0.1 * axis) for axis in range(dim)], -1)[None]
        with torch.no_grad():
            logits = net.decode(net.encode(x), coords, x)[0]
        largest.append(float(logits.diff(dim=1).abs().max() / logits.std()))
    assert largest[0] < 0.1
    assert largest[1] < 0.2 * largest[0]


def test_sampled_maps_and_places_in_cells() -> None:
    """A map that is linear in its place gives that place; the phase is that of the voxel in its cell."""
    size, stride = (16, 24, 8), (4, 8, 2)
    cells = [s // step for s, step in zip(size, stride, strict=True)]
    axes = torch.meshgrid(
        *(torch.arange(n) * step + (step - 1) / 2 for n, step in zip(cells, stride, strict=True)), indexing="ij"
    )
    coords = torch.rand(2, 50, 3) * (torch.tensor(size) - torch.tensor(stride)) + (torch.tensor(stride) - 1) / 2
    found = sample_map(torch.stack(axes)[None].expand(2, -1, -1, -1, -1), coords, size)
    torch.testing.assert_close(found, coords, rtol=1e-5, atol=1e-4)
    moved = cell_position(coords + torch.tensor(stride), stride)
    torch.testing.assert_close(cell_position(coords, stride), moved, rtol=1e-4, atol=1e-4)
    half = cell_position(coords + torch.tensor(stride) / 2, stride)
    torch.testing.assert_close(cell_position(coords, stride), -half, rtol=1e-4, atol=1e-4)


def test_deep_supervision_has_nnunets_sizes() -> None:
    """For nnU-Net's own trainer: the logits averaged to each scale but the last."""
    strides = [[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2]]
    torch.manual_seed(0)
    net = build_network(architecture(strides=strides), CHANNELS, CLASSES, deep_supervision=True)
    decoder: Any = net.decoder
    outputs = net(image())
    assert [tuple(y.shape[2:]) for y in outputs] == [(16, 24, 16), (16, 12, 8), (8, 6, 4)]
    torch.testing.assert_close(outputs[1], functional.avg_pool3d(outputs[0], (1, 2, 2)))
    decoder.deep_supervision = False
    assert torch.equal(net(image()), outputs[0])


def test_a_sample_does_not_depend_on_its_neighbour_nor_a_point_on_the_others() -> None:
    net = network().train()
    x, coords = image(batch=2), anywhere(SIZES[3], 40, 20, batch=2)
    both = net(x, coords, 20)[0]
    torch.testing.assert_close(net(x[1:], coords[1:], 20)[0], both[1:], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(net(x, coords[:, 5:30], 15)[0], both[..., 5:30], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("activation", ["leaky_relu", "gelu", "pade"])
def test_every_parameter_is_trained(activation: str) -> None:
    net = network(activation=activation).train()
    x, coords = image(batch=2), anywhere(SIZES[3], 40, 20, batch=2)
    assert unused_parameters(net, x, coords, 20) == []
    optimizer = torch.optim.AdamW(net.parameters(), 3e-3)
    labels = (coords.sum(-1) > coords.sum(-1).mean()).long()
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = functional.cross_entropy(net(x, coords, 20)[0], labels)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]


# ------------------------------------------------------------------------------------------------ memory and precision


def meta_bytes(size: int, first: int, points: int) -> int:
    """Of a training step on a patch of size^3 voxels whose encoder works at 1 / first."""
    strides = [[1] * 3, [first] * 3, [2] * 3, [2] * 3]
    with torch.device("meta"):
        net = network(strides=strides, width=8, n_points=points)
    return saved_bytes(net, (size,) * 3, CHANNELS)


def test_memory_depends_on_the_encoders_input_and_the_points_alone() -> None:
    """Twice the resolution with a first stride of twice as much keeps as many bytes; points cost each the same."""
    small = meta_bytes(64, 2, 1024)
    assert meta_bytes(128, 4, 1024) == pytest.approx(small, rel=0.01)
    assert meta_bytes(128, 2, 1024) > 2 * small
    more = [meta_bytes(64, 2, points) for points in (1024, 2048, 4096)]
    assert more[2] - more[1] == pytest.approx(2 * (more[1] - more[0]), rel=1e-3)


@pytest.mark.parametrize("dim", [2, 3])
def test_the_planners_count_is_what_autograd_keeps_of_windows(dim: int) -> None:
    size = {2: (96, 96), 3: (32, 48, 32)}[dim]
    net = network(dim, n_points=300)
    assert math.prod(size) > local_features.WINDOW_COST[dim] * 300  # by windows
    saved = really_saved_bytes(net, (2, CHANNELS, *size))
    assert saved_bytes(net, size, CHANNELS) == pytest.approx(saved, rel=0.01)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.1), (torch.float16, 0.02)])
@pytest.mark.parametrize("activation", ["leaky_relu", "pade"])
@pytest.mark.parametrize("way", ["windows", "image"])
def test_autocast(
    dtype: torch.dtype, tolerance: float, activation: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Close to float32, forwards and backwards, at intensities of 30 and coordinates far out too."""
    by(way, monkeypatch)
    net = network(2, activation=activation).train()
    x, coords = 30 * image(2, size=(16, 3000)), anywhere((16, 3000), 40, 20)
    x = x[..., : 3000 - 3000 % 8]
    with torch.no_grad():
        plain, coarse = net(x, coords, 20)
    with torch.autocast("cpu", dtype):
        half, half_coarse = net(x, coords, 20)
    for a, b in zip((half, *half_coarse), (plain, *coarse), strict=True):
        assert bool(torch.isfinite(a).all())
        assert float((a.detach().float() - b).square().mean().sqrt() / b.std()) < tolerance
    half.float().square().mean().backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in net.parameters() if p.grad is not None)


def test_points_keep_half_the_bytes_in_half_precision() -> None:
    decoder = PointDecoder(20, 32, 8, CLASSES, 3, "leaky_relu", False)
    points, context = torch.randn(1, 500, 20), torch.randn(1, 8)
    exclude = [points, context, *decoder.parameters()]
    full = kept_for_backward(lambda: decoder(points, context), exclude)
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        half = kept_for_backward(lambda: decoder(points, context), exclude)
    assert half < 0.62 * full


@pytest.mark.parametrize("faithful", [False, True])
def test_a_training_step_compiles_without_breaks(faithful: bool) -> None:
    """torch.compile is on by default in nnU-Net's trainings on GPUs; adaptive decoding stays out of it."""
    small: dict[str, Any] = {"decoder_width": 8, "decoder_blocks": 1, "n_points": 64}
    block = ossnet_architecture(SIZES[3], "C", **small) if faithful else architecture(stages=3)
    torch.manual_seed(0)
    net = build_network(block, CHANNELS, CLASSES).train()
    x, coords = image(batch=2), anywhere(SIZES[3], 64, 32, batch=2)
    torch._dynamo.reset()
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    for a, b in zip(flat(compiled(x, coords, 32)), flat(net(x, coords, 32)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def flat(output: tuple[Tensor, list[Tensor]]) -> list[Tensor]:
    return [output[0], *output[1]]


@pytest.mark.parametrize("faithful", [False, True])
@pytest.mark.parametrize("regions", [False, True])
def test_a_training_step_does_not_wait_for_the_device(
    faithful: bool, regions: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No value is looked at (the meta device has none), and no number is copied there (torch.tensor would wait)."""
    options: dict[str, Any] = {"decoder_width": 8, "decoder_blocks": 1, "n_points": 64, "regions": regions}
    with torch.device("meta"):
        block = ossnet_architecture(SIZES[3], "D", **options) if faithful else architecture(regions=regions)
        net: Any = build_network(block, CHANNELS, CLASSES).train()
        x, dense = torch.zeros(2, CHANNELS, *SIZES[3]), torch.zeros(2, CLASSES if regions else 1, *SIZES[3])
    monkeypatch.setattr(torch, "tensor", None)
    points = draw_points(dense, Sampling(64, 0.25, 0.25, 0.5, (3, 3, 3)), ignored=dense[:, :1] > 0)
    dice = MemoryEfficientSoftDiceLoss(torch.sigmoid if regions else softmax_helper_dim1, do_bg=regions, ddp=False)
    loss = OccupancyLoss(dice, regions, 0.3, "foreground" if faithful else "classes")
    target = OccupancyTarget(points, dense, dense[:, :1] > 0)
    loss(net(x, points.coords, points.on_grid), target).backward()
    assert all(p.grad is not None and p.grad.is_meta for p in net.parameters())


# --------------------------------------------------------------------------------------------------------- it can learn


def phantoms() -> tuple[Tensor, Tensor]:
    """Two volumes (2, 1, 32, 32, 32) of noise with two balls, one in the other, and their labels 0, 1, 2."""
    generator = torch.Generator().manual_seed(3)
    grid = voxel_coordinates((32, 32, 32)).view(32, 32, 32, 3)
    labels = torch.zeros(2, 1, 32, 32, 32, dtype=torch.long)
    for label, centre in zip(labels[:, 0], ((14.0, 17.0, 15.0), (18.0, 13.0, 16.0)), strict=True):
        distance = (grid - torch.tensor(centre)).norm(dim=-1)
        label[distance < 11] = 1
        label[distance < 7] = 2
    return labels + 0.4 * torch.randn(labels.shape, generator=generator), labels


def test_overfits_two_volumes() -> None:
    """Three classes, Dice above 0.95 within 300 steps."""
    x, labels = phantoms()
    torch.manual_seed(0)
    net = build_network(architecture(width=8, n_points=512), 1, CLASSES).train()
    loss_function = OccupancyLoss(None, False, 0.3)
    optimizer = torch.optim.AdamW(net.parameters(), 1e-2)
    sampling = Sampling(512, 0.25, 0.25, 0.5, (7, 7, 7))
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, steps := 90)
    for _ in range(steps):
        points = draw_points(labels, sampling)
        optimizer.zero_grad()
        loss_function(net(x, points.coords, points.on_grid), OccupancyTarget(points, labels, None)).backward()
        optimizer.step()
        schedule.step()
    found = net.eval()(x).argmax(1, keepdim=True)
    for k in (1, 2):
        a, b = found == k, labels == k
        assert 2 * float((a & b).sum()) / float(a.sum() + b.sum()) > 0.95


# --------------------------------------------------------------------------------------------------- plans, refusals


@pytest.mark.parametrize("dim", [2, 3])
def test_the_block_is_json(dim: int) -> None:
    block = architecture(dim, activation="gelu")
    assert json.loads(json.dumps(block)) == block
    assert block["arch_kwargs"]["features_per_stage"] == [4, 4, 8, 16]
    wide = ossnet_local_architecture((64,) * dim, [[1] * dim] * 8, [[3] * dim] * 8)["arch_kwargs"]
    assert wide["features_per_stage"] == [32, 32, 64, 128, 256, 320, 320, 320]


@pytest.mark.parametrize(
    ("patch", "points"),
    [((128, 128, 128), 2**14), ((16, 16, 16), 1024), ((512, 512), 2**13), ((16, 16), 64), ((1, 2), 1)],
)
def test_number_of_points(patch: tuple[int, ...], points: int) -> None:
    assert number_of_points(patch) == points


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"stages": 1}, ValueError, "at least 2 stages"),
        ({"features_per_stage": [4, 4, 8]}, ValueError, "features_per_stage has 3 entries for 4 stages"),
        ({"features_per_stage": [4, 0, 8, 8]}, ValueError, "must be positive"),
        ({"kernel_sizes": [[3, 3, 3]] * 3 + [[5, 3, 3]]}, ValueError, "1 or 3 along each of 3 axes"),
        ({"kernel_sizes": [[3, 3]] * 4}, ValueError, "1 or 3 along each of 3 axes"),
        ({"strides": [[1] * 3, [3] * 3]}, ValueError, "1, 2 or 4"),
        ({"strides": [[2] * 3, [2] * 3]}, ValueError, "the first stride must be 1"),
        ({"n_points": 0}, ValueError, "must be positive; got 0 and 1"),
        ({"decoder_blocks": 0}, ValueError, "must be positive; got 64 and 0"),
        ({"activation": "relu"}, ValueError, "'relu'; allowed are 'leaky_relu', 'gelu', 'pade'"),
        ({"conv_op": "torch.nn.Conv1d"}, NotImplementedError, "Conv1d; allowed are Conv2d and Conv3d"),
    ],
    ids=str,
)
def test_impossible_arguments(options: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        network(**options)


def test_impossible_images() -> None:
    net = network(strides=[[1, 1, 1], [1, 2, 2], [2, 4, 2]])
    with pytest.raises(ValueError, match=r"\(16, 20, 16\).*total stride \(2, 8, 4\).*\(16, 24, 16\)"):
        net(image(size=(16, 20, 16)))
    with pytest.raises(ValueError, match="3 spatial axes"):
        net(torch.zeros(1, CHANNELS, 16, 16))


@pytest.mark.parametrize("mode", ["dense", "budget"])
def test_plans_may_state_how_voxels_are_decoded(mode: str) -> None:
    assert network(decode_mode=mode).decode_mode == mode
    with pytest.raises(ValueError, match=r"decode_mode is 'all'; allowed are .*'dense'"):
        network(decode_mode="all")


@pytest.mark.parametrize("size", [(16, 24), (8, 16, 24)])
def test_a_map_of_places_sampled_at_a_place_is_that_place(size: tuple[int, ...]) -> None:
    """Half a voxel aside, in another order of axes, or with another extent it would not be."""
    stride = 4
    centres = [torch.arange(edge // stride) * float(stride) + (stride - 1) / 2 for edge in size]
    places = torch.stack(torch.meshgrid(*centres, indexing="ij"))[None]
    inner = torch.tensor([edge - stride for edge in size])
    coords = torch.rand(1, 50, len(size)) * inner + (stride - 1) / 2
    torch.testing.assert_close(sample_map(places, coords, size), coords, rtol=0, atol=1e-4)
