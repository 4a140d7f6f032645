"""One taught map: sums of squared differences that keep for backward only the map, which the network keeps anyway."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

SCORE_EPS = 1e-12
POOLS: dict[int, Any] = {
    1: functional.adaptive_avg_pool1d,
    2: functional.adaptive_avg_pool2d,
    3: functional.adaptive_avg_pool3d,
}


def pool(f: Tensor, size: Sequence[int]) -> Tensor:
    """(B, C, *spatial) average-pooled to `size`; itself where it has that size."""
    if tuple(f.shape[2:]) == tuple(size):
        return f
    pooled: Tensor = POOLS[f.dim() - 2](f, list(size))
    return pooled


@dataclass(frozen=True)
class ChannelSums:
    """What ranks a map's channels, and what the first sum needs of its squares: both from one look at the map.

    Attributes:
        sums: (B, C), over all positions; float32 or wider, as the other.
        squares: (B, C), sums of squares.
    """

    sums: Tensor
    squares: Tensor


@torch.no_grad()
def channel_sums(f: Tensor) -> ChannelSums:
    """Sums over the positions of a map (B, C, *spatial); no gradient."""
    wide = torch.promote_types(f.dtype, torch.float32)
    rows, axis = _as_stored(f.detach())
    positions = _positions(rows, axis)
    return ChannelSums(rows.sum(positions, dtype=wide), _squares(rows, axis, wide))


@torch.no_grad()
def rank_channels(pieces: Sequence[ChannelSums]) -> Tensor:
    """Channels by descending score: the mean over batch and positions of the map divided by its length.

    Args:
        pieces: the sums of parts of one batch.

    Returns:
        (C,) int64; one order for the whole batch.
    """
    scores = torch.stack([(piece.sums / piece.squares.sqrt().clamp(min=SCORE_EPS)).sum(0) for piece in pieces])
    return torch.argsort(scores.sum(0), descending=True, stable=True)


def taught_sums(
    f: Tensor, known: ChannelSums, target: Tensor | None, order: Tensor, detach_top: bool = False
) -> tuple[Tensor, Tensor]:
    """Sums of squared differences: of all channels from the target, and of the upper from the lower half of ranks.

    With an odd number of channels the middle rank has no partner.

    Args:
        f: (B, C, *spatial).
        known: the sums of f.
        target: (B, 1, *spatial), no gradient; None: the first sum is 0.
        order: (C,), channels by rank.
        detach_top: the upper half gets no gradient of the second sum.

    Returns:
        Two 0-dimensional tensors, float32 or wider.
    """
    sums: tuple[Tensor, Tensor] = _Taught.apply(f, known.squares, target, order, detach_top)
    return sums


class _Taught(torch.autograd.Function):
    """Forward copies half of the map twice, backward the map once: the gradient itself."""

    @staticmethod
    def forward(
        ctx: Any, f: Tensor, squares: Tensor, target: Tensor | None, order: Tensor, detach_top: bool
    ) -> tuple[Tensor, Tensor]:
        half, wide = f.shape[1] // 2, squares.dtype
        top, bottom = order[:half], order[order.numel() - half :]
        rows, axis = _as_stored(f)
        # Half the difference: the whole one of large values is beyond float16.
        difference = _chosen(rows, axis, top).mul_(0.5).sub_(_chosen(rows, axis, bottom), alpha=0.5)
        widest = torch.float32 if f.device.type == "mps" else torch.float64
        distillation = 4 * _squares(difference, axis, wide).sum(dtype=widest)
        consistency = f.new_zeros((), dtype=wide)
        if target is not None:
            cross = (f.sum(1, keepdim=True, dtype=wide) * target).sum(dtype=widest)
            constant = f.shape[1] * target.square().sum(dtype=widest)
            # Rounding can leave less than nothing of a small difference between large values.
            consistency = (squares.sum(dtype=widest) - 2 * cross + constant).clamp(min=0).to(wide)
        ctx.save_for_backward(f, target, top, bottom)
        ctx.detach_top = detach_top
        return consistency, distillation.to(wide)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_scr: Tensor, grad_ifd: Tensor) -> tuple[Tensor | None, ...]:
        f, target, top, bottom = ctx.saved_tensors
        rows, axis = _as_stored(f)
        partner = torch.arange(f.shape[1], device=f.device)
        partner[bottom] = top
        if not ctx.detach_top:
            partner[top] = bottom
        if target is None:
            grad_scr = torch.zeros_like(grad_scr)
        # Differences first and their small factor last: float16 would lose it in a product with a weight.
        size = torch.maximum(grad_scr.abs(), grad_ifd.abs())
        scr, ifd = ((part / size.clamp(min=torch.finfo(size.dtype).tiny)).to(f.dtype) for part in (grad_scr, grad_ifd))
        grad = _chosen(rows, axis, partner).neg_().add_(rows).mul_(ifd)
        if target is not None:
            grad.addcmul_(rows, scr).sub_((scr * target).to(f.dtype).movedim(1, axis))
        grad.mul_(2 * size).masked_fill_(size == 0, 0)  # a skipped step's map may be infinite
        return grad.movedim(axis, 1), None, None, None, None


def _as_stored(f: Tensor) -> tuple[Tensor, int]:
    """The map and its channels' axis, 1; for a map in channels-last memory (B, *spatial, C) and the last one.

    On a CPU everything below is several times slower against the order in memory.
    """
    rows = f.movedim(1, -1)
    return (rows, f.dim() - 1) if rows.is_contiguous() and not f.is_contiguous() else (f, 1)


def _chosen(rows: Tensor, axis: int, channels: Tensor) -> Tensor:
    """A copy of some channels; a CPU is fast along the last axis of two only."""
    if axis == 1:
        return rows.index_select(1, channels)
    return rows.flatten(0, -2).index_select(1, channels).unflatten(0, rows.shape[:-1])


def _positions(rows: Tensor, axis: int) -> tuple[int, ...]:
    return tuple(i for i in range(1, rows.dim()) if i != axis)


def _squares(rows: Tensor, axis: int, wide: torch.dtype) -> Tensor:
    """(B, C): sums of squares over the positions, channel by channel against rounding."""
    positions = _positions(rows, axis)
    if axis == 1:
        return torch.linalg.vector_norm(rows, dim=positions, dtype=wide).square()
    return rows.to(wide).square().sum(positions)
