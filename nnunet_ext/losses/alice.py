"""Alice's losses: the student predicts the teacher's distribution over prototypes (specification alice 1.7, 4.4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed
from torch import Tensor
from torch.nn import functional


@dataclass
class Centres:
    """Running means of the teacher's logits, which are subtracted before its softmax.

    Attributes:
        cls: (1, K) float32.
        patch: (1, 1, K) float32.
    """

    cls: Tensor
    patch: Tensor

    @classmethod
    def zeros(cls, number: int) -> Centres:
        """Where training begins; K is `number`."""
        return cls(torch.zeros(1, number), torch.zeros(1, 1, number))

    def to(self, device: torch.device) -> None:
        """Move both."""
        self.cls, self.patch = self.cls.to(device), self.patch.to(device)

    def update(self, cls_mean: Tensor, patch_mean: Tensor, momentum: float = 0.9) -> None:
        """Move both towards the means of a step, over all processes.

        Args:
            cls_mean: (K,) float32, mean of the teacher's logits of views on this process.
            patch_mean: (K,) float32, the same of its aligned tokens.
            momentum: what remains of the former centres.
        """
        both = mean_of_processes(torch.stack([cls_mean, patch_mean]))
        self.cls = momentum * self.cls + (1 - momentum) * both[0].view(1, -1)
        self.patch = momentum * self.patch + (1 - momentum) * both[1].view(1, 1, -1)


def mean_of_processes(values: Tensor) -> Tensor:
    """The mean of a tensor over the processes of a distributed training; the tensor itself without one."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return values
    values = values.clone()
    torch.distributed.all_reduce(values)
    return values / torch.distributed.get_world_size()


def token_mean(logits: Tensor) -> Tensor:
    """Mean (K,) in float32 over all but the last axis."""
    return logits.detach().float().flatten(0, -2).mean(0)


def teacher_distribution(logits: Tensor, centre: Tensor, temperature: float) -> Tensor:
    """The teacher's centred and sharpened distribution: (..., K) float32 without gradient."""
    with torch.autocast(logits.device.type, enabled=False):
        return ((logits.detach().float() - centre) / temperature).softmax(-1)


def cross_entropy(target: Tensor, logits: Tensor, temperature: float) -> Tensor:
    """Cross-entropy (...) in float32 of distributions (..., K) and the student's logits (..., K)."""
    with torch.autocast(logits.device.type, enabled=False):
        return -(target * (logits.float() / temperature).log_softmax(-1)).sum(-1)


def exchange_views(values: Tensor) -> Tensor:
    """View 1 of all samples, then view 0, of values (2*B, ...) in the order of `Views`."""
    return torch.cat(values.chunk(2)[::-1])


def cls_loss(target: Tensor, student: Tensor, temperature: float = 0.1) -> Tensor:
    """Cross-entropy of each view's prediction of the other view's distribution.

    Args:
        target: (2*B, K), the teacher's distributions.
        student: (2*B, K), logits.
        temperature: the student's.

    Returns:
        A 0-dimensional float32 tensor: the mean over views.
    """
    return cross_entropy(exchange_views(target), student, temperature).mean()


def patch_loss(target: Tensor, student: Tensor, temperature: float = 0.1) -> Tensor:
    """Cross-entropy between both alignments of the same view.

    Args:
        target: (2*B, L, K), the teacher's distributions.
        student: (2*B, L, K), logits.
        temperature: the student's.

    Returns:
        A 0-dimensional float32 tensor: the mean over views and tokens.
    """
    return cross_entropy(target, student, temperature).mean()


def across_loss(
    teacher: Tensor, student: Tensor, valid: Tensor, centre: Tensor, temperatures: tuple[float, float]
) -> Tensor:
    """`patch_loss` between views: each token's target is the teacher's at the same place of the other view.

    Args:
        teacher: (2*B, L, K), the teacher's logits at the students' tokens, from `tokens_of_other_view`.
        student: (2*B, L, K), logits.
        valid: (2*B, L) bool, True where the place lies in the other view.
        centre: (1, 1, K).
        temperatures: the teacher's and the student's.

    Returns:
        A 0-dimensional float32 tensor: the sum over valid tokens, divided by the number of all, so that pairs with a
        small overlap weigh little and batches may be divided among processes.
    """
    target = teacher_distribution(teacher, centre, temperatures[0])
    entropies = cross_entropy(target, student, temperatures[1])
    return entropies.masked_fill(~valid, 0.0).sum() / valid.numel()


def tokens_of_other_view(
    tokens: Tensor, grid: Sequence[int], shift: Tensor, patch_size: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Values of the other view's tokens at the places of each view's tokens, by trilinear interpolation.

    Args:
        tokens: (2*B, L, K), in the order of `Views`.
        grid: (3,) of the tokens, L in all; they divide the patch evenly.
        shift: (B, 3) voxels, centre of view 1 minus centre of view 0; NaN where there is no common frame.
        patch_size: (3,) voxels of a view.

    Returns:
        (2*B, L, K) float32, and (2*B, L) bool: True where the centre of the token's cell lies in the other view.
    """
    device = tokens.device
    maps = exchange_views(tokens.float()).mT.unflatten(2, tuple(grid))
    size = torch.tensor(list(patch_size), dtype=torch.float32, device=device)
    axes = [(2 * torch.arange(n, dtype=torch.float32, device=device) + 1) / n - 1 for n in grid]
    own = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)  # (*grid, 3), -1 and 1 are the patch's borders
    offsets = 2 * torch.cat([shift, -shift]).to(device, torch.float32) / size
    places = own - offsets[:, None, None, None]
    valid = (places.abs() <= 1).all(-1).flatten(1)
    sampled = functional.grid_sample(
        maps, places.nan_to_num().flip(-1), mode="bilinear", padding_mode="border", align_corners=False
    )
    return sampled.flatten(2).mT, valid
