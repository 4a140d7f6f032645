"""Cases in memory for tests of correspondences: smooth random volumes in any orientation, without files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy.ndimage import gaussian_filter

from nnunet_ext.pretraining.cases import Case, Pool
from nnunet_ext.pretraining.frames import Frame


@dataclass(frozen=True)
class MadeCase(Case):
    """A case whose image (C, z, y, x) is in memory."""

    made: np.ndarray = field(default_factory=lambda: np.zeros((1, 1, 1, 1), np.float32))

    def image(self) -> Any:
        """The array."""
        return self.made


def made_case(name: str, image: np.ndarray, frame: Frame) -> MadeCase:
    """A case of an array (C, z, y, x) and its frame."""
    whole = tuple((0, edge) for edge in image.shape[1:])
    return MadeCase(name, Path(), "made", (), (), image.shape[1:], whole, frame, image)


def made_pool(cases: Sequence[Case], channel: str = "MRI", spacing: Sequence[float] = (1.0, 1.0, 1.0)) -> Pool:
    """A pool of cases."""
    configuration = {"spacing": list(spacing), "patch_size": [32, 32, 32], "architecture": {}}
    plans = {"transpose_backward": [0, 1, 2], "configurations": {"3d_fullres": configuration}}
    return Pool(Path(), tuple(cases), plans, "3d_fullres", {"channel_names": {"0": channel}})


def smooth_volume(seed: int, shape: Sequence[int] = (40, 40, 40), channels: int = 1) -> np.ndarray:
    """Blobs (channels, *shape) float32 with a mean of 0 and a standard deviation of 1, different for each seed."""
    rng = np.random.default_rng(seed)
    noise = np.stack([gaussian_filter(rng.standard_normal(shape), 2.0) for _ in range(channels)])
    return ((noise - noise.mean()) / noise.std()).astype(np.float32)


def stored_otherwise(image: np.ndarray, frame: Frame, axes: Sequence[int], mirrored: Sequence[int]) -> MadeCase:
    """The same volume with its axes in another order, then some of them mirrored."""
    turned = image.transpose(0, *(axis + 1 for axis in axes))
    stored = np.flip(turned, tuple(axis + 1 for axis in mirrored)).copy()
    change = np.eye(4)  # index of the new array -> of the old one
    for new, old in enumerate(axes):
        change[old, new] = -1 if new in mirrored else 1
        if new in mirrored:
            change[old, 3] = stored.shape[new + 1] - 1
        if new != old:
            change[old, old] = 0
    _, z, y, x = stored.shape
    return made_case("stored otherwise", stored, Frame((z, y, x), frame.matrix @ change))
