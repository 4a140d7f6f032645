"""What OSS-Net's authors trained with and scored by: points, not voxels (``specs/ossnet.md`` 2.5, 3.4).

Their Dice is that of sampled points, and zero where nothing was to be found and nothing was found: compare it with
their tables only, never with the Dice of volumes.
"""

from __future__ import annotations

from torch import Tensor

CLAMP = 1e-6
THRESHOLD = 0.5
_NEVER_ZERO = 1e-10


def clamped_entropy(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Mean binary cross-entropy of probabilities of any shape, clamped to [1e-6, 1 - 1e-6]; labels are 0 or 1."""
    p = probabilities.clamp(CLAMP, 1 - CLAMP)
    return -(labels * p.log() + (1 - labels) * (1 - p).log()).mean()


def point_scores(probabilities: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Dice and intersection over union of each item's points, then averaged.

    Args:
        probabilities: (B, N, 1) or (B, N); above 0.5 is foreground.
        labels: the same shape, 0 or 1.

    Returns:
        Two scalars; both are 0 for an item without foreground in labels and prediction.
    """
    predicted, true = (probabilities > THRESHOLD).flatten(1), (labels > THRESHOLD).flatten(1)
    both = (predicted & true).sum(1)
    either = (predicted | true).sum(1)
    dice = 2 * both / (predicted.sum(1) + true.sum(1) + _NEVER_ZERO)
    return dice.mean(), (both / (either + _NEVER_ZERO)).mean()
