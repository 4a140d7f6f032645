"""What is known of the classes that occur in cells of an image, against what a lattice of points has found there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Presence:
    """Probabilities (K, *cells) that a class occurs in a cell of an image with `image_size` voxels."""

    probabilities: Tensor
    image_size: tuple[int, ...]

    def unseen(self, found: Sequence[Tensor], axes: Sequence[Tensor], threshold: float) -> Tensor:
        """Cells in which a class may occur that no point of a lattice in or around them has found: bool (*cells).

        Around is half a step of the lattice, so that every cell has a point.

        Args:
            found: of each class, a bool mask (*points) of where it is.
            axes: of each axis, the coordinates of the lattice's points, voxel indices of the image.
            threshold: probability from which a class may occur.
        """
        members = [self._members(axis, points) for axis, points in enumerate(axes)]
        cells = torch.zeros(self.probabilities.shape[1:], dtype=torch.bool, device=self.probabilities.device)
        for probability, mask in zip(self.probabilities, found, strict=True):
            seen = mask.to(members[0].dtype)
            for axis, member in enumerate(members):  # few numbers: products are cheaper than looking each point up
                seen = torch.movedim(torch.tensordot(member, seen, dims=([1], [axis])).clamp_(max=1), 0, axis)
            cells |= (probability > threshold) & (seen < 0.5)
        return cells

    def at(self, cells: Tensor, axes: Sequence[Tensor]) -> Tensor:
        """A mask (*cells) at the points of a lattice (*points); beyond the image that of the nearest cell."""
        for axis, points in enumerate(axes):
            last = cells.shape[axis] - 1
            index = ((points + 0.5) / self._width(axis)).floor().clamp_(0, last).long()
            cells = cells.index_select(axis, index)
        return cells

    def _width(self, axis: int) -> float:
        return self.image_size[axis] / self.probabilities.shape[axis + 1]

    def _members(self, axis: int, points: Tensor) -> Tensor:
        """(cells, points) float32, one where a point lies in a cell or within half a step of it."""
        width = self._width(axis)
        lower = torch.arange(self.probabilities.shape[axis + 1], device=points.device)[:, None] * width - 0.5
        reach = 0.0 if len(points) == 1 else 0.5 * float(points[1] - points[0])
        return ((points >= lower - reach) & (points <= lower + width + reach)).float()
