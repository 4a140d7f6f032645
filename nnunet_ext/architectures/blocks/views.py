"""The three slicing directions of a volume, in volume coordinates (specification sshunet 1.2 and 6.2).

View a slices a (D, H, W) volume along axis a; its own axes are (slice, row, column). Swapping axis 0 with axis a leads
from one order to the other and back. Instead of the activations, the small things are swapped: weights and strides.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nnunet_ext.architectures.blocks.layout import channels_last_format, is_channels_last

VIEWS = (0, 1, 2)


def swap_axes(values: Sequence[int], axis: int) -> tuple[int, int, int]:
    """(slice, row, column) numbers of view `axis` in (D, H, W) order, or back: the swap is its own inverse."""
    swapped = list(values)
    swapped[0], swapped[axis] = swapped[axis], swapped[0]
    return swapped[0], swapped[1], swapped[2]


def swap_volume(x: Tensor, axis: int) -> Tensor:
    """A (B, C, D, H, W) tensor in the axis order of view `axis`, or back; no copy."""
    return x.transpose(2, 2 + axis)


def view_weight(weight: Tensor, axis: int, layout_of: Tensor) -> Tensor:
    """A kernel (out, in, slice, row, column) as view `axis` applies it to a (D, H, W) volume.

    The kernel follows the memory layout of the tensor `layout_of` that it will be applied to.
    """
    weight = swap_volume(weight, axis)
    channels_last = is_channels_last(layout_of)
    return weight.contiguous(memory_format=channels_last_format(weight) if channels_last else torch.contiguous_format)


def transposed_weight(weight: Tensor, axis: int, stride: Sequence[int]) -> Tensor:
    """A transposed convolution's kernel (in, out, slice, row, column) for view `axis` and its stride over (D, H, W).

    Where the view does not upsample along an axis that another view does, the kernel's mean along it is used, so that
    one kernel serves the three views (specification sshunet 6.2).
    """
    weight = swap_volume(weight, axis)
    for dim, step in enumerate(stride, start=2):
        if weight.shape[dim] != step:
            weight = weight.mean(dim, keepdim=True)
    return weight
