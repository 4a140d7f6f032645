"""Paired attention in its rewritten order against its definition, with and without dropout, and in half precision."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from nnunet_ext.architectures.blocks import paired_attention as module
from nnunet_ext.architectures.blocks.paired_attention import FUSIONS, LAYOUTS, PROJECTIONS, PairedAttention
from nnunet_ext.architectures.blocks.spatial_attention import attend

TOKENS, CHANNELS, SIZE, HEADS = 24, 8, 5, 2
STYLES = list(itertools.product(PROJECTIONS, FUSIONS, LAYOUTS))


def attention(
    projections: str = "tied", fusion: str = "concat", layout: str = "fixed", dropout: float = 0.0, **sizes: int
) -> PairedAttention:
    """One whose attention matters, and differs from token to token and from head to head."""
    torch.manual_seed(0)
    shape = {"tokens": TOKENS, "channels": CHANNELS, "size": SIZE, "heads": HEADS, **sizes}
    made = PairedAttention(**shape, projections=projections, fusion=fusion, layout=layout, dropout=dropout)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_()
    return made


def tokens(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*(shape or (2, TOKENS, CHANNELS)), generator=torch.Generator().manual_seed(seed))


def by_definition(
    own: PairedAttention, x: Tensor, channel_factor: Tensor | float = 1.0, spatial_factor: Tensor | float = 1.0
) -> Tensor:
    """EPA as the publication has it (specification unetrpp 1.4); the factors are those of dropout."""
    batch, n, channels = x.shape
    q, k, v_channel, v_spatial = own.qkvv(x).view(batch, n, 4, own.heads, -1).permute(2, 0, 3, 4, 1)  # (B, h, d, N)
    value_projection = own.value_projection or own.key_projection
    keys, values = own.key_projection(k), value_projection(v_spatial)  # (B, h, d, p)
    q, k = functional.normalize(q, dim=-1), functional.normalize(k, dim=-1)
    between_channels = (q @ k.mT * own.channel_temperature).softmax(-1) * channel_factor
    channel = (between_channels @ v_channel).flatten(1, 2).mT  # (B, N, C)
    to_keys = (q.mT @ keys * own.spatial_temperature).softmax(-1) * spatial_factor
    spatial = to_keys @ values.mT  # (B, h, N, d)
    if own.layout == "fixed":
        spatial = spatial.transpose(1, 2).flatten(2)
    else:  # memory of (d, h, N) taken for (N, C)
        spatial = spatial.permute(0, 3, 1, 2).contiguous().view(batch, n, channels)
    if own.spatial_out is None or own.channel_out is None:
        return spatial + channel
    return torch.cat([own.spatial_out(spatial), own.channel_out(channel)], -1)


def gradients(out: Tensor, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(out, inputs, tokens(*out.shape, seed=2).to(out.dtype))


@pytest.mark.parametrize(("projections", "fusion", "layout"), STYLES)
def test_equals_its_definition_with_gradients(projections: str, fusion: str, layout: str) -> None:
    own = attention(projections, fusion, layout).double()
    x, residual = (tokens(seed=seed).double().requires_grad_() for seed in (1, 3))
    scale = torch.randn(CHANNELS, dtype=torch.float64, requires_grad=True)
    out, expected = own(x, residual, scale), residual + scale * by_definition(own, x)
    torch.testing.assert_close(out, expected)
    inputs = [x, residual, scale, *own.parameters()]
    for got, wanted in zip(gradients(out, inputs), gradients(expected, inputs), strict=True):
        torch.testing.assert_close(got, wanted)
    torch.testing.assert_close(own(x), by_definition(own, x))


def test_layouts_differ() -> None:
    """With the same weights the two spatial layouts are far apart: a checkpoint needs its own."""
    x = tokens()
    fixed, legacy = (attention(layout=layout)(x) for layout in ("fixed", "legacy"))
    half = CHANNELS // 2
    assert (fixed - legacy)[..., :half].std() > 0.5 * fixed[..., :half].std()
    assert torch.equal(fixed[..., half:], legacy[..., half:])  # the channel branch is in order in both


def test_tokens_keep_their_places_in_the_fixed_layout() -> None:
    """Swapped tokens, with their columns of the projections, give swapped results; not so in the legacy layout."""
    order = torch.randperm(TOKENS, generator=torch.Generator().manual_seed(4))
    for layout in LAYOUTS:
        own, swapped = attention(layout=layout), attention(layout=layout)
        with torch.no_grad():
            swapped.key_projection.weight.copy_(own.key_projection.weight[:, order])
        x = tokens()
        same = torch.allclose(swapped(x[:, order]), own(x)[:, order], atol=1e-4)
        assert same == (layout == "fixed")


@pytest.mark.parametrize(("projections", "fusion", "layout"), STYLES[::3])
def test_dropout_in_backward_is_that_of_forward(
    projections: str, fusion: str, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rate, seed = 0.4, 11
    own = attention(projections, fusion, layout, rate).double().train()
    x = tokens().double().requires_grad_()
    factors: list[Tensor] = []
    drop = functional.dropout

    def dropping(weights: Tensor, *rest: Any) -> Tensor:
        dropped = drop(weights, *rest)
        factors.append((dropped / weights).detach())
        return dropped

    def attending(query: Tensor, key: Tensor, value: Tensor, rate: float) -> Tensor:
        state = torch.get_rng_state()
        size = key.shape[2]  # queries of 0 make all probabilities 1 / p, and the unit matrix shows them
        unit = torch.eye(size, dtype=key.dtype).expand(*key.shape[:2], size, size)
        factors.append(attend(query.new_zeros(*query.shape[:3], size), unit, unit, rate) * size)
        torch.set_rng_state(state)
        return attend(query, key, value, rate)

    monkeypatch.setattr(functional, "dropout", dropping)
    monkeypatch.setattr(module, "attend", attending)
    torch.manual_seed(seed)
    out = own(x)
    channel_factor, spatial_factor = factors
    for factor in factors:
        assert 0.2 < (factor == 0).double().mean() < 0.6
    expected = by_definition(own, x, channel_factor, spatial_factor)
    torch.testing.assert_close(out, expected)
    inputs = [x, *own.parameters()]
    for got, wanted in zip(gradients(out, inputs), gradients(expected, inputs), strict=True):
        torch.testing.assert_close(got, wanted)


def test_dropout_in_training_only() -> None:
    own, x = attention(dropout=0.5), tokens()
    torch.manual_seed(1)
    first = own(x)
    assert not torch.equal(own(x), first)
    torch.manual_seed(1)
    assert torch.equal(own(x), first)
    torch.testing.assert_close(own.eval()(x), by_definition(own, x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_what_is_kept(dropout: float) -> None:
    """The input, queries, keys, attended values and a number a token and head; nothing as large as tokens x p."""
    n, channels, size, heads = 4096, 16, 64, 2
    own = attention("tied", "concat", "fixed", dropout, tokens=n, channels=channels, size=size, heads=heads)
    x = tokens(1, n, channels).requires_grad_()
    skip = {t.untyped_storage().data_ptr() for t in (x, *own.parameters())}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in skip:
            kept[storage.data_ptr()] = storage.nbytes() // 4
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = own(x)
    assert max(kept.values()) <= 2 * n * channels < n * size
    assert sum(kept.values()) < (3 * channels + heads + 2) * n
    del out


class Dtypes(TorchDispatchMode):
    """Notes the dtype of the first argument of every operator."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, set[torch.dtype]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if args and isinstance(args[0], Tensor):
            self.seen.setdefault(func.overloadpacket.__name__, set()).add(args[0].dtype)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_norms_and_softmax_are_float32_under_autocast(half: torch.dtype, dropout: float) -> None:
    own, x = attention(dropout=dropout), tokens()
    with Dtypes() as dtypes, torch.autocast("cpu", half):
        out = own(x.to(half))
        assert out.dtype == half
        out.float().square().sum().backward()
    assert dtypes.seen["_softmax"] == dtypes.seen["reciprocal"] == {torch.float32}
    if dropout > 0:
        assert dtypes.seen["logsumexp"] == dtypes.seen["exp_"] == {torch.float32}
    assert half in dtypes.seen["mm"] | dtypes.seen["addmm"]  # the token-sized products are in half precision


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("fusion", "dropout"), [("concat", 0.0), ("sum", 0.0), ("concat", 0.2)])
def test_autocast_is_close_and_finite_with_many_tokens(half: torch.dtype, fusion: str, dropout: float) -> None:
    """Sums over 80 000 tokens are beyond float16's 65 504, and a normalised query is 0.0035."""
    n = 80_000
    own = attention(fusion=fusion, dropout=dropout, tokens=n, size=4)
    with torch.no_grad():
        for parameter in (own.qkvv.weight, *own.key_projection.parameters()):
            nn.init.trunc_normal_(parameter, std=0.02)
        own.spatial_temperature.fill_(30)
    x, gradient = tokens(1, n, CHANNELS), tokens(1, n, CHANNELS, seed=2)
    torch.manual_seed(1)
    expected = own(x)
    expected_gradients = torch.autograd.grad(expected, list(own.parameters()), gradient)
    torch.manual_seed(1)
    with torch.autocast("cpu", half):
        out = own(x.to(half))
    assert (out.float() - expected).square().mean().sqrt() < 0.02 * expected.std()
    for got, wanted in zip(
        torch.autograd.grad(out, list(own.parameters()), gradient.to(out.dtype)), expected_gradients, strict=True
    ):
        assert torch.isfinite(got).all()
        assert (got - wanted).norm() < 0.15 * wanted.norm()


