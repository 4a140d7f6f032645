"""OSS-Net's loss: points weighted by importance, and what occurs in coarse cells (``specs/ossnet.md`` 6.4, 6.6)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from nnunet_ext.losses.point_sampling import Points

CoarseTarget = Literal["classes", "foreground"]


@dataclass(frozen=True)
class OccupancyTarget:
    """A batch's target.

    Attributes:
        points: what was drawn from it.
        dense: (B, R, *spatial): labels (R = 1), or one channel a region.
        ignored: (B, 1, *spatial) bool, or None.
    """

    points: Points
    dense: Tensor
    ignored: Tensor | None


class OccupancyLoss(nn.Module):
    """Cross-entropy and Dice of points, and binary cross-entropy of the coarse heads.

    Args:
        dice: called with logits (B, K, N), target (B, 1 or K, N) and weights (B, 1, N), as nnU-Net's
            `MemoryEfficientSoftDiceLoss`; None: cross-entropy alone.
        regions: K regions (binary cross-entropy) instead of K classes.
        coarse_weight: of the mean over the coarse heads.
        coarse_target: what the coarse heads say occurs in a cell: each class (region), or any foreground.
    """

    def __init__(
        self, dice: nn.Module | None, regions: bool, coarse_weight: float, coarse_target: CoarseTarget = "classes"
    ) -> None:
        super().__init__()
        self.dice, self.regions = dice, regions
        self.coarse_weight, self.coarse_target = coarse_weight, coarse_target

    def forward(self, output: tuple[Tensor, list[Tensor]], target: OccupancyTarget) -> Tensor:
        """The loss, a scalar.

        Args:
            output: logits of the points (B, K, N), and of the coarse heads, each (B, heads, *cells), high resolution
                first.
            target: labels of the same points.
        """
        logits, coarse = output
        loss = self.point_loss(logits, target.points)
        if coarse and self.coarse_weight:
            loss = loss + self.coarse_weight * self.coarse_loss(coarse, target)
        return loss

    def point_loss(self, logits: Tensor, points: Points) -> Tensor:
        """Of logits (B, K, N)."""
        weights, labels = points.weights, torch.where(points.weights > 0, points.target, 0)
        logits = logits.float()
        if self.regions:
            entropy = functional.binary_cross_entropy_with_logits(logits, labels.float(), reduction="none").mean(1)
        else:
            entropy = functional.cross_entropy(logits, labels[:, 0].long(), reduction="none")
        loss = (entropy * weights[:, 0]).sum() / weights.sum().clamp(min=1e-8)
        return loss if self.dice is None else loss + self.dice(logits, labels, loss_mask=weights)

    def coarse_loss(self, coarse: list[Tensor], target: OccupancyTarget) -> Tensor:
        """Mean over the heads (B, heads, *cells)."""
        occurs, known = self._occurrence(target, coarse[0].shape[1], coarse[0].shape[2:])
        losses = []
        for logits in coarse:
            occurs, known = (_largest(mask, logits.shape[2:]) for mask in (occurs, known))
            entropy = functional.binary_cross_entropy_with_logits(logits.float(), occurs, reduction="none")
            losses.append((entropy * known).sum() / (known.sum() * logits.shape[1]).clamp(min=1))
        return torch.stack(losses).mean()

    def _occurrence(self, target: OccupancyTarget, heads: int, cells: torch.Size) -> tuple[Tensor, Tensor]:
        """Whether each class occurs in a cell (B, heads, *cells), and any voxel is not ignored (B, 1, *cells): 0 or 1.

        One class after the other: all of them at full resolution would need more memory than a network.
        """
        dense = target.dense
        known = torch.ones_like(dense[:, :1], dtype=torch.float32)
        if target.ignored is not None:
            known = known * ~target.ignored
        masks: Iterator[Tensor]
        if self.coarse_target == "foreground":
            masks = iter([(dense > 0).any(1, keepdim=True)])
        elif self.regions:
            masks = (dense[:, k : k + 1] > 0 for k in range(heads))
        else:
            masks = (dense == k for k in range(heads))
        return torch.cat([_largest(mask * known, cells) for mask in masks], 1), _largest(known, cells)


def _largest(x: Tensor, cells: torch.Size) -> Tensor:
    """Largest value in each cell of a map (B, C, *spatial)."""
    pool = functional.adaptive_max_pool3d if len(cells) == 3 else functional.adaptive_max_pool2d
    largest: Tensor = pool(x, tuple(cells))
    return largest
