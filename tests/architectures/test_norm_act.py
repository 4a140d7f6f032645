"""The fused normalisation against torch's own operators: values, gradients, precision and what it keeps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from nnunet_ext.architectures.blocks import norm_act as module
from nnunet_ext.architectures.blocks.layout import is_channels_last, to_channels_last
from nnunet_ext.architectures.blocks.norm_act import norm_act
from nnunet_ext.architectures.blocks.slice_shift import shift_groups

CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "shift": {"shift_axis": 1, "fold": 2},
    "shift and residual": {"shift_axis": 2, "fold": 1, "residual": True},
    "no activation": {"slope": None},
}


def composed(x: Tensor, residual: Tensor | None = None, slope: float | None = 0.01, **shift: int) -> Tensor:
    """The same, out of torch's operators."""
    x = shift_groups(x, shift["shift_axis"], shift["fold"]) if shift else x
    x = functional.instance_norm(x if residual is None else x + residual)
    return x if slope is None else functional.leaky_relu(x, slope)


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PIECE", 40)


@pytest.mark.parametrize("channels_last", [True, False], ids=["channels-last", "contiguous"])
@pytest.mark.parametrize("overwrite", [True, False], ids=["overwrite", "keep"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.usefixtures("small_pieces")
def test_values_and_gradients(case: str, overwrite: bool, channels_last: bool) -> None:
    torch.manual_seed(0)
    options = dict(CASES[case])
    x, r, g = (torch.randn(2, 5, 3, 4, 3, dtype=torch.float64) for _ in range(3))
    residual = r.requires_grad_() if options.pop("residual", False) else None
    x.requires_grad_()
    fresh = to_channels_last(x * 1) if channels_last else x * 1
    before = fresh.detach().clone()
    y = norm_act(fresh, residual=residual, overwrite=overwrite, **options)
    expected = composed(x, residual, **options)
    torch.testing.assert_close(y, expected)
    inputs = [x] if residual is None else [x, residual]
    for got, wanted in zip(torch.autograd.grad(y, inputs, g), torch.autograd.grad(expected, inputs, g), strict=True):
        torch.testing.assert_close(got, wanted)
    if not overwrite:
        torch.testing.assert_close(fresh.detach(), before, rtol=0, atol=0)


def test_precision_at_size() -> None:
    """Torch's own channels-last kernel is off by more than 1e-3 here."""
    torch.manual_seed(0)
    x = to_channels_last(torch.randn(1, 4, 96, 96, 96) + 1)
    y = norm_act(x.clone(memory_format=torch.channels_last_3d), slope=None)
    assert is_channels_last(y)
    assert (y.double() - functional.instance_norm(x.double().contiguous())).abs().max() < 2e-6


def test_half_precision_keeps_its_dtype_and_sums_in_float32() -> None:
    torch.manual_seed(0)
    x = (torch.randn(1, 2, 16, 16, 16) * 3 + 50).to(torch.bfloat16).requires_grad_()
    y = norm_act(x * 1)
    assert y.dtype == torch.bfloat16
    reference = functional.leaky_relu(functional.instance_norm(x.detach().float()), 0.01)
    assert (y.float() - reference).abs().max() < 0.02
    y.float().square().sum().backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()


def test_keeps_only_the_output() -> None:
    kept: list[int] = []

    def keep(t: Tensor) -> Tensor:
        kept.append(t.numel())
        return t

    x = to_channels_last(torch.randn(1, 8, 8, 8, 8)).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        y = norm_act(x * 1, shift_axis=0, fold=2)
    assert sorted(kept) == [8, y.numel()]


def test_constant_input_is_finite() -> None:
    x = to_channels_last(torch.full((1, 4, 4, 4, 4), 1e4))
    assert torch.equal(norm_act(x), torch.zeros(1, 4, 4, 4, 4))


def test_a_second_derivative_is_refused_rather_than_wrong() -> None:
    x = torch.randn(1, 2, 4, 4, 4, requires_grad=True)
    (grad,) = torch.autograd.grad(norm_act(x * 1).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()
