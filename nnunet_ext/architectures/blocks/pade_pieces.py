"""The Padé activation unit in eager mode, in pieces.

Each operator is a pass over memory there, so what counts is how few there are, that a piece and its temporaries stay in
a core's cache, and that the temporaries are of pieces, not of the whole. While |x| <= MODERATE, P / Q as it stands is
as exact as the form in 1 / x, and half the work. A piece with larger numbers (or NaN) takes that form.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nnunet_ext.architectures.blocks.pade_terms import Terms

PIECE = 2**15
"""Values in one piece and thread of a CPU: 128 KiB, so that eight buffers of it fit a core's second-level cache."""
DEVICE_PIECE = 2**22
"""Values in one piece elsewhere: enough that a pass over them takes longer than its launch."""
MODERATE = 2.0**12
"""Bound of |x| up to which powers of x, and their products with small gradients, stay far from float32's bounds."""


def forward(x: Tensor, numerator: Tensor, denominator: Tensor) -> Tensor:
    """The function of every element; x's shape, dtype and strides."""
    y = torch.empty_like(x)
    order = _memory_order(y)
    pieces = _Pieces(x, numerator, denominator)
    for source, target in _split(pieces.size, _flat(x, order), y.permute(order).view(-1)):
        pieces.value(source, target)
    return y


def backward(grad: Tensor, x: Tensor, numerator: Tensor, denominator: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, numerator and denominator, in their dtypes, for the upstream gradient `grad`."""
    grad_x = torch.empty_like(x)
    order = _memory_order(grad_x)
    pieces = _Pieces(x, numerator, denominator)
    sums = torch.zeros(10, dtype=torch.float64, device=x.device)
    for g, source, target in _split(pieces.size, _flat(grad, order), _flat(x, order), grad_x.permute(order).view(-1)):
        sums += pieces.gradients(g, source, target)
    return grad_x, sums[:6].to(numerator.dtype), sums[6:].to(denominator.dtype)


def _memory_order(dense: Tensor) -> list[int]:
    """The axes of a dense tensor from the slowest in memory to the fastest."""
    return sorted(range(dense.dim()), key=dense.stride, reverse=True)


def _flat(x: Tensor, order: Sequence[int]) -> Tensor:
    return x.permute(tuple(order)).reshape(-1)


def _split(size: int, *tensors: Tensor) -> list[tuple[Tensor, ...]]:
    """Flat tensors cut alike into pieces of `size` values."""
    if tensors[0].numel() == 0:
        return []
    return list(zip(*(tensor.split(size) for tensor in tensors), strict=True))


class _Pieces:
    """The arithmetic of one piece, in buffers that the next piece uses again.

    Attributes:
        size: values in a piece; the last may have fewer.
    """

    def __init__(self, x: Tensor, numerator: Tensor, denominator: Tensor) -> None:
        on_cpu = x.device.type == "cpu"
        self.size = max(1, min(PIECE * torch.get_num_threads() if on_cpu else DEVICE_PIECE, x.numel()))
        self._coefficients = numerator, denominator
        self._dtype = torch.promote_types(x.dtype, torch.float32)
        self._always_moderate = x.dtype == torch.float16
        if not on_cpu and not self._always_moderate and x.numel() > 0:  # one question to the device, not one a piece
            self._always_moderate = bool(torch.stack(torch.aminmax(x)).abs().amax() <= MODERATE)
        self._buffers = [torch.empty(self.size, dtype=self._dtype, device=x.device) for _ in range(8)]
        n = numerator.to(self._dtype).unbind()
        d = (torch.ones((), dtype=self._dtype, device=x.device), *denominator.abs().to(self._dtype).unbind())
        self._n, self._d = n[::-1], d[::-1]  # highest powers first
        self._slopes = [k * c for k, c in enumerate(n)][:0:-1]
        self._falls = [k * c for k, c in enumerate(d)][:0:-1]
        self._turn = torch.where(denominator < 0, 1.0, -1.0).double()

    def value(self, source: Tensor, target: Tensor) -> None:
        """Write f of the piece `source` into `target`."""
        x, a, p, q, *_ = self._start(source)
        if not self._moderate(a):
            target.copy_(Terms(source, *self._coefficients).value())
            return
        _polynomial(self._d, a, q)
        _polynomial(self._n, x, p)
        target.copy_(p.div_(q)) if target.dtype != self._dtype else torch.div(p, q, out=target)

    def gradients(self, grad: Tensor, source: Tensor, target: Tensor) -> Tensor:
        """Write the gradient of the piece `source` into `target`.

        Returns:
            (10,) float64, the piece's part of the gradients of n0 to n5 and d1 to d4.
        """
        x, a, w, s, f, r, x2, g = self._start(source)
        g = _as(grad, g)
        if not self._moderate(a):
            grad_x, *sums = Terms(source, *self._coefficients).gradients(g)
            target.copy_(grad_x)
            return torch.cat(sums)
        _polynomial(self._d, a, w).reciprocal_()
        _polynomial(self._n, x, f).mul_(w)
        w.mul_(g)  # dL/dP = grad / Q
        _with_sign(_polynomial(self._falls, a, s), x, r)
        _polynomial(self._slopes, x, r).addcmul_(s, f, value=-1)
        target.copy_(r.mul_(w)) if target.dtype != self._dtype else torch.mul(r, w, out=target)
        v = f.mul_(w)  # -dL/dQ
        torch.mul(x, x, out=x2)
        x3 = torch.mul(x, x2, out=r)
        sums = [w.sum(), torch.dot(w, x), torch.dot(w, x2), torch.dot(w, x3)]
        w.mul_(x2)
        sums += [torch.dot(w, x2), torch.dot(w, x3), torch.dot(v, a), torch.dot(v, x2)]
        v.mul_(x2)
        sums += [torch.dot(v, a), torch.dot(v, x2)]
        total = torch.stack(sums).double()
        total[6:] *= self._turn
        return total

    def _start(self, source: Tensor) -> list[Tensor]:
        """The piece in the dtype of the arithmetic, its absolute values, and six buffers of its size."""
        buffers = [buffer[: source.numel()] for buffer in self._buffers]
        x = _as(source, buffers.pop())
        torch.abs(x, out=buffers[0])
        return [x, *buffers]

    def _moderate(self, a: Tensor) -> bool:
        return self._always_moderate or bool(a.amax() <= MODERATE)


def _as(source: Tensor, buffer: Tensor) -> Tensor:
    """The source itself, or in the buffer where it has another dtype."""
    return source if source.dtype == buffer.dtype else buffer.copy_(source)


def _polynomial(coefficients: Sequence[Tensor], t: Tensor, out: Tensor) -> Tensor:
    """Horner's rule; scalars of dimension 0, the highest power's first."""
    torch.mul(t, coefficients[0], out=out).add_(coefficients[1])
    for c in coefficients[2:]:
        torch.addcmul(c, out, t, out=out)
    return out


def _with_sign(sizes: Tensor, x: Tensor, scratch: Tensor) -> None:
    """Give the non-negative `sizes` the signs of x, in place; torch's copysign takes five times as long."""
    bits, lowest = (torch.int32, -(2**31)) if x.dtype == torch.float32 else (torch.int64, -(2**63))
    signs = torch.bitwise_and(x.view(bits), lowest, out=scratch.view(bits))
    sizes.view(bits).bitwise_xor_(signs)
