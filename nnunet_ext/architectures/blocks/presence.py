"""What is known of the classes that occur in cells of an image, against what a lattice of points has found there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

LIKELY = 0.5
"""Probability from which a class is taken to occur, however many cells say so."""


@dataclass(frozen=True)
class Presence:
    """Probabilities (channels, *cells) that a class occurs in a cell of an image with `image_size` voxels.

    Channels are the classes (regions); or the background and all other classes together; or all regions together.
    """

    probabilities: Tensor
    image_size: tuple[int, ...]

    def unseen(self, found: Sequence[Tensor], axes: Sequence[Tensor], threshold: float, share: float) -> Tensor:
        """Cells in which a class may occur that no point of a lattice in or around them has found: bool (*cells).

        Around is half a step of the lattice, so that every cell among its points has one; other cells are left out.
        Cells are taken where a class is likely. Where it is only possible, no more than a share of the cells are, those
        with the highest probabilities: a head that has learned little finds everything possible everywhere.

        Args:
            found: of each channel, a bool mask (*points) of where it is.
            axes: of each axis, the coordinates of the lattice's points, voxel indices of the image.
            threshold: probability from which a class may occur.
            share: of the cells among the points, how many are taken at most that are not likely.
        """
        members = [self._members(axis, points) for axis, points in enumerate(axes)]
        doubt = self.probabilities.new_zeros(self.probabilities.shape[1:])
        for probability, mask in zip(self.probabilities, found, strict=True):
            seen = mask.to(members[0].dtype)
            for axis, member in enumerate(members):  # few numbers: products are cheaper than looking each point up
                seen = torch.movedim(torch.tensordot(member, seen, dims=([1], [axis])).clamp_(max=1), 0, axis)
            doubt = torch.maximum(doubt, torch.where(seen < 0.5, probability, 0))
        among = torch.ones_like(doubt)
        for axis, member in enumerate(members):
            among *= member.amax(1).view([-1 if i == axis else 1 for i in range(doubt.dim())])
        doubt *= among
        most = math.ceil(share * float(among.sum()))
        if most < doubt.numel():
            threshold = max(threshold, min(LIKELY, float(doubt.flatten().topk(most + 1).values[-1])))
        return doubt > threshold

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
