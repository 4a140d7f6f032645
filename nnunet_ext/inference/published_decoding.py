"""The two procedures with which the original OSS-Net makes dense labels (``specs/ossnet.md`` 3.1, 3.2).

Both look at every fourth voxel, then around what they found, at every second one and at all. They never look where the
coarse grid found nothing, so small components are lost, and evaluate whole interiors; `decode_grid` does neither.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

STAGES = (4, 2, 1)  # voxels between the points of each stage
THRESHOLD = 0.5

Probability = Callable[[Tensor], Tensor]
"""Voxel indices (N, 3), long, to probabilities (N,)."""


def standard_labels(
    probability: Probability,
    resolution: Sequence[int],
    *,
    threshold: float = THRESHOLD,
    first: Tensor | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Coarse to fine.

    Args:
        probability: of voxels.
        resolution: voxels of each axis.
        threshold: probabilities above it are foreground.
        first: which points of the first stage are evaluated, bool, (*ceil(resolution / 4)); None for all.
        device: of the indices that `probability` is asked for.

    Returns:
        (*resolution) bool.
    """
    labels = torch.zeros(tuple(resolution), dtype=torch.bool, device=device)
    for stride in STAGES:
        steps = (slice(None, None, stride),) * labels.dim()
        if stride == STAGES[0]:
            candidates = torch.ones_like(labels[steps]) if first is None else first.to(device)
        else:
            candidates = _dilated(labels, 3**stride // 2)[steps] & ~labels[steps]
        index = candidates.nonzero() * stride
        if len(index):
            labels[tuple(index.mT)] |= probability(index) > threshold
    return labels


def expedited_labels(
    probability: Probability,
    resolution: Sequence[int],
    coarse: Tensor,
    *,
    threshold: float = THRESHOLD,
    coarse_threshold: float = THRESHOLD,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Coarse to fine, but only where a coarse segmentation has foreground.

    Args:
        probability: of voxels.
        resolution: voxels of each axis.
        coarse: probabilities (1, 1, *cells) of the coarse head.
        threshold: probabilities of voxels above it are foreground.
        coarse_threshold: the same for those of cells.
        device: of the indices that `probability` is asked for.

    Returns:
        (*resolution) bool.
    """
    likely = coarse_at_first_stage(coarse, resolution)[0, 0] > coarse_threshold
    index = [torch.arange(0, edge, STAGES[0]) // STAGES[0] for edge in resolution]
    for axis, positions in enumerate(index):  # the original's resolutions are multiples of 4
        likely = likely.index_select(axis, positions.clamp(max=likely.shape[axis] - 1).to(likely.device))
    return standard_labels(probability, resolution, threshold=threshold, first=likely, device=device)


def coarse_at_first_stage(coarse: Tensor, resolution: Sequence[int]) -> Tensor:
    """Probabilities (1, 1, *cells) at a quarter of the resolution, by the original's interpolation of corners."""
    size = [max(1, edge // STAGES[0]) for edge in resolution]
    return functional.interpolate(coarse.float(), size, mode="trilinear", align_corners=True)


def _dilated(labels: Tensor, radius: int) -> Tensor:
    """Whether any voxel within `radius` along every axis is set: a maximum filter of booleans."""
    for axis in range(labels.dim()):
        result, edge = labels.clone(), labels.shape[axis]
        for shift in range(1, min(radius, edge - 1) + 1):
            result.narrow(axis, shift, edge - shift).logical_or_(labels.narrow(axis, 0, edge - shift))
            result.narrow(axis, 0, edge - shift).logical_or_(labels.narrow(axis, shift, edge - shift))
        labels = result
    return labels
