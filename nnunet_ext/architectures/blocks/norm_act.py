"""Instance normalisation, slice shift, residual, shortcut and leaky ReLU as one step that keeps only its output.

The activated output y is needed by the next convolution anyway. A leaky ReLU can be inverted (divide where y < 0), and
the backward pass of a normalisation without affine parameters needs nothing but the normalised values and 1 / standard
deviation, so neither the convolution's output nor a copy of it is kept (the idea of S. Rota Bulò, L. Porzi,
P. Kontschieder, In-Place Activated BatchNorm for Memory-Optimized Training of DNNs, CVPR 2018).

On a CPU tensors are channels-last, where torch's convolutions are about twice as fast, but its normalisation sums a
million float32 values one after the other (relative error 2e-4 at 96^3) and allocates a new buffer, whose page faults
cost more than the arithmetic. So there the statistics are summed in pieces that fit the cache, and the convolution's
output, which nothing else needs, is overwritten. Elsewhere, and under torch.compile, torch's own kernels do the work.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from nnunet_ext.architectures.blocks.layout import channels_last_format
from nnunet_ext.architectures.blocks.slice_shift import shift_groups, shift_groups_

PIECE = 2**18
"""Values in one piece of the CPU loops: 1 MiB, so that a piece and its temporaries stay in a core's cache."""


def norm_act(
    x: Tensor,
    *,
    eps: float = 1e-5,
    slope: float | None = 0.01,
    residual: Tensor | None = None,
    shortcut: Tensor | None = None,
    shift_axis: int | None = None,
    fold: int = 0,
    overwrite: bool = True,
) -> Tensor:
    """leaky_relu(instance_norm(shift(x) + residual) + shortcut), per sample and channel, no affine parameters.

    Args:
        x: (B, C, D, H, W) or (B, C, H, W), any floating dtype. Statistics are float32 at least.
        eps: added to the variance.
        slope: of the leaky ReLU, > 0; None for no activation.
        residual: of x's shape, added after the shift and before the normalisation.
        shortcut: of x's shape, added after the normalisation and before the activation; it is kept for backward.
        shift_axis: spatial axis (0, 1, 2) of the TSM shift; None for no shift.
        fold: channels in each of the two shifted groups.
        overwrite: x may be overwritten (it is on a CPU): true for a convolution's fresh output, which the
            convolution's own backward pass does not use.

    Returns:
        x's shape and dtype.
    """
    if fold == 0:
        shift_axis = None
    in_place = overwrite and _in_pieces(x)
    inputs = (x, residual, shortcut)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs):
        return _NormAct.apply(*inputs, eps, slope, shift_axis, fold, in_place)
    return _forward(*inputs, eps, slope, shift_axis, fold, in_place)[0]


class _NormAct(torch.autograd.Function):
    """Keeps the output, 1 / standard deviation (B, C) and the shortcut; see the module's text."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        residual: Tensor | None,
        shortcut: Tensor | None,
        eps: float,
        slope: float | None,
        shift_axis: int | None,
        fold: int,
        in_place: bool,
    ) -> Tensor:
        y, inverse_std = _forward(x, residual, shortcut, eps, slope, shift_axis, fold, in_place)
        if in_place:
            ctx.mark_dirty(x)
        ctx.save_for_backward(y, inverse_std, shortcut)
        ctx.options = (slope, shift_axis, fold, residual is not None)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        y, inverse_std, shortcut = ctx.saved_tensors
        slope, shift_axis, fold, has_residual = ctx.options
        grad_shortcut = None
        if shortcut is not None:  # then the activation's part is done here, once for both gradients
            grad_shortcut = grad if slope is None else torch.ops.aten.leaky_relu_backward(grad, y, slope, True)
            y = y - shortcut if slope is None else functional.leaky_relu(y, 1 / slope).sub_(shortcut)
            grad, slope = grad_shortcut, None
        grad_sum = _backward(grad, y, inverse_std, slope)
        grad_x = grad_sum if shift_axis is None else shift_groups(grad_sum, shift_axis, fold, step=-1)
        return grad_x, grad_sum if has_residual else None, grad_shortcut, None, None, None, None, None


def _in_pieces(x: Tensor) -> bool:
    """Whether the CPU loops apply: channels-last in memory, eager mode, float32 or wider; meta stands in for a CPU."""
    return (
        x.device.type in ("cpu", "meta")
        and x.dtype in (torch.float32, torch.float64)
        and not torch.compiler.is_compiling()
        and x.is_contiguous(memory_format=channels_last_format(x))
    )


def _forward(
    x: Tensor,
    residual: Tensor | None,
    shortcut: Tensor | None,
    eps: float,
    slope: float | None,
    shift_axis: int | None,
    fold: int,
    in_place: bool,
) -> tuple[Tensor, Tensor]:
    """The output and 1 / standard deviation (B, C)."""
    if shift_axis is not None:
        x = shift_groups_(x, shift_axis, fold) if in_place else shift_groups(x, shift_axis, fold)
    if _in_pieces(x):
        return _forward_in_pieces(x, residual, shortcut, eps, slope, in_place or shift_axis is not None)
    x = x if residual is None else x + residual
    flat = x.reshape(1, x.shape[0] * x.shape[1], *x.shape[2:])
    y, _, inverse_std = torch.native_batch_norm(flat, None, None, None, None, True, 0.0, eps)
    y = y.view(x.shape) if shortcut is None else y.view(x.shape).add_(shortcut)
    if slope is not None:
        y = functional.leaky_relu_(y, slope)
    return y, inverse_std.view(x.shape[0], x.shape[1])


def _backward(grad: Tensor, y: Tensor, inverse_std: Tensor, slope: float | None) -> Tensor:
    """Gradient of the normalisation's input (B, C, *spatial) from that of the output."""
    if _in_pieces(y):
        return _backward_in_pieces(grad.contiguous(memory_format=channels_last_format(y)), y, inverse_std, slope)
    if slope is not None:
        grad = torch.ops.aten.leaky_relu_backward(grad, y, slope, True)
        y = functional.leaky_relu(y, 1 / slope)
    # torch's kernel, told that y is its input: of mean 0 and standard deviation 1, to be scaled by 1 / deviation.
    shape = (1, inverse_std.numel(), *y.shape[2:])
    zeros, ones = torch.zeros_like(inverse_std), torch.ones_like(inverse_std)
    result = torch.ops.aten.native_batch_norm_backward(
        grad.reshape(shape),
        y.reshape(shape),
        inverse_std.flatten(),
        None,
        None,
        zeros.flatten(),
        ones.flatten(),
        True,
        0.0,
        [True, False, False],
    )[0]
    return result.view(y.shape)


