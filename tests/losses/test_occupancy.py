"""The loss over points equals nnU-Net's on the same voxels; ignored points and cells count nothing."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss, DC_and_CE_loss
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from nnunetv2.utilities.helpers import softmax_helper_dim1
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from nnunet_ext.losses.occupancy import OccupancyLoss, OccupancyTarget
from nnunet_ext.losses.point_sampling import Points

B, K, N = 2, 3, 50
SIZE = (8, 8, 8)


def points(labels: Tensor, weights: Tensor | None = None) -> Points:
    weights = torch.ones(B, 1, labels.shape[2]) if weights is None else weights
    return Points(torch.zeros(B, labels.shape[2], 3), labels, weights, 0)


def target(labels: Tensor, weights: Tensor | None = None, ignored: Tensor | None = None) -> OccupancyTarget:
    dense = torch.randint(0, K, (B, 1, *SIZE), generator=torch.Generator().manual_seed(5))
    return OccupancyTarget(points(labels, weights), dense, ignored)


def dice(regions: bool = False) -> MemoryEfficientSoftDiceLoss:
    nonlin = torch.sigmoid if regions else softmax_helper_dim1
    return MemoryEfficientSoftDiceLoss(nonlin, batch_dice=False, do_bg=regions, smooth=1e-5, ddp=False)


def test_unweighted_classes_give_nnunets_loss() -> None:
    logits, labels = torch.randn(B, K, N), torch.randint(0, K, (B, 1, N))
    ours = OccupancyLoss(dice(), False, 0.3)((logits, []), target(labels))
    settings = {"batch_dice": False, "smooth": 1e-5, "do_bg": False, "ddp": False}
    theirs = DC_and_CE_loss(settings, {}, dice_class=MemoryEfficientSoftDiceLoss)(logits, labels)
    torch.testing.assert_close(ours, theirs)


def test_unweighted_regions_give_nnunets_loss() -> None:
    logits, labels = torch.randn(B, K, N), torch.randint(0, 2, (B, K, N)).bool()
    ours = OccupancyLoss(dice(True), True, 0.3)((logits, []), target(labels))
    settings = {"batch_dice": False, "smooth": 1e-5, "do_bg": True, "ddp": False}
    theirs = DC_and_BCE_loss({}, settings, dice_class=MemoryEfficientSoftDiceLoss)(logits, labels.float())
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("regions", [False, True])
def test_points_without_weight_change_nothing(regions: bool) -> None:
    labels = torch.randint(0, 2, (B, K if regions else 1, N))
    logits, weights = torch.randn(B, K, N), torch.ones(B, 1, N)
    weights[..., 30:] = 0
    spoiled, other = labels.clone(), logits.clone()
    spoiled[..., 30:] = 99  # nnU-Net's ignore label may be any number
    other[..., 30:] += 5
    loss = OccupancyLoss(dice(regions), regions, 0.3)
    few = Points(torch.zeros(B, 30, 3), labels[..., :30], weights[..., :30], 0)
    expected = loss((logits[..., :30], []), OccupancyTarget(few, torch.zeros(B, 1, *SIZE), None))
    torch.testing.assert_close(loss((other, []), target(spoiled, weights)), expected)


def test_weights_are_numbers_of_points() -> None:
    logits, labels = torch.randn(B, K, N), torch.randint(0, K, (B, 1, N))
    weights = torch.ones(B, 1, N)
    weights[..., 0] = 3
    loss = OccupancyLoss(dice(), False, 0.3)
    repeated = torch.cat([torch.zeros(2, dtype=torch.long), torch.arange(N)])
    expected = loss((logits[..., repeated], []), target(labels[..., repeated]))
    torch.testing.assert_close(loss((logits, []), target(labels, weights)), expected)


def test_all_points_ignored_give_a_finite_loss_without_gradient() -> None:
    logits = torch.randn(B, K, N, requires_grad=True)
    coarse = torch.randn(B, K, 2, 2, 2, requires_grad=True)
    weights = torch.zeros(B, 1, N)
    everything = target(torch.zeros(B, 1, N), weights, torch.ones(B, 1, *SIZE, dtype=torch.bool))
    loss = OccupancyLoss(dice(), False, 0.3)((logits, [coarse]), everything)
    loss.backward()
    assert bool(torch.isfinite(loss))
    assert float(logits.grad.abs().max()) == 0  # type: ignore[union-attr]
    assert float(coarse.grad.abs().max()) == 0  # type: ignore[union-attr]


def blocks(mask: Tensor, cells: int) -> Tensor:
    """Whether any voxel of a cell is set, by a loop."""
    out = torch.zeros(*mask.shape[:2], cells, cells, cells)
    step = SIZE[0] // cells
    for i in range(cells):
        for j in range(cells):
            for k in range(cells):
                part = mask[:, :, i * step : (i + 1) * step, j * step : (j + 1) * step, k * step : (k + 1) * step]
                out[:, :, i, j, k] = part.flatten(2).any(2)
    return out


@pytest.mark.parametrize("kind", ["classes", "foreground", "regions"])
def test_coarse_heads_learn_what_occurs_in_a_cell(kind: str) -> None:
    labels = torch.zeros(B, 1, N, dtype=torch.long)
    made = target(labels)
    dense = made.dense * (torch.rand(B, 1, *SIZE) > 0.8)
    masks = torch.cat([dense == k for k in range(K)], 1)
    if kind == "foreground":
        masks = dense > 0
    elif kind == "regions":
        masks = masks[:, 1:]
        dense = masks
    heads = masks.shape[1]
    coarse = [torch.randn(B, heads, 4, 4, 4), torch.randn(B, heads, 2, 2, 2)]
    loss = OccupancyLoss(None, kind == "regions", 1.0, "foreground" if kind == "foreground" else "classes")
    got = loss.coarse_loss(coarse, OccupancyTarget(made.points, dense, None))
    expected = [functional.binary_cross_entropy_with_logits(c, blocks(masks, c.shape[2])) for c in coarse]
    torch.testing.assert_close(got, torch.stack(expected).mean())


def test_cells_of_ignored_voxels_do_not_count() -> None:
    labels = torch.zeros(B, 1, N, dtype=torch.long)
    ignored = torch.zeros(B, 1, *SIZE, dtype=torch.bool)
    ignored[..., :4] = True
    made = target(labels, ignored=ignored)
    coarse = torch.randn(B, K, 4, 4, 4)
    loss = OccupancyLoss(None, False, 1.0)
    changed = coarse.clone()
    changed[..., :2] += 3
    torch.testing.assert_close(loss.coarse_loss([coarse], made), loss.coarse_loss([changed], made))
    assert not torch.equal(loss.coarse_loss([coarse], made), loss.coarse_loss([coarse + 1], made))


@pytest.mark.parametrize("regions", [False, True])
def test_no_mask_of_all_classes_at_full_resolution(regions: bool) -> None:
    """It would be the largest tensor of a training step: 119 classes of 192^3 voxels are 3 GB."""
    sizes: list[int] = []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            sizes.extend(t.numel() for t in (out if isinstance(out, tuple) else (out,)) if isinstance(t, Tensor))
            return out

    heads, size = 20, (16, 16, 16)
    dense = torch.randint(0, 2, (1, heads if regions else 1, *size))
    wanted = OccupancyTarget(points(torch.zeros(1, 1, N)), dense, None)
    with Sizes():
        OccupancyLoss(None, regions, 1.0).coarse_loss([torch.zeros(1, heads, 4, 4, 4)], wanted)
    assert max(sizes) == math.prod(size)
