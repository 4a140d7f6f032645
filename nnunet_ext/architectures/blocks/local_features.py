"""Features of an image's nearest surroundings at any point, from windows or from the whole image, with equal values.

Three convolutions without padding see 3 voxels in each direction (1 along axes with kernels of 1). They are translation
equivariant, so the same weights give the same features on a window around a point and on the padded image
(``specs/ossnet.md`` 6.3). Windows need memory for the points only; the whole image needs less arithmetic where points
are dense. Between voxel centres the features are interpolated linearly.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from nnunet_ext.architectures.blocks.activation import make_activation
from nnunet_ext.architectures.blocks.layout import CPU_LIKE, to_channels_last
from nnunet_ext.architectures.blocks.point_features import inside
from nnunet_ext.architectures.blocks.windows import gather_windows

LAYERS = 3
WINDOW_COST = {2: 3, 3: 7}  # arithmetic of a window by that of a voxel of the whole image
WIDER_COST = {2: 5, 3: 20}  # the same for points between voxels


class LocalFeatures(nn.Module):
    """Three convolutions without padding, each followed by an activation; no normalisation.

    Args:
        dim: 2 or 3.
        inputs: channels of the image.
        widths: feature maps of the three layers.
        kernels: (layers, dim) kernel sizes, 1 or 3.
        activation: "leaky_relu", "gelu" or "pade".
    """

    def __init__(
        self, dim: int, inputs: int, widths: Sequence[int], kernels: Sequence[Sequence[int]], activation: str
    ) -> None:
        super().__init__()
        conv: Any = nn.Conv3d if dim == 3 else nn.Conv2d
        self.dim = dim
        self.reach = tuple(sum(kernel[axis] // 2 for kernel in kernels) for axis in range(dim))
        channels = [inputs, *widths]
        self.layers = nn.ModuleList(
            conv(a, b, tuple(kernel)) for (a, b), kernel in zip(itertools.pairwise(channels), kernels, strict=True)
        )
        self.activations = nn.ModuleList(make_activation(activation) for _ in kernels)

    def forward(self, x: Tensor, coords: Tensor, on_grid: int = 0) -> Tensor:
        """Features of points.

        Args:
            x: (B, C, *spatial).
            coords: (B, N, dim) float32 voxel indices; beyond the outer voxels' centres, those are taken.
            on_grid: so many points at the front are whole numbers.

        Returns:
            (B, N, widths[-1]).
        """
        coords = inside(coords, x.shape[2:])
        moved = coords.shape[1] - on_grid
        cost = WINDOW_COST[self.dim] * on_grid + WIDER_COST[self.dim] * moved
        if math.prod(x.shape[2:]) <= cost:
            return self._of_image(x, coords, on_grid)
        parts = []
        if on_grid:
            parts.append(self._of_windows(x, coords[:, :on_grid].long(), 1)[:, :, 0])
        if moved:
            parts.append(self._between(x, coords[:, on_grid:]))
        return torch.cat(parts, 1)

    def _stack(self, x: Tensor) -> Tensor:
        for layer, activation in zip(self.layers, self.activations, strict=True):
            x = activation(layer(x))
        return x

    def _of_image(self, x: Tensor, coords: Tensor, on_grid: int) -> Tensor:
        """By features of all voxels."""
        padded = functional.pad(x, [r for r in reversed(self.reach) for _ in range(2)])
        features = self._stack(to_channels_last(padded) if x.device.type in CPU_LIKE else padded)
        tokens = features.flatten(2).transpose(1, 2)
        index = coords[:, :on_grid].long()
        parts = [_take(tokens, _flat(index, x.shape[2:]))]
        if on_grid < coords.shape[1]:
            moved = coords[:, on_grid:]
            base = moved.floor().long()
            neighbours = itertools.product((0, 1), repeat=self.dim)
            corners = [_take(tokens, _flat(base, x.shape[2:], shift)) for shift in neighbours]
            parts.append(self._mix(torch.stack(corners, 2), moved - base))
        return torch.cat(parts, 1)

    def _of_windows(self, x: Tensor, index: Tensor, corners: int) -> Tensor:
        """Features (B, N, corners ** dim, width) at voxels `index` and, with 2 corners, their next neighbours."""
        size = [2 * r + corners for r in self.reach]
        windows = gather_windows(x, index, self.reach, size)
        features = self._stack(windows.flatten(0, 1))
        return features.flatten(2).transpose(1, 2).unflatten(0, index.shape[:2])

    def _between(self, x: Tensor, coords: Tensor) -> Tensor:
        base = coords.floor().long()
        return self._mix(self._of_windows(x, base, 2), coords - base)

    def _mix(self, corners: Tensor, fraction: Tensor) -> Tensor:
        """(B, N, 2 ** dim, width), last axis' neighbour first, to the linear interpolation (B, N, width)."""
        weights = corners.new_ones(*fraction.shape[:2], 1)
        for axis in range(self.dim):
            f = fraction[..., axis : axis + 1].to(corners.dtype)
            weights = (weights[..., None] * torch.cat([1 - f, f], -1)[:, :, None]).flatten(2)
        return torch.einsum("bnk,bnkc->bnc", weights, corners)


def _flat(index: Tensor, size: Sequence[int], shift: Sequence[int] | None = None) -> Tensor:
    """(B, N) flat indices of (B, N, dim), which are shifted before, though not beyond the end."""
    flat = torch.zeros_like(index[..., 0])
    for axis, edge in enumerate(size):
        place = index[..., axis] if shift is None else (index[..., axis] + shift[axis]).clamp(max=edge - 1)
        flat = flat * edge + place
    return flat


def _take(tokens: Tensor, index: Tensor) -> Tensor:
    """Rows `index` (B, N) of tokens (B, L, C)."""
    return tokens.gather(1, index[..., None].expand(-1, -1, tokens.shape[2]))
