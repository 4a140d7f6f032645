"""Experimental: the full-resolution probabilities teach the deep-supervision outputs (specification selfreg 6.3, 6.4).

After S. Banerjee et al., Dual self-distillation of U-shaped networks for 3D medical image segmentation, arXiv
2306.03271, without its extra layers: classes correspond, there is no scale to shrink, and no parameters are added.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from nnunet_ext.losses.taught_map import pool

EPS = 1e-7


def class_distillation(outputs: Sequence[Tensor], regions: bool = False) -> Tensor:
    """Mean Kullback-Leibler divergence of each lower output from the first one's average-pooled probabilities.

    Args:
        outputs: logits (B, K, *spatial), full resolution first; the first gets no gradient.
        regions: K independent probabilities instead of one distribution over K classes.

    Returns:
        A 0-dimensional float32 tensor: the mean over positions, then over outputs; 0 with a single output.
    """
    device = outputs[0].device
    with torch.autocast(device.type, enabled=False):
        with torch.no_grad():
            first = outputs[0].detach().float()
            teacher = first.sigmoid() if regions else first.softmax(1)
        total = torch.zeros((), device=device)
        for logits in outputs[1:]:
            target = pool(teacher, logits.shape[2:]).clamp(EPS, 1 - EPS)
            total = total + (_binary(logits.float(), target) if regions else _categorical(logits.float(), target))
        return total / max(1, len(outputs) - 1)


def _categorical(logits: Tensor, target: Tensor) -> Tensor:
    return (target * (target.log() - logits.log_softmax(1))).sum(1).mean()


def _binary(logits: Tensor, target: Tensor) -> Tensor:
    entropy = functional.binary_cross_entropy(target, target, reduction="none")
    return (functional.binary_cross_entropy_with_logits(logits, target, reduction="none") - entropy).mean()
