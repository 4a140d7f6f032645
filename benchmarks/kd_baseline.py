"""KD as published, in plain operations: random pairs of channels, every intermediate map kept for backward.

The published code is generalised only as far as it must be to run on the benchmark's networks (specification selfreg
4.1): maps of any dimension and shape, and odd numbers of channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from nnunet_ext.losses.self_regularisation import Channels, Features, draw

POOLS: dict[int, Any] = {2: functional.adaptive_avg_pool2d, 3: functional.adaptive_avg_pool3d}


def semantic_consistency(student: Tensor, teacher: Tensor, channels: tuple[Tensor, Tensor]) -> Tensor:
    """The published `inter_fd`: the larger map is pooled, and channels are compared in random pairs."""
    size = [min(a, b) for a, b in zip(student.shape[2:], teacher.shape[2:], strict=True)]
    pool = POOLS[len(size)]
    student = student if list(student.shape[2:]) == size else pool(student, size)
    teacher = teacher if list(teacher.shape[2:]) == size else pool(teacher, size)
    of_student, of_teacher = (indices.to(student.device) for indices in channels)
    return functional.mse_loss(student[:, of_student], teacher[:, of_teacher].detach())


def feature_distillation(f: Tensor) -> Tensor:
    """The published `intra_fd`: channels by descending score, the upper half against the lower half."""
    score = functional.normalize(f.flatten(2), dim=2).mean((0, 2))
    order = torch.argsort(score, descending=True)
    half = f.shape[1] // 2
    return functional.mse_loss(f[:, order[:half]], f[:, order[f.shape[1] - half :]])


def published_loss(features: Features, weight: float, channels: Channels | None = None) -> Tensor:
    """The whole loss, one set of maps; a map in several pieces counts as their mean.

    Args:
        features: the maps.
        weight: the one λ of both terms.
        channels: instead of random draws.
    """
    parts = {"decoder": features.decoder, "encoder": features.encoder}
    count = sum(len(stages) for stages in parts.values())
    total: Any = 0.0
    for part, stages in parts.items():
        for stage, maps in enumerate(stages):
            pieces, teachers = maps[-1], features.teacher
            drawn = (channels or {}).get((part, stage, "last"))
            drawn = drawn or draw(pieces[0].shape[1], teachers[0].shape[1], None)
            total = total + _mean([feature_distillation(piece) for piece in pieces]) / len(stages)
            consistency = [semantic_consistency(f, t, drawn) for f, t in zip(pieces, teachers, strict=True)]
            total = total + _mean(consistency) / count
    return weight * torch.as_tensor(total)


def _mean(values: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(values)).mean()
