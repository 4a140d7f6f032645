"""How well an embedding finds places again: in a volume that was warped in a known way (specification alice 3.2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nnunet_ext.errors import UserError
from nnunet_ext.pretraining.cases import Case, Pool
from nnunet_ext.pretraining.embedding_grids import canonical_grid, minima, positions, sample_at
from nnunet_ext.pretraining.embedding_maps import CT_WINDOW, Embedder, raw_ct
from nnunet_ext.pretraining.embedding_views import rotation
from nnunet_ext.pretraining.frames import Array, Frame
from nnunet_ext.pretraining.matching import match

POINTS = 200
MOST_CASES = 5
NEAR = 10.0
_TURN, _SCALE, _SHIFT, _BEND = 15.0, 0.15, 0.1, 0.03  # degrees, and parts of the volume's size


@dataclass(frozen=True)
class Quality:
    """Of points that were matched from warped volumes into the volumes themselves.

    Attributes:
        points: how many.
        median_mm: median distance between what was found and where the point came from.
        within_10_mm: share of the points that were found within 10 mm.
        unmoved_mm: the same median if a point is looked for where it was: what the warp did.
        chance_mm: the same median if another point's place is taken.
        voxel_mm: side of a cell of the fine map.
        score_20: 20th percentile of the scores, a threshold for accepting matches.
        held_out: whether the embedding has not been trained on these volumes.
    """

    points: int
    median_mm: float
    within_10_mm: float
    unmoved_mm: float
    chance_mm: float
    voxel_mm: float
    score_20: float
    held_out: bool

    @property
    def poor(self) -> bool:
        """Whether the median is more than three cells of the fine map, or no better than not looking at all."""
        return self.median_mm > 3 * self.voxel_mm or self.median_mm >= self.unmoved_mm

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def summary(self) -> str:
        """One or two lines for people."""
        kind = "held-out" if self.held_out else "training (there are too few to hold some out)"
        text = (
            f"{self.points} points of warped {kind} volumes: median error {self.median_mm:.1f} mm, "
            f"{self.within_10_mm:.0%} within 10 mm (left where they were: {self.unmoved_mm:.1f} mm, by chance: "
            f"{self.chance_mm:.1f} mm; a cell is {self.voxel_mm:.1f} mm); 80 % of the scores are at least "
            f"{self.score_20:.2f}"
        )
        if self.poor:
            text += (
                "\nWarning: that is more than three cells, or no better than leaving the points where they were: don't "
                "use this embedding for correspondences before it has been trained longer or on more volumes"
            )
        return text


def check_quality(
    embedder: Embedder, pool: Pool, cases: Sequence[Case], *, held_out: bool, seed: int = 0, points: int = POINTS
) -> Quality:
    """Warp volumes by a random affine and bending map, and match points of them back.

    Args:
        embedder: the network.
        pool: of the cases.
        cases: at most five are used.
        held_out: whether the embedding was trained without them.
        seed: of the warps and points.
        points: over all cases.

    Raises:
        UserError: no volume has content where points could be.
    """
    chosen = list(cases)[:MOST_CASES]
    results = []
    for number, case in enumerate(chosen):
        rng = np.random.default_rng([seed, number])
        results.append(_errors(embedder, pool, case, rng, -(-points // len(chosen))))
    errors, unmoved, chance, scores = (np.concatenate(parts) for parts in zip(*results, strict=True))
    if not len(errors):
        raise UserError("the quality of the embedding cannot be measured: the volumes are constant")
    return Quality(
        len(errors),
        float(np.median(errors)),
        float((errors <= NEAR).mean()),
        float(np.median(unmoved)),
        float(np.median(chance)),
        float(embedder.spacing * embedder.network.fine_stride[0]),
        float(np.percentile(scores, 20)),
        held_out,
    )


def _errors(
    embedder: Embedder, pool: Pool, case: Case, rng: np.random.Generator, number: int
) -> tuple[Array, Array, Array, Array]:
    """Of each point (n,): mm between match and origin, between point and origin, to another's origin; the score."""
    image, frame, outside = _image(embedder, pool, case)
    grid = canonical_grid(frame, embedder.spacing)
    warp = random_warp(grid, rng)
    places = positions(grid)
    origins = warp(places)
    warped = sample_at(torch.from_numpy(np.array(image, np.float32)), frame, origins, outside)
    first = warped[0].numpy()
    content = first > first.min() + 0.25 * (first.mean() - first.min())
    candidates = np.flatnonzero(content & frame.holds(origins))
    drawn = rng.choice(candidates, size=min(number, len(candidates)), replace=False)
    points, wanted = places.reshape(-1, 3)[drawn], origins.reshape(-1, 3)[drawn]
    key = embedder.embed_image(image, frame, outside)
    found = match(embedder.embed_image(warped.numpy(), grid, outside), key, points)
    return (
        np.linalg.norm(found.points - wanted, axis=1),
        np.linalg.norm(points - wanted, axis=1),
        np.linalg.norm(wanted[rng.permutation(len(wanted))] - wanted, axis=1),
        found.scores.astype(np.float64),
    )


def _image(embedder: Embedder, pool: Pool, case: Case) -> tuple[Any, Frame, Tensor]:
    if embedder.published:
        image, frame = raw_ct(case, pool)
        return image, frame, torch.tensor([CT_WINDOW[0]])
    return case.image(), case.frame, minima(case.image())


def random_warp(grid: Frame, rng: np.random.Generator) -> Callable[[Array], Array]:
    """A map of LPS points (..., 3): turned, scaled and shifted about a volume's centre, and bent by three waves."""
    centre = grid.to_lps((np.asarray(grid.shape) - 1) / 2)
    extent = np.ptp(grid.corners(), axis=0)
    linear = rotation(rng.uniform(-_TURN, _TURN, size=3)) @ np.diag(1 + rng.uniform(-_SCALE, _SCALE, size=3))
    shift = rng.uniform(-_SHIFT, _SHIFT, size=3) * extent
    waves = rng.uniform(-1, 1, size=(3, 3)) * np.pi / extent  # half a wave over the volume at most, times two below
    phases = rng.uniform(0, 2 * np.pi, size=3)
    height = rng.uniform(-_BEND, _BEND, size=(3, 3)) * extent

    def warp(points: Array) -> Array:
        relative = points - centre
        bent = np.cos(2 * relative @ waves.T + phases) @ height
        return np.asarray(centre + relative @ linear.T + shift + bent)

    return warp
