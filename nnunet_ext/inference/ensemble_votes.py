"""Votes and STAPLE: several models' label maps combined where there are no probabilities."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

_EXACT = 1 << 53


def vote(maps: Sequence[np.ndarray], weights: Sequence[float] | None = None) -> np.ndarray:
    """The label with the most votes in each voxel.

    Of labels with equally many, the one for which the earliest of the maps votes wins: with equal weights, two models
    give the first one's label map.

    Args:
        maps: label maps of one shape and type.
        weights: of each one's vote; None: 1. Decimal fractions are counted exactly: 0.1 + 0.2 ties with 0.3.
    """
    result = maps[0].copy()
    differ = np.zeros(maps[0].shape, bool)
    for labels in maps[1:]:
        differ |= labels != maps[0]
    ballots = np.stack([labels[differ] for labels in maps])
    power = _whole(weights or [1] * len(maps))
    winners, most = ballots[0].copy(), None
    for labels in ballots:
        votes = sum(weight * (other == labels) for weight, other in zip(power, ballots, strict=True))
        if most is None:
            most = votes
        else:
            more = votes > most
            winners[more] = labels[more]
            most = np.maximum(most, votes)
    result[differ] = winners
    return result


def _whole(weights: Sequence[float]) -> np.ndarray:
    """Weights as whole numbers of the same ratios, where these are not too large."""
    fractions = [Fraction(repr(weight)) for weight in weights]
    factor = math.lcm(*(fraction.denominator for fraction in fractions))
    whole = [int(fraction * factor) for fraction in fractions]
    return np.array(whole, np.int64) if sum(whole) < _EXACT else np.array(weights, np.float64)


def staple(maps: Sequence[np.ndarray]) -> np.ndarray:
    """STAPLE of several labels at once (SimpleITK's MultiLabelSTAPLE), on the whole image.

    Each model's confusion matrix is estimated together with the labels. Voxels that it leaves undecided get the label
    of `vote`.

    Args:
        maps: label maps (z, y, x) of one shape and type.
    """
    import SimpleITK

    voted = vote(maps)
    if all(np.array_equal(labels, maps[0]) for labels in maps[1:]):
        return voted
    undecided = max(int(labels.max()) for labels in maps) + 1
    wide = np.promote_types(maps[0].dtype, np.min_scalar_type(undecided))
    images = [SimpleITK.GetImageFromArray(labels.astype(wide, copy=False)) for labels in maps]
    found = SimpleITK.GetArrayFromImage(SimpleITK.MultiLabelSTAPLE(images, undecided))
    return np.where(found == undecided, voted, found).astype(maps[0].dtype)