def _rows(x: Tensor) -> Tensor:
    """Channels-last (B, C, *spatial) as (B, N, C) without a copy."""
    return x.permute(0, *range(2, x.dim()), 1).view(x.shape[0], -1, x.shape[1])


def _pieces(*tensors: Tensor) -> list[tuple[Tensor, ...]]:
    """(rows, C) tensors cut alike into pieces of about PIECE values."""
    size, channels = tensors[0].shape
    rows = size if tensors[0].is_meta else max(1, PIECE // channels)
    return list(zip(*(t.split(rows) for t in tensors), strict=True))


def _forward_in_pieces(
    x: Tensor, residual: Tensor | None, shortcut: Tensor | None, eps: float, slope: float | None, in_place: bool
) -> tuple[Tensor, Tensor]:
    y = x if in_place else torch.empty_like(x)
    inverse_std = x.new_empty(x.shape[:2])
    layout = channels_last_format(x)
    others = None if residual is None else _rows(residual.contiguous(memory_format=layout))
    shortcuts = None if shortcut is None else _rows(shortcut.contiguous(memory_format=layout))
    for sample, (source, target) in enumerate(zip(_rows(x), _rows(y), strict=True)):
        if others is not None:
            for a, b, out in _pieces(source, others[sample], target):
                torch.add(a, b, out=out)
            source = target
        mean, scale = _statistics(source, eps)
        for a, out, *more in _pieces(source, target, *(() if shortcuts is None else (shortcuts[sample],))):
            torch.sub(a, mean, out=out).mul_(scale)  # one addcmul would cancel where |mean| is much above the deviation
            for added in more:
                out.add_(added)
            if slope is not None:
                functional.leaky_relu_(out, slope)
        inverse_std[sample] = scale
    return y, inverse_std


def _statistics(rows: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Mean and 1 / standard deviation (C) of (rows, C), summed around the first piece's mean against cancellation."""
    pieces = _pieces(rows)
    centre = pieces[0][0].mean(0)
    first = torch.zeros_like(centre, dtype=torch.float64)
    second = torch.zeros_like(first)
    for (piece,) in pieces:
        centred = piece - centre
        first += centred.sum(0)
        second += centred.square_().sum(0)
    count = rows.shape[0]
    offset = first / count
    variance = (second / count - offset.square()).clamp_(min=0)
    return (centre + offset).to(rows.dtype), (variance + eps).rsqrt_().to(rows.dtype)


def _backward_in_pieces(grad: Tensor, y: Tensor, inverse_std: Tensor, slope: float | None) -> Tensor:
    result = torch.empty_like(y)
    for sample, (grads, values, target) in enumerate(zip(_rows(grad), _rows(y), _rows(result), strict=True)):
        total = values.new_zeros(values.shape[1], dtype=torch.float64)
        product = torch.zeros_like(total)
        for g, v in _pieces(grads, values):
            g, v = _before_activation(g, v, slope)
            total += g.sum(0)
            product += v.mul_(g).sum(0)
        scale = inverse_std[sample]
        constant = (-scale * total / values.shape[0]).to(scale.dtype)
        factor = (-scale * product / values.shape[0]).to(scale.dtype)
        for g, v, out in _pieces(grads, values, target):
            g, v = _before_activation(g, v, slope)
            torch.addcmul(constant, g, scale, out=out)
            out.addcmul_(v, factor)
    return result


def _before_activation(grad: Tensor, y: Tensor, slope: float | None) -> tuple[Tensor, Tensor]:
    """Gradient of the leaky ReLU's input and that input, recovered from its output; new tensors."""
    if slope is None:
        return grad, y.clone()
    return torch.ops.aten.leaky_relu_backward(grad, y, slope, True), functional.leaky_relu(y, 1 / slope)