@pytest.mark.parametrize("variation", [0.0, 1e-4, 1e-2])
def test_tokens_that_hardly_vary(variation: float) -> None:
    """As in patches of air: float32 stays as close to float64 as the definition does, in values and gradients."""
    n, channels = 512, 64
    own = attention(tokens=n, channels=channels, size=16, heads=4)
    with torch.no_grad():
        for parameter in (own.qkvv.weight, own.key_projection.weight):
            nn.init.trunc_normal_(parameter, std=0.02)
    x = tokens(1, 1, channels) + variation * tokens(2, n, channels, seed=3)
    exact = copy.deepcopy(own).double()
    wide = by_definition(exact, x.double())
    wanted = gradients(wide, [*exact.parameters()])
    errors = []
    for out in (own(x), by_definition(own, x)):
        found = gradients(out, [*own.parameters()])
        gradient = max(float((a - b).norm() / b.norm()) for a, b in zip(found, wanted, strict=True) if b.norm() > 1e-3)
        errors.append((float((out - wide).abs().max() / wide.std()), gradient))
    (value, gradient), (plain_value, plain_gradient) = errors
    assert value < 1e-5 + 3 * plain_value
    assert gradient < 1e-4 + 5 * plain_gradient


def test_a_small_layer_scale_survives_float16() -> None:
    """The published 1e-6 is below float16's numbers when multiplied by weights; gradients must keep their direction."""
    n, channels = 256, 16
    own = attention(tokens=n, channels=channels, size=16)
    with torch.no_grad():
        for name, parameter in own.named_parameters():
            if name.endswith("weight"):
                nn.init.trunc_normal_(parameter, std=0.02)
    x, residual = tokens(1, n, channels), tokens(1, n, channels, seed=3)
    scale = torch.full((channels,), 1e-6)
    parameters = [*own.parameters()]
    gradient = tokens(1, n, channels, seed=2)
    exact = torch.autograd.grad(own(x, residual, scale), parameters, gradient)
    with torch.autocast("cpu", torch.float16):
        out = own(x, residual, scale)
    found = torch.autograd.grad(out, parameters, 1024 * gradient)
    for (name, _), got, wanted in zip(own.named_parameters(), found, exact, strict=True):
        if wanted.norm() > 1e-12:
            assert functional.cosine_similarity(got.flatten(), wanted.flatten(), dim=0) > 0.98, name


def test_silent_queries_and_keys_give_finite_gradients() -> None:
    """A norm of 0 is replaced by 1e-12, as published; nothing divides by it."""
    own = attention()
    with torch.no_grad():
        own.qkvv.weight[: 2 * CHANNELS] = 0
    x = tokens().requires_grad_()
    out = own(x)
    torch.testing.assert_close(out, by_definition(own, x), rtol=1e-4, atol=1e-4)
    assert all(torch.isfinite(g).all() for g in gradients(out, [x, *own.parameters()]))
