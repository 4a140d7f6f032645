"""Whether two places look alike: local normalised cross-correlation, and the best place nearby."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import fft

from nnunet_ext.pretraining.coarse import Coarse, median_extent
from nnunet_ext.pretraining.frames import Array, Frame

FULL_MM = 256.0
LEAST_SHARED = 0.5
NOTHING = -1.0


@dataclass(frozen=True)
class Scale:
    """At what resolution places are compared, over what neighbourhood, and how far around they are looked for.

    For bodies, the specification's numbers: a grid of 4 mm, neighbourhoods of 64 mm, 24 mm around. These belong to
    volumes of some 256 mm and more. Where the median of the volumes' largest edges is less, all three shrink in
    proportion, so that a neighbourhood stays a quarter of the volume: for a hippocampus of 35 x 50 x 35 mm, 12.5 mm
    and 4.7 mm. The grid is never finer than the finest voxel edge of the volumes (1 mm there, instead of 0.8 mm), and
    then as many of its cells are taken as fill the neighbourhood: 13 here, 17 for bodies.

    Attributes:
        grid: mm.
        patch: mm, edge of the compared cubes.
        reach: mm, farthest shift along each axis.

    Reference: specification alice 3.3.
    """

    grid: float = 4.0
    patch: float = 64.0
    reach: float = 24.0

    @classmethod
    def fitting(cls, frames: Sequence[Frame]) -> Scale:
        """For volumes with these frames."""
        share = min(1.0, median_extent(frames) / FULL_MM)
        finest = min(float(frame.spacing.min()) for frame in frames)
        return cls(max(cls.grid * share, min(finest, cls.grid)), cls.patch * share, cls.reach * share)

    @property
    def half(self) -> int:
        """Cells between the centre of a compared cube and its side."""
        return max(2, round(self.patch / 2 / self.grid))

    @property
    def steps(self) -> int:
        """Cells that the farthest shift is away."""
        return max(1, round(self.reach / self.grid))


def correlate(a: Coarse, b: Coarse, point: Array, start: Array, linear: Array, scale: Scale) -> tuple[Array, float]:
    """The place in `b` around `start` whose neighbourhood is most like that of `point` in `a`.

    Only voxels inside both images count; places outside of b, or with less than half of a's neighbourhood, are none.
    Between the cells, the maximum of a parabola along each axis is taken.

    Args:
        a: the volume that the point is in.
        b: the volume to search.
        point: (3,) LPS mm.
        start: (3,) LPS mm in b.
        linear: (3, 3), how neighbourhoods of a are mapped to b: identity, or the linear part of a registration.
        scale: grid, neighbourhood and reach.

    Returns:
        (3,) LPS mm and the correlation, -1 to 1; `start` and -1 where nothing can be compared.
    """
    template, weights = a.sample(point + _offsets(scale.half, scale.grid))
    searched = _offsets(scale.half + scale.steps, scale.grid) @ linear.T
    region, region_weights = b.sample(start + searched)
    centres = (slice(scale.half, -scale.half),) * 3
    scores = np.where(region_weights[centres] > 0, correlations(template, weights, region, region_weights), NOTHING)
    best = np.unravel_index(int(np.argmax(scores)), scores.shape)
    if scores[best] <= NOTHING:
        return start, NOTHING
    shift = np.asarray(best) - scale.steps + _between(scores, tuple(int(place) for place in best))
    return start + linear @ (shift[::-1] * scale.grid), float(scores[best])


def correlations(template: Array, weights: Array, region: Array, region_weights: Array) -> Array:
    """The correlation of a template with every place of a region where it fits.

    ``mean((x - mx) (y - my)) / (sx sy + 1e-6)`` over the voxels that count in both.

    Args:
        template: (t, t, t).
        weights: the same shape, 1 where a voxel counts, 0 where not.
        region: (r, r, r), r >= t.
        region_weights: as `weights`.

    Returns:
        (r - t + 1, ...), -1 where less than half of the template's counting voxels meet counting ones.
    """
    valid = tuple(slice(0, r - t + 1) for r, t in zip(region.shape, template.shape, strict=True))
    size = [fft.next_fast_len(edge, real=True) for edge in region.shape]
    # About a common level, or sums of squares lose their digits.
    x = (template - template.mean()) * weights
    y = (region - region.mean()) * region_weights
    ours = [np.conj(fft.rfftn(part, size)) for part in (weights, x, x * x)]
    theirs = [fft.rfftn(part, size) for part in (region_weights, y, y * y)]

    def summed(i: int, j: int) -> Array:
        return np.asarray(fft.irfftn(ours[i] * theirs[j], size)[valid], np.float64)

    number = np.round(summed(0, 0))
    count = np.maximum(number, 1)
    mean_x, mean_y = summed(1, 0) / count, summed(0, 1) / count
    deviation_x = np.sqrt(np.maximum(summed(2, 0) / count - mean_x**2, 0))
    deviation_y = np.sqrt(np.maximum(summed(0, 2) / count - mean_y**2, 0))
    scores = (summed(1, 1) / count - mean_x * mean_y) / (deviation_x * deviation_y + 1e-6)
    return np.where(number >= max(8.0, LEAST_SHARED * weights.sum()), np.clip(scores, -1, 1), NOTHING)


def _offsets(half: int, grid: float) -> Array:
    """(2 half + 1, ..., 3) mm (x, y, z) of a cube's cells (z, y, x) from its centre."""
    edge = np.arange(-half, half + 1) * grid
    return np.stack(np.meshgrid(edge, edge, edge, indexing="ij"), -1)[..., ::-1]


def _between(scores: Array, best: tuple[int, ...]) -> Array:
    """(3,) cells, at most half of one, from the best place to the top of a parabola through it and its neighbours."""
    shift = np.zeros(3)
    for axis, place in enumerate(best):
        if not 0 < place < scores.shape[axis] - 1:
            continue
        line = np.moveaxis(scores, axis, -1)[tuple(np.delete(best, axis))]
        before, there, after = (float(score) for score in line[place - 1 : place + 2])
        bend = before - 2 * there + after
        if min(before, after) > NOTHING and bend < 0:
            shift[axis] = float(np.clip(0.5 * (before - after) / bend, -0.5, 0.5))
    return shift
