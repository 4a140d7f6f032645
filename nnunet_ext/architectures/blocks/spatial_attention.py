"""Attention of many tokens to a few projected ones, without keeping its probabilities."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from nnunet_ext.architectures.blocks.precision import at_least_float32, without_autocast

PIECE = 2**18
"""Probabilities computed at a time on a CPU: 1 MiB, which stays in a core's cache."""

LEVELS = 2**16
"""The seeded dropout draws 16-bit numbers, so its rate is a multiple of 1 / LEVELS."""


def attend(query: Tensor, key: Tensor, value: Tensor, dropout: float = 0.0) -> Tensor:
    """softmax(query keyᵀ) value, the softmax over the keys in float32, with dropout of the probabilities.

    Fused kernels keep no probabilities: torch's `scaled_dot_product_attention` does the work where it has one. It has
    none on CPUs with dropout; there the probabilities are computed in pieces and, from the same seed, again in
    backward. The meta device, where memory is estimated, takes that path too: it keeps what fused kernels keep.

    Args:
        query: (B, heads, N, d); not scaled by 1 / sqrt(d).
        key: (B, heads, p, d).
        value: (B, heads, p, d).
        dropout: rate; 0 outside of training. The seed comes from torch's global generator.

    Returns:
        (B, heads, N, d) in query's dtype; laid out as (B, N, heads, d) where query is, as one made from tokens.
    """
    key, value = key.to(query.dtype), value.to(query.dtype)
    if query.is_meta or (query.device.type == "cpu" and dropout > 0 and not torch.compiler.is_compiling()):
        seed = 0 if query.is_meta or dropout == 0 else int(torch.randint(2**62, (), device="cpu"))
        with without_autocast(query):
            return _SeededAttention.apply(query, key, value, dropout, seed)
    return functional.scaled_dot_product_attention(query, key, value, dropout_p=dropout, scale=1.0)


class _SeededAttention(torch.autograd.Function):
    """Keeps query, key, value, output and the logarithm of the softmax' sums (B, heads, N), as fused kernels do."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, dropout: float, seed: int) -> Tensor:
        batch, heads, tokens, width = query.shape
        out = query.new_empty(batch, tokens, heads, width).transpose(1, 2)
        wide = torch.promote_types(query.dtype, torch.float32)
        sums = query.new_empty(batch, heads, tokens, dtype=wide)
        ctx.save_for_backward(query, key, value, out, sums)
        ctx.dropout, ctx.seed = dropout, seed
        if query.is_meta:
            return out
        keep = _Keep(dropout, seed)
        for b in range(batch):
            keys, values = at_least_float32(key[b]).mT, at_least_float32(value[b]) * keep.scale
            for rows in _pieces(tokens, heads * key.shape[2]):
                logits = at_least_float32(query[b, :, rows]) @ keys
                total = torch.logsumexp(logits, -1, keepdim=True)
                sums[b, :, rows] = total.squeeze(-1)
                weights = logits.sub_(total).exp_()
                out[b, :, rows] = keep(weights) @ values
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        with without_autocast(grad):
            return _SeededAttention._gradients(ctx, grad)

    @staticmethod
    def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, sums = ctx.saved_tensors
        batch, heads, tokens, _ = query.shape
        wide = torch.promote_types(query.dtype, torch.float32)
        grad_query = torch.empty_like(out)
        grad_key = torch.zeros_like(key, dtype=wide)
        grad_value = torch.zeros_like(value, dtype=wide)
        keep = _Keep(ctx.dropout, ctx.seed)
        for b in range(batch):
            keys, values = at_least_float32(key[b]), at_least_float32(value[b]) * keep.scale
            for rows in _pieces(tokens, heads * key.shape[2]):
                q, g = at_least_float32(query[b, :, rows]), at_least_float32(grad[b, :, rows])
                weights = (q @ keys.mT).sub_(sums[b, :, rows, None]).exp_()
                dropped = keep.dropped(weights)
                grad_weights = (g @ values.mT).masked_fill_(dropped, 0)
                grad_weights -= (g * at_least_float32(out[b, :, rows])).sum(-1, keepdim=True)
                grad_weights *= weights  # now the logits' gradient
                grad_query[b, :, rows] = grad_weights @ keys
                grad_key[b] += grad_weights.mT @ q
                grad_value[b] += weights.masked_fill_(dropped, 0).mT @ g
        grad_value *= keep.scale
        return grad_query, grad_key.to(key.dtype), grad_value.to(value.dtype), None, None


class _Keep:
    """Dropout masks in a fixed order from a seed; what is kept is to be multiplied by `scale`."""

    def __init__(self, rate: float, seed: int) -> None:
        self.threshold = round(rate * LEVELS) - LEVELS // 2
        self.scale = LEVELS / (LEVELS - round(rate * LEVELS))
        self.rate = rate
        self.generator = torch.Generator().manual_seed(seed)

    def dropped(self, like: Tensor) -> Tensor:
        """A mask of `like`'s shape, true with the probability of the rate; every call draws new numbers."""
        count = like.numel()
        numbers = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None, generator=self.generator)
        return numbers.view(torch.int16)[:count].view(like.shape) < self.threshold

    def __call__(self, weights: Tensor) -> Tensor:
        """The weights with some set to 0, in place."""
        return weights.masked_fill_(self.dropped(weights), 0) if self.rate > 0 else weights


def _pieces(tokens: int, row: int) -> list[slice]:
    """Slices of the tokens such that `row` numbers for each of them make about PIECE."""
    step = max(1, PIECE // row)
    return [slice(start, min(start + step, tokens)) for start in range(0, tokens, step)]
