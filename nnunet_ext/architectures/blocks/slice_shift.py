"""Moving channels by one slice along a spatial axis (specification sshunet 1.6): zeros enter, the last slice leaves.

Source: J. Lin, C. Gan, S. Han, TSM: Temporal Shift Module for Efficient Video Understanding, ICCV 2019, as SSH-UNet
uses it.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def shift(x: Tensor, axis: int, step: int) -> Tensor:
    """Return x moved by one slice: y[t] = x[t - step] along spatial `axis`, zero where x has no such slice.

    Args:
        x: (B, C, D, H, W).
        axis: 0, 1 or 2, the spatial axis D, H or W.
        step: +1 (towards higher slice indices) or -1.
    """
    n = x.shape[2 + axis]
    kept = x.narrow(2 + axis, 0 if step > 0 else 1, n - 1)
    padding = [0, 0, 0, 0, 0, 0]  # torch counts from the last axis: W, W, H, H, D, D
    padding[2 * (2 - axis) + (0 if step > 0 else 1)] = 1
    return functional.pad(kept, padding)


def shift_groups(x: Tensor, axis: int, fold: int, step: int = 1) -> Tensor:
    """TSM: the first `fold` channels move by +step, the last `fold` by -step, the others stay.

    Args:
        x: (B, C, D, H, W).
        axis: 0, 1 or 2, the spatial axis D, H or W.
        fold: number of channels in each moving group, at most C / 2.
        step: +1, or -1 for the adjoint (the backward pass).

    Returns:
        A new tensor of x's shape.
    """
    first, rest, last = x.split([fold, x.shape[1] - 2 * fold, fold], dim=1)
    return torch.cat([shift(first, axis, step), rest, shift(last, axis, -step)], dim=1)


def shift_groups_(x: Tensor, axis: int, fold: int, step: int = 1) -> Tensor:
    """`shift_groups` in place. Only for tensors that nothing else needs, autograd included."""
    channels = x.shape[1]
    for group, direction in ((x[:, :fold], step), (x[:, channels - fold :], -step)):
        n = x.shape[2 + axis]
        low, high = group.narrow(2 + axis, 0, n - 1), group.narrow(2 + axis, 1, n - 1)
        source, target = (low, high) if direction > 0 else (high, low)
        target.copy_(source.clone())
        group.select(2 + axis, 0 if direction > 0 else n - 1).zero_()
    return x
