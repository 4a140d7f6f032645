"""One taught map: sums, ranks and gradients are autograd's of the plain formulation, whatever the memory order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from nnunet_ext.architectures.blocks.memory import kept_for_backward
from nnunet_ext.losses.taught_map import channel_sums, pool, rank_channels, taught_sums

SHAPES = {
    "2d": (2, 6, 5, 4),
    "3d": (2, 6, 4, 3, 5),
    "odd": (2, 7, 5, 4),
    "three": (2, 3, 4, 4),
    "one": (2, 1, 4, 3),
    "1d": (2, 4, 9),
}


def channels_last(f: Tensor) -> Tensor:
    return f.movedim(1, -1).contiguous().movedim(-1, 1)


def transposed(f: Tensor) -> Tensor:
    return f.transpose(-1, -2).contiguous().transpose(-1, -2) if f.dim() > 3 else f


def strided(f: Tensor) -> Tensor:
    return torch.stack([f, -f], -1)[..., 0]


ORDERS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda f: f,
    "channels last": channels_last,
    "transposed": transposed,
    "strided": strided,
}


def drawn(shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """A map with channels of different means, and a target."""
    generator = torch.Generator().manual_seed(sum(shape))
    f = torch.randn(shape, generator=generator, dtype=torch.float64)
    f = f + torch.linspace(-1, 1, shape[1]).reshape(-1, *[1] * (len(shape) - 2))
    target = torch.randn((shape[0], 1, *shape[2:]), generator=generator, dtype=torch.float64)
    return f.to(dtype), target.to(torch.promote_types(dtype, torch.float32))


def plain_order(f: Tensor) -> Tensor:
    """The published score, as it is written."""
    score = torch.nn.functional.normalize(f.flatten(2), dim=2, eps=1e-12).mean((0, 2))
    return torch.argsort(score, descending=True, stable=True)


def plain_sums(f: Tensor, target: Tensor | None, order: Tensor, detach_top: bool) -> tuple[Tensor, Tensor]:
    half = f.shape[1] // 2
    top, bottom = f[:, order[:half]], f[:, order[f.shape[1] - half :]]
    top = top.detach() if detach_top else top
    consistency = f.new_zeros(()) if target is None else (f - target).square().sum()
    return consistency, (top - bottom).square().sum()


def fused_sums(f: Tensor, target: Tensor | None, detach_top: bool = False) -> tuple[Tensor, Tensor]:
    known = channel_sums(f)
    return taught_sums(f, known, target, rank_channels([known]), detach_top)


@pytest.mark.parametrize("memory", ORDERS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_sums_and_gradients_are_the_plain_ones(shape: tuple[int, ...], memory: str) -> None:
    f, target = drawn(shape)
    f = ORDERS[memory](f)
    order = plain_order(f)
    assert rank_channels([channel_sums(f)]).tolist() == order.tolist()
    for detach_top in (False, True):
        for taught_by in (target, None):
            leaf, plain_leaf = (f.detach().clone().requires_grad_() for _ in range(2))
            found = fused_sums(leaf, taught_by, detach_top)
            wanted = plain_sums(plain_leaf, taught_by, order, detach_top)
            torch.testing.assert_close(found, wanted)
            (0.3 * found[0] + 0.7 * found[1]).backward()
            (0.3 * wanted[0] + 0.7 * wanted[1]).backward()
            torch.testing.assert_close(leaf.grad, plain_leaf.grad)


@pytest.mark.parametrize("memory", ["contiguous", "channels last"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_gradient_is_the_difference_quotient(shape: tuple[int, ...], memory: str) -> None:
    f, target = drawn(shape)
    leaf = ORDERS[memory](f).requires_grad_()
    known = channel_sums(f)
    order = rank_channels([known])

    def sums(x: Tensor) -> tuple[Tensor, Tensor]:
        return taught_sums(x, channel_sums(x), target, order)

    assert torch.autograd.gradcheck(sums, (leaf,))


@pytest.mark.parametrize("memory", ["contiguous", "channels last"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_finite_and_close(dtype: torch.dtype, memory: str) -> None:
    f, target = drawn((2, 8, 16, 16), dtype)
    f, target = ORDERS[memory](300 * f), 300 * target  # squares beyond float16
    leaf = f.detach().clone().requires_grad_()
    exact = f.double().requires_grad_()
    found = fused_sums(leaf, target)
    wanted = plain_sums(exact, target.double(), plain_order(exact.detach()), False)
    assert all(value.dtype == torch.float32 for value in found)
    torch.testing.assert_close([v.double() for v in found], list(wanted), rtol=1e-2, atol=0)
    (1e-3 * (found[0] + found[1])).backward()
    (1e-3 * (wanted[0] + wanted[1])).backward()
    assert leaf.grad is not None
    assert leaf.grad.dtype == dtype
    assert torch.isfinite(leaf.grad).all()
    assert exact.grad is not None
    assert float((leaf.grad.double() - exact.grad).norm() / exact.grad.norm()) < 1e-2


def test_ranks_are_of_all_pieces_together() -> None:
    f, _ = drawn((3, 6, 4, 4))
    pieces = [channel_sums(f[:1].transpose(2, 3)), channel_sums(f[1:])]
    assert rank_channels(pieces).tolist() == plain_order(f).tolist()


def test_equal_scores_keep_their_order() -> None:
    assert rank_channels([channel_sums(torch.ones(1, 5, 3, 3))]).tolist() == [0, 1, 2, 3, 4]


def test_a_silent_channel_has_score_0() -> None:
    f = torch.stack([torch.zeros(3, 3), torch.ones(3, 3), -torch.ones(3, 3)])[None]
    assert rank_channels([channel_sums(f)]).tolist() == [1, 0, 2]


@pytest.mark.parametrize("memory", ["contiguous", "channels last"])
def test_gradient_has_the_maps_memory_order(memory: str) -> None:
    f, target = drawn((2, 6, 5, 4))
    leaf = ORDERS[memory](f).requires_grad_()
    (gradient,) = torch.autograd.grad(torch.stack(fused_sums(leaf, target)).sum(), leaf)
    assert gradient.stride() == leaf.stride()


def test_nothing_is_kept_but_the_map_the_target_and_the_order() -> None:
    f, target = drawn((2, 6, 32, 32), torch.float32)
    leaf = channels_last(f).requires_grad_()
    kept: list[Any] = []

    def forward() -> None:
        kept.append(fused_sums(leaf, target))

    assert kept_for_backward(forward, exclude=[leaf, target]) <= 8 * leaf.shape[1]


def test_backward_through_the_gradient_is_refused() -> None:
    f, target = drawn((2, 6, 5, 4))
    leaf = f.requires_grad_()
    value = torch.stack(fused_sums(leaf, target)).sum().square()
    (gradient,) = torch.autograd.grad(value, leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        gradient.sum().backward()


def test_pool_leaves_a_map_of_that_size_alone() -> None:
    f, _ = drawn((2, 3, 6, 4))
    assert pool(f, (6, 4)) is f
    torch.testing.assert_close(pool(f, (3, 2)), torch.nn.functional.avg_pool2d(f, 2))


def test_large_half_precision_values_stay_finite() -> None:
    """A difference of 80 000 is beyond float16; its square is not beyond float32."""
    f = torch.full((1, 2, 4, 4), 40000.0, dtype=torch.float16)
    f[:, 1] = -40000
    _, distillation = fused_sums(f, None)
    torch.testing.assert_close(distillation, torch.tensor(16 * 80000.0**2))


def test_small_factors_survive_float16() -> None:
    """A loss' factor of 1e-10 is below float16's numbers; times the map and the gradient scaler's 65536 it is not."""
    f, target = drawn((2, 6, 5, 4), torch.float32)
    half = f.half().requires_grad_()
    wide = half.detach().float().requires_grad_()
    factor = torch.tensor(1e-6)
    for x in (half, wide):
        scr, ifd = fused_sums(x, target)
        (factor * scr + factor / 3 * ifd).backward()
    assert half.grad is not None
    assert wide.grad is not None
    torch.testing.assert_close(half.grad.float(), wide.grad, atol=6e-8, rtol=2e-3)


def test_a_skipped_infinite_map_gets_no_gradient() -> None:
    f = torch.randn(1, 4, 3, 3)
    f[0, 1, 1, 1] = torch.inf
    f.requires_grad_()
    scr, ifd = fused_sums(f, torch.randn(1, 1, 3, 3))
    torch.where(torch.isfinite(scr + ifd), scr + ifd, torch.zeros(())).backward()
    assert f.grad is not None
    assert torch.equal(f.grad, torch.zeros_like(f))


def test_small_differences_of_large_values_are_not_negative() -> None:
    f, target = 100 + 0.01 * torch.randn(1, 4, 8, 8), 100 + 0.01 * torch.randn(1, 1, 8, 8)
    assert fused_sums(f, target)[0] >= 0
