"""Windows of an image around points, gathered by index arithmetic: memory grows with the points, not with the image."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional


def gather_windows(x: Tensor, index: Tensor, before: Sequence[int], size: Sequence[int]) -> Tensor:
    """The windows from `before` voxels before each point; zeros outside of the image.

    Equal to indexing an unfolded view of the padded image, without the view. Static shapes, no synchronisation.

    Args:
        x: (B, C, *spatial), 2D or 3D.
        index: (B, N, dim) long, voxel indices in [0, edge).
        before: voxels of the window before its point, of each axis.
        size: voxels of the window, of each axis.

    Returns:
        (B, N, C, *size), a fresh tensor of x's dtype.
    """
    dim = index.shape[-1]
    pads = [(b, s - 1 - b) for b, s in zip(before, size, strict=True)]
    padded = functional.pad(x, list(itertools.chain(*reversed(pads))))
    steps = [1] * dim
    for axis in range(dim - 2, -1, -1):
        steps[axis] = steps[axis + 1] * padded.shape[axis + 3]
    base = sum((index[..., axis] * steps[axis] for axis in range(1, dim)), index[..., 0] * steps[0])
    offsets = torch.zeros((), dtype=torch.long, device=x.device)
    for axis in range(dim):
        shape = [-1 if i == axis else 1 for i in range(dim)]
        offsets = offsets + torch.arange(size[axis], device=x.device).view(shape) * steps[axis]
    flat = (base[..., None] + offsets.flatten()).flatten(1)  # (B, N * window)
    channels = x.shape[1]
    gathered = padded.flatten(2).gather(2, flat[:, None].expand(-1, channels, -1))
    return gathered.unflatten(2, (index.shape[1], -1)).transpose(1, 2).unflatten(3, tuple(size)).contiguous()
