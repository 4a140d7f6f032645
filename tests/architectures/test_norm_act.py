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
    "shortcut": {"shortcut": True},
    "shortcut, no activation": {"shortcut": True, "slope": None},
    "everything": {"shift_axis": 0, "fold": 1, "residual": True, "shortcut": True},
}


def composed(
    x: Tensor,
    residual: Tensor | None = None,
    shortcut: Tensor | None = None,
    slope: float | None = 0.01,
    **shift: int,
) -> Tensor:
    """The same, out of torch's operators."""
    x = shift_groups(x, shift["shift_axis"], shift["fold"]) if shift else x
    x = functional.instance_norm(x if residual is None else x + residual)
    x = x if shortcut is None else x + shortcut
    return x if slope is None else functional.leaky_relu(x, slope)


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PIECE", 40)


@pytest.mark.parametrize("channels_last", [True, False], ids=["channels-last", "contiguous"])
@pytest.mark.parametrize("overwrite", [True, False], ids=["overwrite", "keep"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.usefixtures("small_pieces")
def test_values_and_gradients(case: str, overwrite: bool, channels_last: bool) -> None:
    options = dict(CASES[case])
    check_values_and_gradients((2, 5, 3, 4, 3), options, overwrite=overwrite, channels_last=channels_last)


@pytest.mark.parametrize("channels_last", [True, False], ids=["channels-last", "contiguous"])
@pytest.mark.parametrize("options", [{}, {"residual": True}, {"shortcut": True}, {"shortcut": True, "slope": None}])
@pytest.mark.usefixtures("small_pieces")
def test_images_of_two_dimensions(options: dict[str, Any], channels_last: bool) -> None:
    check_values_and_gradients((2, 5, 7, 4), dict(options), overwrite=True, channels_last=channels_last)


def check_values_and_gradients(
    shape: tuple[int, ...], options: dict[str, Any], *, overwrite: bool, channels_last: bool
) -> None:
    torch.manual_seed(0)
    x, r, s, g = (torch.randn(shape, dtype=torch.float64) for _ in range(4))
    x.requires_grad_()
    added: dict[str, Any] = {
        name: values.requires_grad_() for name, values in (("residual", r), ("shortcut", s)) if options.pop(name, False)
    }
    fresh = to_channels_last(x * 1) if channels_last else x * 1
    before = fresh.detach().clone()
    y = norm_act(fresh, **added, overwrite=overwrite, **options)
    expected = composed(x, **added, **options)
    torch.testing.assert_close(y, expected)
    inputs = [x, *added.values()]
    for got, wanted in zip(torch.autograd.grad(y, inputs, g), torch.autograd.grad(expected, inputs, g), strict=True):
        torch.testing.assert_close(got, wanted)
    if not overwrite:
        torch.testing.assert_close(fresh.detach(), before, rtol=0, atol=0)


@pytest.mark.parametrize("slope", [0.01, None])
@pytest.mark.parametrize("shape", [(2, 3, 2, 3, 2), (2, 3, 4, 3)], ids=["3d", "2d"])
@pytest.mark.usefixtures("small_pieces")
def test_gradients_are_those_of_finite_differences(shape: tuple[int, ...], slope: float | None) -> None:
    torch.manual_seed(0)
    x, residual, shortcut = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for _ in range(3))

    def run(x: Tensor, residual: Tensor, shortcut: Tensor) -> Tensor:
        return norm_act(to_channels_last(x * 1), residual=residual, shortcut=shortcut, slope=slope)

    assert torch.autograd.gradcheck(run, (x, residual, shortcut))


def test_the_shortcut_is_not_changed_and_gets_its_own_gradient() -> None:
    """The gradient is not shared memory with another one, as the sum of a block's branches is formed in place."""
    torch.manual_seed(0)
    x, shortcut = (to_channels_last(torch.randn(1, 4, 3, 3, 3)).requires_grad_() for _ in range(2))
    before = shortcut.detach().clone()
    for slope in (0.01, None):
        y = norm_act(x * 1, shortcut=shortcut, slope=slope)
        gradient = torch.randn_like(y)
        kept = gradient.clone()
        grads = torch.autograd.grad(y, [x, shortcut], gradient)
        assert grads[0].data_ptr() != grads[1].data_ptr()
        assert torch.equal(gradient, kept)
        assert torch.equal(shortcut.detach(), before)


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
    kept.clear()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        y = norm_act(x * 1, shortcut=x)
    assert sorted(kept) == [8, y.numel(), x.numel()]


def test_constant_input_is_finite() -> None:
    x = to_channels_last(torch.full((1, 4, 4, 4, 4), 1e4))
    assert torch.equal(norm_act(x), torch.zeros(1, 4, 4, 4, 4))


def test_a_second_derivative_is_refused_rather_than_wrong() -> None:
    x = torch.randn(1, 2, 4, 4, 4, requires_grad=True)
    (grad,) = torch.autograd.grad(norm_act(x * 1).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()
