"""Value and gradients of the Padé activation unit in plain operators, safe for all x.

Beyond |x| = 1 both polynomials are evaluated in 1 / x, so that no power of x overflows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nnunet_ext.architectures.blocks.precision import at_least_float32


class Terms:
    """What value and gradients have in common, in plain operators.

    With t = x and, beyond |x| = 1, t = 1 / x, both polynomials are divided by x^4, which turns the order of the
    coefficients: f = h where |x| <= 1, and f = h x beyond, h = p / q.
    """

    def __init__(self, x: Tensor, numerator: Tensor, denominator: Tensor) -> None:
        self.x = at_least_float32(x)
        self.n = numerator.to(self.x.dtype).unbind()
        self.d = denominator.to(self.x.dtype).unbind()
        self.far = self.x.abs() > 1
        self.t = torch.where(self.far, 1 / torch.where(self.far, self.x, 1), self.x)
        self.a = self.t.abs()
        self.sizes = (self.x.new_ones(()), *(d.abs() for d in self.d))
        self.q = self._choose(self.sizes[::-1], self.sizes, self.a)
        self.h = self._choose(self.n[::-1], self.n, self.t) / self.q

    def _choose(self, near: Sequence[Tensor], far: Sequence[Tensor], t: Tensor) -> Tensor:
        """The polynomial in t with the coefficients `near`, or `far` beyond |x| = 1; the highest power's first."""
        result = torch.where(self.far, far[0], near[0])
        for a, b in zip(near[1:], far[1:], strict=True):
            result = result * t + torch.where(self.far, b, a)
        return result

    def value(self) -> Tensor:
        return torch.where(self.far, self.h * self.x, self.h)

    def gradients(self, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of x, numerator and denominator, for the upstream gradient; the coefficients' in float64."""
        slopes = [k * n for k, n in enumerate(self.n)][1:]
        falls = [k * d for k, d in enumerate(self.sizes)][1:]
        sign = torch.where(self.x < 0, -1.0, 1.0)  # compilers make slow code of torch.signbit
        w = grad / self.q
        s = self._choose(falls[::-1], falls, self.a) * torch.where(self.far, 1.0, sign)
        # Beyond |x| = 1, S / Q = sign(x) s / (|x| q), and f / x = h.
        grad_x = w * (self._choose(slopes[::-1], slopes, self.t) - s * self.h)
        powers = [torch.ones_like(self.t), self.t]
        for _ in range(3):
            powers.append(powers[-1] * self.t)
        turned = [torch.where(self.far, b, a) for a, b in zip(powers, powers[::-1], strict=True)]  # x^k, or x^(k-4)
        turned.append(torch.where(self.far, self.x, powers[4] * self.t))
        numerator = [_total(w * power) for power in turned]
        v = -w * torch.where(self.far, self.h * self.x, self.h)
        denominator = [
            torch.where(d < 0, -1.0, 1.0) * _total(v * power.abs())
            for d, power in zip(self.d, turned[1:5], strict=True)
        ]
        return grad_x, torch.stack(numerator), torch.stack(denominator)


def _total(values: Tensor) -> Tensor:
    """The sum in float64, of sums along the last axis: compilers make slow code of a sum of many float64."""
    return (values.sum(-1) if values.dim() else values).sum(dtype=torch.float64)
