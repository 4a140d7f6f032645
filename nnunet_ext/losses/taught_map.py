"""One taught map: sums of squared differences that keep for backward only the map, which the network keeps anyway."""

from __future__ import annotations

from collections.abc import Sequence
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


@torch.no_grad()
def rank_channels(pieces: Sequence[Tensor]) -> Tensor:
    """Channels by descending score: the mean over batch and positions of the map divided by its length.

    Args:
        pieces: (B, C, *spatial) each, parts of one batch.

    Returns:
        (C,) int64; one order for the whole batch.
    """
    score: Any = 0.0
    for piece in pieces:
        axes = tuple(range(2, piece.dim()))
        wide = torch.promote_types(piece.dtype, torch.float32)
        lengths = torch.linalg.vector_norm(piece, dim=axes, dtype=wide).clamp_(min=SCORE_EPS)
        score = score + (piece.sum(axes, dtype=wide) / lengths).sum(0)
    return torch.argsort(torch.as_tensor(score), descending=True, stable=True)


def taught_sums(f: Tensor, target: Tensor | None, order: Tensor, detach_top: bool = False) -> tuple[Tensor, Tensor]:
    """Sums of squared differences: of all channels from the target, and of the upper from the lower half of ranks.

    With an odd number of channels the middle rank has no partner.

    Args:
        f: (B, C, *spatial).
        target: (B, 1, *spatial), no gradient; None: the first sum is 0.
        order: (C,), channels by rank.
        detach_top: the upper half gets no gradient of the second sum.

    Returns:
        Two 0-dimensional tensors, float32 or wider.
    """
    sums: tuple[Tensor, Tensor] = _Taught.apply(f, target, order, detach_top)
    return sums


class _Taught(torch.autograd.Function):
    """Forward copies half of the map twice, backward the map once: the gradient itself."""

    @staticmethod
    def forward(ctx: Any, f: Tensor, target: Tensor | None, order: Tensor, detach_top: bool) -> tuple[Tensor, Tensor]:
        half = f.shape[1] // 2
        top, bottom = order[:half], order[order.numel() - half :]
        wide = torch.promote_types(f.dtype, torch.float32)
        difference = f.index_select(1, top).sub_(f.index_select(1, bottom))
        distillation = _squares(difference, wide)
        consistency = f.new_zeros((), dtype=wide)
        if target is not None:
            cross = (f.sum(1, keepdim=True, dtype=wide) * target).sum(dtype=torch.float64)
            constant = f.shape[1] * target.square().sum(dtype=torch.float64)
            consistency = (_squares(f, wide) - 2 * cross + constant).to(wide)
        ctx.save_for_backward(f, target, top, bottom)
        ctx.detach_top = detach_top
        return consistency, distillation.to(wide)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_scr: Tensor, grad_ifd: Tensor) -> tuple[Tensor | None, ...]:
        f, target, top, bottom = ctx.saved_tensors
        width, shape = f.shape[1], (1, f.shape[1], *(1 for _ in f.shape[2:]))
        partner = torch.arange(width, device=f.device)
        partner[top], partner[bottom] = bottom, top
        pull = (2 * grad_ifd).expand(width).clone()
        if ctx.detach_top:
            pull[top] = 0
        own = pull if target is None else pull + 2 * grad_scr
        grad = f.index_select(1, partner).mul_(-pull.to(f.dtype).view(shape))
        grad.addcmul_(f, own.to(f.dtype).view(shape))
        if target is not None:
            grad.sub_((2 * grad_scr * target).to(f.dtype))
        return grad, None, None, None


def _squares(x: Tensor, wide: torch.dtype) -> Tensor:
    """The sum of squares as float64, channel by channel against rounding."""
    if x.numel() == 0:
        return x.new_zeros((), dtype=torch.float64)
    norms = torch.linalg.vector_norm(x, dim=tuple(range(2, x.dim())), dtype=wide)
    return norms.square().sum(dtype=torch.float64)
