"""Regular grids of points in an image, which networks that decode points are asked for.

Coordinates everywhere are floating voxel indices of an image: (0, 0, 0) is the centre of its first voxel, the axes are
in the image's order, and an image of D voxels reaches from -0.5 to D - 0.5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PointGrid:
    """The points ``offset + scale * index`` for every index below ``shape``; all in the image's axis order.

    Attributes:
        shape: points along each axis.
        scale: voxels of the image from a point to the next, of each axis.
        offset: the first point's coordinates.
    """

    shape: tuple[int, ...]
    scale: tuple[float, ...]
    offset: tuple[float, ...]

    @classmethod
    def of_voxels(cls, shape: Sequence[int]) -> PointGrid:
        """The centres of an image's own voxels."""
        return cls(tuple(int(edge) for edge in shape), (1.0,) * len(shape), (0.0,) * len(shape))

    @classmethod
    def resized(cls, image: Sequence[int], shape: Sequence[int]) -> PointGrid:
        """The voxel centres of another image of the same extent: `shape` voxels instead of `image` voxels."""
        scale = tuple(old / new for old, new in zip(image, shape, strict=True))
        return cls(tuple(int(edge) for edge in shape), scale, tuple(0.5 * s - 0.5 for s in scale))

    def brick(self, start: Sequence[int], shape: Sequence[int]) -> PointGrid:
        """The grid of the points from index `start` on; may reach beyond this grid."""
        offset = tuple(o + s * i for o, s, i in zip(self.offset, self.scale, start, strict=True))
        return PointGrid(tuple(int(edge) for edge in shape), self.scale, offset)

    def coordinates(self, index: Tensor) -> Tensor:
        """Coordinates (N, dim), float32, of integer indices (N, dim)."""
        wide = torch.float32 if index.device.type == "mps" else torch.float64  # MPS has no wider type
        scale = torch.tensor(self.scale, dtype=wide, device=index.device)
        offset = torch.tensor(self.offset, dtype=wide, device=index.device)
        return (index.to(wide) * scale + offset).float()


def voxel_coordinates(shape: Sequence[int], device: torch.device | str | None = None) -> Tensor:
    """All voxel centres (N, dim) of an image, float32, last axis fastest."""
    axes = [torch.arange(int(edge), dtype=torch.float32, device=device) for edge in shape]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, -2)
