"""OSS-Net's local observations: windows of the image around points, and the two convolutions inside of each.

``specs/ossnet.md`` 1.4. A convolution with a kernel as large as its window touches a third of all pairs of input and
output, so its matrix product costs no more arithmetic than the convolution with its padding, and runs much faster.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from nnunet_ext.architectures.blocks.pade import PadeActivation
from nnunet_ext.architectures.blocks.precision import without_autocast
from nnunet_ext.architectures.blocks.windows import gather_windows

WINDOW = 7  # voxels, edge of a small window; positions of a large one, each pooled from 2 voxels an axis
_HALF = WINDOW // 2


class PatchMapping(nn.Module):
    """Two convolutions inside of windows, zero padded at the windows' borders.

    Args:
        channels: of the windows.
        conv_op: `torch.nn.Conv2d` or `torch.nn.Conv3d`; its modules hold the weights.
    """

    def __init__(self, channels: int, conv_op: type[nn.Module]) -> None:
        super().__init__()
        hidden = max(channels // 2, 1)
        self.mapping = nn.Sequential(
            conv_op(channels, hidden, WINDOW, padding=_HALF),
            PadeActivation(),
            nn.Identity(),  # the original's dropout, with rate 0
            conv_op(hidden, 1, WINDOW, padding=_HALF),
            PadeActivation(),
        )

    def forward(self, windows: Tensor) -> Tensor:
        """(B, N, C, 7, ...) to features (B, N, positions of a window)."""
        h = self.mapping[1](window_convolution(self.mapping[0], windows.flatten(2)))
        features: Tensor = self.mapping[4](window_convolution(self.mapping[3], h))
        return features


def window_convolution(conv: nn.Module, windows: Tensor) -> Tensor:
    """`conv` inside of each window as one matrix product: (B, N, C * positions) to (B, N, outputs * positions)."""
    weight, bias = cast(Tensor, conv.weight), cast(Tensor, conv.bias)
    positions = WINDOW ** (weight.dim() - 2)
    with without_autocast(weight):  # it only copies: tensordot refuses what autocast makes of its operands
        matrix = window_matrix(weight)
    return functional.linear(windows, matrix, bias.repeat_interleave(positions))


def window_matrix(weight: Tensor) -> Tensor:
    """The matrix (outputs * positions, inputs * positions) of a kernel (outputs, inputs, 7, ...) inside of a window."""
    dim = weight.dim() - 2
    steps = torch.arange(WINDOW, device=weight.device)
    offset = steps[None, None, :] - steps[None, :, None] + _HALF  # (1, output, input): where the kernel is read
    reads = (offset == steps[:, None, None]).to(weight.dtype)  # (kernel, output, input)
    matrix = weight
    for _ in range(dim):  # each turns the foremost axis of the kernel into a pair at the end
        matrix = torch.tensordot(matrix, reads, dims=([2], [0]))
    order = [0, *range(2, 2 + 2 * dim, 2), 1, *range(3, 3 + 2 * dim, 2)]
    return matrix.permute(order).reshape(weight.shape[0] * WINDOW**dim, -1)


def small_windows(x: Tensor, index: Tensor) -> Tensor:
    """Windows (B, N, C, 7, ...) of x (B, C, *spatial) centred on voxels (B, N, dim); zeros outside of the image."""
    dim = index.shape[-1]
    return gather_windows(x, index, [_HALF] * dim, [WINDOW] * dim)


def around(x: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """The part of an image that small windows around voxels (B, N, dim) reach, and the voxels' indices in it."""
    lowest = index.flatten(0, 1).amin(0).sub(_HALF).clamp(min=0)
    highest = index.flatten(0, 1).amax(0).add(_HALF)
    box = [slice(low, high + 1) for low, high in zip(lowest.tolist(), highest.tolist(), strict=True)]
    whole: list[slice] = [slice(None)] * 2
    return x[tuple(whole + box)], index - lowest


def pooled_pairs(x: Tensor, pooling: str) -> Tensor:
    """Every two neighbours of each axis of x (B, C, *spatial) pooled, from 7 voxels before the image to 6 behind it.

    Large windows are regular samples of it, so their voxels never are in memory all at once.

    Args:
        x: the image.
        pooling: "average", as the original trains, or "max", as it predicts.

    Returns:
        (B, C, *(edge + 12)).
    """
    dim = x.dim() - 2
    padded = functional.pad(x, [WINDOW, WINDOW - 1] * dim)
    for axis in range(2, 2 + dim):
        one, other = padded.narrow(axis, 0, padded.shape[axis] - 1), padded.narrow(axis, 1, padded.shape[axis] - 1)
        padded = torch.maximum(one, other) if pooling == "max" else (one + other) / 2
    return padded


def large_windows(pooled: Tensor, index: Tensor) -> Tensor:
    """Windows (B, N, C, 7, ...) of 14 voxels an axis, offsets -7 to 6, at half resolution.

    Args:
        pooled: (B, C, *(edge + 12)) of `pooled_pairs`.
        index: (B, N, dim) long, voxels in [0, edge).
    """
    dim, channels = index.shape[-1], pooled.shape[1]
    steps = [math.prod(pooled.shape[3 + axis :]) for axis in range(dim)]
    base = sum(index[..., axis] * steps[axis] for axis in range(dim))
    offsets = torch.zeros((), dtype=torch.long, device=index.device)
    for axis in range(dim):
        shape = [-1 if i == axis else 1 for i in range(dim)]
        offsets = offsets + torch.arange(0, 2 * WINDOW, 2, device=index.device).view(shape) * steps[axis]
    flat = (cast(Tensor, base)[..., None] + offsets.flatten()).flatten(1)  # (B, N * positions)
    gathered = pooled.flatten(2).gather(2, flat[:, None].expand(-1, channels, -1))
    windows = gathered.unflatten(2, (index.shape[1], -1)).transpose(1, 2)
    return windows.unflatten(3, (WINDOW,) * dim)
