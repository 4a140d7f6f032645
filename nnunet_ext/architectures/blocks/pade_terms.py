"""Value and gradients of the Padé activation unit in plain operators, safe for all x.

With t = max(1, |x|) both polynomials are divided by t^4, so that no power of x overflows: x^k becomes v^k w^(4 - k),
v = x / t and w = 1 / t. Up to |x| = 1 these are the powers of x themselves. There are no branches, and the divided
powers are what the sums over the gradient need as well: compilers make one short loop of everything.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nnunet_ext.architectures.blocks.precision import at_least_float32


class Terms:
    """What value and gradients have in common, in plain operators.

    Attributes:
        x: the input, float32 at least.
        w: 1 / max(1, |x|).
        thirds: |v|^k w^(3 - k), k = 0 to 3.
        sizes: |v|^k w^(4 - k), k = 0 to 4: |x|^k / t^4.
        powers: x^k / t^4, k = 0 to 5.
        q: Q / t^4.
        f: the value.
    """

    def __init__(self, x: Tensor, numerator: Tensor, denominator: Tensor) -> None:
        self.x = at_least_float32(x)
        self.n = numerator.to(self.x.dtype).unbind()
        self.d = denominator.to(self.x.dtype).unbind()
        v, self.w = self.x.clamp(-1, 1), 1 / self.x.abs().clamp(min=1)
        a, w2, v2 = v.abs(), self.w * self.w, v * v
        self.thirds = (w2 * self.w, a * w2, v2 * self.w, a * v2)
        self.sizes = (self.thirds[0] * self.w, *(a * third for third in self.thirds))
        odd = (v * self.thirds[0], v * self.thirds[2])
        self.powers = (self.sizes[0], odd[0], self.sizes[2], odd[1], self.sizes[4], self.x * self.sizes[4])
        self.q = self.sizes[0] + _combined([d.abs() for d in self.d], self.sizes[1:])
        self.f = _combined(self.n, self.powers) / self.q

    def value(self) -> Tensor:
        return self.f

    def gradients(self, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of x, numerator and denominator, for the upstream gradient; the coefficients' in float64."""
        slope = _combined([k * n for k, n in enumerate(self.n)][1:], self.powers[:5])
        fall = _combined([k * d.abs() for k, d in enumerate(self.d, 1)], self.thirds)  # times w: |Q'| / t^4
        sign = torch.where(self.x < 0, -1.0, 1.0)  # compilers make slow code of torch.signbit
        dp = grad / self.q
        grad_x = dp * (slope - sign * fall * (self.f * self.w))
        dq = -dp * self.f
        numerator = [_total(dp * power) for power in self.powers]
        denominator = [
            torch.where(d < 0, -1.0, 1.0) * _total(dq * size) for d, size in zip(self.d, self.sizes[1:], strict=True)
        ]
        return grad_x, torch.stack(numerator), torch.stack(denominator)


def _combined(coefficients: Sequence[Tensor], terms: Sequence[Tensor]) -> Tensor:
    """The sum of the products."""
    total = coefficients[0] * terms[0]
    for coefficient, term in zip(coefficients[1:], terms[1:], strict=True):
        total = total + coefficient * term
    return total


def _total(values: Tensor) -> Tensor:
    """The sum in float64; on a GPU, where that is slow, of sums of rows."""
    if values.device.type == "cpu" or values.dim() == 0:  # compilers make slow loops of sums of rows there
        return values.sum(dtype=torch.float64)
    return values.sum(-1).sum(dtype=torch.float64)
