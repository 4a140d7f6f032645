"""Mean of the probabilities of several models, class by class: memory holds one class, whatever their number."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_ext.errors import UserError
from nnunet_ext.inference.prediction_folders import foreground, label_values
from nnunet_ext.inference.probability_files import ProbabilityStream, opened
from nnunet_ext.labels import has_regions

CHUNK = 1 << 20
"""Values of each model that are in memory at once."""
_INSIDE = 0.5


@dataclass(frozen=True)
class Channels:
    """What a model's channels mean.

    Attributes:
        count: how many there are.
        regions_class_order: label that each region's voxels get, later ones over earlier ones; None: channels are
            classes, and the number of the largest is the label.
    """

    count: int
    regions_class_order: tuple[int, ...] | None

    @classmethod
    def of(cls, dataset_json: Mapping[str, Any]) -> Channels:
        """The channels that nnU-Net makes for a data set."""
        if has_regions(dataset_json):
            return cls(len(foreground(dataset_json)), tuple(int(v) for v in dataset_json["regions_class_order"]))
        return cls(len(label_values(dataset_json)), None)

    @property
    def dtype(self) -> type[np.uint8] | type[np.uint16]:
        """Of label maps."""
        highest = max(self.regions_class_order) if self.regions_class_order else self.count - 1
        return np.uint8 if highest <= np.iinfo(np.uint8).max else np.uint16


def mean_labels(
    paths: Sequence[Path],
    channels: Channels,
    weights: Sequence[float] | None = None,
    write: Callable[[tuple[int, ...]], Callable[[np.ndarray], None]] | None = None,
) -> np.ndarray:
    """The label map of the mean of several models' probabilities.

    Of several classes that are equally probable, the one with the lowest number wins, as in nnU-Net; a region holds
    the voxels where its probability exceeds 0.5.

    Args:
        paths: files of probabilities of one case.
        channels: of all of them.
        weights: one a file, of any sum; None, or all the same: nnU-Net's mean to the last bit.
        write: called with the shape (classes, z, y, x); gives what takes the mean probabilities, float32, piece by
            piece in that order.

    Returns:
        (z, y, x), uint8 or uint16.

    Raises:
        UserError: a file can't be read, or shapes do not fit.
    """
    with opened(paths) as streams:
        shape = streams[0].shape
        if shape[0] != channels.count:
            raise UserError(
                f"{paths[0]} has {shape[0]} channels, and dataset.json makes {channels.count}: not its probabilities"
            )
        taker = None if write is None else write(shape)
        decision = _Decision(channels, math.prod(shape[1:]))
        for channel in range(shape[0]):
            for part, mean in _means(streams, math.prod(shape[1:]), weights):
                decision.see(channel, part, mean)
                if taker is not None:
                    taker(mean)
        for stream in streams:
            stream.check_end()
    return decision.labels.reshape(shape[1:])


class _Decision:
    """The labels as far as the channels were seen: a running arg-max, or the last region that holds a voxel."""

    def __init__(self, channels: Channels, voxels: int) -> None:
        self.labels = np.zeros(voxels, channels.dtype)
        self._order = channels.regions_class_order
        self._highest = np.empty(voxels if self._order is None else 0, np.float32)

    def see(self, channel: int, part: slice, mean: np.ndarray) -> None:
        if self._order is not None:
            self.labels[part][mean > _INSIDE] = self._order[channel]
        elif channel == 0:
            self._highest[part] = mean
        else:
            higher = mean > self._highest[part]
            self.labels[part][higher] = channel
            np.maximum(self._highest[part], mean, out=self._highest[part])


def _shares(weights: Sequence[float]) -> list[float]:
    """Weights that add up to 1."""
    relative = [weight / max(weights) for weight in weights]
    return [weight / math.fsum(relative) for weight in relative]


def _means(
    streams: Sequence[ProbabilityStream], voxels: int, weights: Sequence[float] | None
) -> Iterator[tuple[slice, np.ndarray]]:
    """The mean of one channel, piece by piece, float32."""
    shares = None if weights is None or len(set(weights)) == 1 else _shares(weights)
    for start in range(0, voxels, CHUNK):
        part = slice(start, min(voxels, start + CHUNK))
        count = part.stop - start
        if shares is None:  # the steps of nnU-Net's own mean: float32, model after model, divided at the end
            mean = streams[0].read(count).astype(np.float32)
            for stream in streams[1:]:
                mean += stream.read(count)
            mean /= len(streams)
        else:
            total = np.zeros(count)
            for stream, share in zip(streams, shares, strict=True):
                total += share * stream.read(count).astype(np.float64)
            mean = total.astype(np.float32)
        yield part, mean
