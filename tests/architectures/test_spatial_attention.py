"""Attention that keeps no probabilities: values, gradients and dropout against the explicit formulation."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from nnunet_ext.architectures.blocks import spatial_attention as module
from nnunet_ext.architectures.blocks.spatial_attention import LEVELS, attend

BATCH, HEADS, TOKENS, PROJECTED, WIDTH = 2, 3, 37, 5, 4


Inputs = tuple[Tensor, Tensor, Tensor]


def inputs(dtype: torch.dtype = torch.float64) -> tuple[Inputs, Tensor]:
    """Query, key and value, and a gradient of the output."""
    torch.manual_seed(0)

    def draw(tokens: int) -> Tensor:
        return torch.randn(BATCH, HEADS, tokens, WIDTH, dtype=dtype, requires_grad=True)

    return (draw(TOKENS), draw(PROJECTED), draw(PROJECTED)), draw(TOKENS).detach()


def kept_and_scale(rate: float, seed: int, tokens: int = TOKENS, projected: int = PROJECTED) -> Tensor:
    """What the probabilities (B, heads, N, p) are multiplied by after `torch.manual_seed(seed)`.

    With queries of 0 the probabilities are 1 / p, and with the unit matrix as values they are the output.
    """
    query = torch.zeros(BATCH, HEADS, tokens, projected, dtype=torch.float64)
    key = torch.zeros(BATCH, HEADS, projected, projected, dtype=torch.float64)
    value = torch.eye(projected, dtype=torch.float64).expand_as(key)
    torch.manual_seed(seed)
    return attend(query, key, value, rate) * projected


def explicit(query: Tensor, key: Tensor, value: Tensor, factor: Tensor | float = 1.0) -> Tensor:
    return ((query @ key.mT).softmax(-1) * factor) @ value


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PIECE", 10 * HEADS * PROJECTED)  # ten tokens, and seven at the end


@pytest.mark.parametrize("rate", [0.15, 0.5])
@pytest.mark.usefixtures("small_pieces")
def test_backward_has_the_mask_of_forward(rate: float) -> None:
    qkv, gradient = inputs()
    factor = kept_and_scale(rate, seed=7)
    assert 0 < (factor == 0).double().mean() < 1
    torch.manual_seed(7)
    out = attend(*qkv, rate)
    expected = explicit(*qkv, factor)
    torch.testing.assert_close(out, expected)
    torch.manual_seed(8)  # backward does not depend on the global generator any more
    for got, wanted in zip(
        torch.autograd.grad(out, qkv, gradient), torch.autograd.grad(expected, qkv, gradient), strict=True
    ):
        torch.testing.assert_close(got, wanted)


def test_masks_of_pieces_samples_and_heads_are_different(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PIECE", 16 * HEADS * 64)
    masks = kept_and_scale(0.5, seed=1, tokens=32, projected=64).unflatten(2, (2, 16)) == 0
    flat = masks.permute(0, 1, 2, 3, 4).reshape(-1, 16 * 64)
    assert len({tuple(mask.tolist()) for mask in flat}) == BATCH * HEADS * 2


@pytest.mark.parametrize("rate", [0.1, 0.15, 0.7])
def test_rate_and_scale(rate: float) -> None:
    factor = kept_and_scale(rate, seed=3, tokens=2048, projected=64)
    dropped = factor == 0
    deviation = math.sqrt(rate * (1 - rate) / factor.numel())
    assert abs(float(dropped.double().mean()) - rate) < 4 * deviation + 0.5 / LEVELS
    torch.testing.assert_close(factor[~dropped], torch.full_like(factor[~dropped], 1 / (1 - rate)), rtol=1e-4, atol=0)
    assert float(factor.mean()) == pytest.approx(1, abs=4 * deviation / (1 - rate))  # nothing is lost on average
    for axis in range(4):  # no head, token or key is dropped more often than the others
        others = tuple(a for a in range(4) if a != axis)
        spread = dropped.double().mean(others)
        count = dropped.numel() / len(spread)
        assert (spread - rate).abs().max() < 5 * math.sqrt(rate * (1 - rate) / count)


def test_reproducible_under_the_global_seed() -> None:
    qkv, _ = inputs()
    torch.manual_seed(5)
    first, second = attend(*qkv, 0.3), attend(*qkv, 0.3)
    torch.manual_seed(5)
    assert torch.equal(attend(*qkv, 0.3), first)
    assert not torch.equal(first, second)
    torch.manual_seed(6)
    assert not torch.equal(attend(*qkv, 0.3), first)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.usefixtures("small_pieces")
def test_equals_the_fused_kernel_where_nothing_is_dropped(dtype: torch.dtype) -> None:
    qkv, gradient = inputs(dtype)
    found = []
    for rate in (1e-7, 0.0):  # below 1 / LEVELS: our function, but no dropout
        out = attend(*qkv, rate)
        assert (type(out.grad_fn).__name__ == "_SeededAttentionBackward") == (rate > 0)
        found.append([out.detach(), *torch.autograd.grad(out, qkv, gradient)])
    rtol, atol = {torch.bfloat16: (0.05, 0.05), torch.float16: (5e-3, 5e-3)}.get(dtype, (1e-5, 1e-5))
    for ours, fused in zip(*found, strict=True):
        assert ours.dtype == dtype
        torch.testing.assert_close(ours, fused, rtol=rtol, atol=atol)


@pytest.mark.parametrize("rate", [0.0, 0.2])
@pytest.mark.parametrize("width", [2, 8, 32])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_no_probabilities_are_kept(rate: float, width: int, device: str) -> None:
    tokens, projected = 4096, 64
    query, key, value = (
        torch.randn(1, 4, n, width, device=device).requires_grad_() for n in (tokens, projected, projected)
    )
    kept: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        attend(query, key, value, rate)
    token_sized = 4 * tokens * width
    assert max(kept) == token_sized
    assert sum(kept) <= 2 * token_sized + 4 * tokens + 2 * 4 * projected * width + 16  # and a kernel's seed


def test_the_output_lies_as_tokens() -> None:
    (query, key, value), _ = inputs()
    query = query.transpose(1, 2).contiguous().transpose(1, 2)  # made from tokens (B, N, C)
    for rate in (0.0, 0.1):
        assert attend(query, key, value, rate).transpose(1, 2).is_contiguous()


def test_large_logits_stay_finite() -> None:
    qkv, gradient = inputs(torch.float32)
    query, key, value = qkv
    out = attend(200 * query, 200 * key, value, 1e-7)
    torch.testing.assert_close(out, functional.scaled_dot_product_attention(200 * query, 200 * key, value, scale=1.0))
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(out, qkv, gradient))


def test_a_second_derivative_is_refused_rather_than_wrong() -> None:
    qkv, _ = inputs()
    (grad,) = torch.autograd.grad(attend(*qkv, 0.1).square().sum(), qkv[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()
