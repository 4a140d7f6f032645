"""Padé activation unit: a rational function with learned coefficients, one set for all channels and positions.

    f(x) = (n0 + n1 x + ... + n5 x^5) / (1 + |d1||x| + |d2||x|^2 + |d3||x|^3 + |d4||x|^4)

A. Molina, P. Schramowski, K. Kersting, Padé Activation Units, ICLR 2020, in the form that OSS-Net trains
(``specs/ossnet.md`` 1.1). Only x is kept for backward, in its own dtype; everything else is computed again. Arithmetic
is float32 at least: x^5 leaves float16 at |x| = 9.

`pade_terms` has the arithmetic for compilers, which make one kernel of it; `pade_pieces` that for eager mode.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from nnunet_ext.architectures.blocks import pade_pieces
from nnunet_ext.architectures.blocks.pade_terms import Terms
from nnunet_ext.architectures.blocks.precision import at_least_float32, without_autocast

NUMERATOR = (3.35583603e-02, 5.05000375e-01, 1.65343934e00, 2.01001052e00, 9.31901999e-01, 1.52424124e-01)
"""Initial n0 to n5: close to a leaky ReLU for |x| <= 3; far out the slope is 0.505 on both sides."""
DENOMINATOR = (3.30847488e-06, 3.98021568e00, 5.12471206e-07, 3.01830109e-01)
"""Initial d1 to d4."""


class PadeActivation(nn.Module):
    """The activation with its ten coefficients.

    Attributes:
        weight_numerator: (6,), n0 to n5.
        weight_denominator: (4,), d1 to d4; their signs do not matter.
    """

    def __init__(self) -> None:
        super().__init__()
        self.weight_numerator = nn.Parameter(torch.tensor(NUMERATOR))
        self.weight_denominator = nn.Parameter(torch.tensor(DENOMINATOR))

    def forward(self, x: Tensor) -> Tensor:
        """The function of every element; x's shape, dtype and memory format."""
        return pade(x, self.weight_numerator, self.weight_denominator)


def pade(x: Tensor, numerator: Tensor, denominator: Tensor) -> Tensor:
    """The rational function of every element.

    The gradient at x = 0, where |x| has none, is that from the right; at d = 0 likewise.

    Args:
        x: any shape and floating dtype.
        numerator: (6,) n0 to n5, float32 or float64.
        denominator: (4,) d1 to d4, likewise.

    Returns:
        x's shape, dtype and memory format. It can be differentiated once.

    Raises:
        ValueError: coefficients of another number.
    """
    if numerator.shape != (6,) or denominator.shape != (4,):
        raise ValueError(
            f"numerator and denominator have the shapes {tuple(numerator.shape)} and {tuple(denominator.shape)}; "
            "they must be (6,) and (4,)."
        )
    y: Tensor = _Pade.apply(x, numerator, denominator)
    return y


class _Pade(torch.autograd.Function):
    """Keeps x and the coefficients; see the module's text."""

    @staticmethod
    def forward(x: Tensor, numerator: Tensor, denominator: Tensor) -> Tensor:
        with without_autocast(x):
            if _in_pieces(x):
                return pade_pieces.forward(x, numerator, denominator)
            return Terms(x, numerator, denominator).value().to(x.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            # torch's once_differentiable lets it pass, as a constant, where the upstream gradient is one.
            raise RuntimeError("The Padé activation can be differentiated once; leave out create_graph=True.")
        x, numerator, denominator = ctx.saved_tensors
        with without_autocast(x):
            if _in_pieces(x):
                return pade_pieces.backward(grad, x, numerator, denominator)
            grads = Terms(x, numerator, denominator).gradients(at_least_float32(grad))
        return grads[0].to(x.dtype), grads[1].to(numerator.dtype), grads[2].to(denominator.dtype)


def _in_pieces(x: Tensor) -> bool:
    return not x.is_meta and not torch.compiler.is_compiling()
