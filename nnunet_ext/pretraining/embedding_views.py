"""Two overlapping views of a volume, each with the places of its cells in mm: what our embedding learns from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nnunet_ext.architectures.anatomical_embedding import Triple
from nnunet_ext.losses.anatomical_embedding import Cells
from nnunet_ext.pretraining.cases import Box, Case
from nnunet_ext.pretraining.embedding_grids import (
    canonical_grid,
    gaussian,
    grid_around,
    minima,
    positions,
    sample,
    strided,
)
from nnunet_ext.pretraining.embedding_settings import Settings
from nnunet_ext.pretraining.frames import Array, Frame

SCALES = (0.8, 1.2)
OVERLAP = (0.4, 0.9)  # of two views, along each axis
_REACH = 0.1  # of a view that may lie outside of the volume, at each of its sides


@dataclass(frozen=True)
class Volume:
    """A case to cut views from.

    Attributes:
        case: the case.
        outside: (C,) values outside of it.
    """

    case: Case
    outside: Tensor

    @classmethod
    def of(cls, case: Case) -> Volume:
        """Look at a case once; its image stays on the disk."""
        return cls(case, minima(case.image()))


@dataclass(frozen=True)
class View:
    """A part of a volume.

    Attributes:
        image: (C, *crop) float32, augmented.
        fine: cells of the fine map, without vectors.
        coarse: cells of the coarse map, without vectors.
    """

    image: Tensor
    fine: Cells
    coarse: Cells


def draw_pair(
    volume: Volume, settings: Settings, strides: tuple[Triple, Triple], rng: np.random.Generator
) -> tuple[View, View]:
    """Two views that overlap, each with its own scale, turn and intensities.

    Args:
        volume: of one case.
        settings: of the training.
        strides: of the network's fine and coarse maps.
        rng: of all draws.
    """
    grids = draw_grids(
        canonical_grid(volume.case.frame, settings.spacing), volume.case.frame, volume.case.body, settings, rng
    )
    image = volume.case.image()
    first, second = (
        View(
            augmented(sample(image, volume.case.frame, grid, volume.outside), settings.ct, rng),
            *(cells_of(strided(grid, stride), volume.case.frame) for stride in strides),
        )
        for grid in grids
    )
    return first, second


def draw_grids(
    canonical: Frame, frame: Frame, body: Box, settings: Settings, rng: np.random.Generator
) -> tuple[Frame, Frame]:
    """The voxels of two views of a volume.

    Args:
        canonical: the volume's own grid of isotropic voxels.
        frame: of its array.
        body: of its array, where the first view's centre is drawn.
        settings: of the training.
        rng: of all draws.
    """
    corners = np.stack(np.meshgrid(*body, indexing="ij"), axis=-1).reshape(-1, 3) - 0.5
    inside = canonical.to_index(frame.to_lps(corners)) + 0.5
    scales = rng.uniform(*SCALES, size=2)
    crop = np.asarray(settings.crop)
    lower, upper = _centres(np.asarray(canonical.shape), crop * scales[0])
    first = rng.uniform(inside.min(axis=0).clip(lower, upper), inside.max(axis=0).clip(lower, upper))
    apart = (1 - rng.uniform(*OVERLAP, size=3)) * crop * scales.min()
    second = (first + rng.uniform(-1, 1, size=3) * apart).clip(*_centres(np.asarray(canonical.shape), crop * scales[1]))
    directions = canonical.matrix[:3, :3] / canonical.spacing
    one, other = (
        grid_around(
            canonical.to_lps(centre - 0.5),
            rotation(rng.uniform(-1, 1, size=3) * settings.rotation) @ directions,
            settings.spacing * scale,
            settings.crop,
        )
        for centre, scale in zip((first, second), scales, strict=True)
    )
    return one, other


def _centres(size: Array, crop: Array) -> tuple[Array, Array]:
    """Least and greatest centre of a view, in voxels from the volume's edge; a little of it may lie outside."""
    ends = np.stack([(0.5 - _REACH) * crop, size - (0.5 - _REACH) * crop])
    return ends.min(axis=0), ends.max(axis=0)


def rotation(degrees: Array) -> Array:
    """(3, 3): turns about the first, then the second, then the third axis."""
    turned = np.eye(3)
    for axis, angle in enumerate(np.deg2rad(degrees)):
        one, other = (axis + 1) % 3, (axis + 2) % 3
        turn = np.eye(3)
        turn[[one, other], [one, other]] = np.cos(angle)
        turn[one, other], turn[other, one] = -np.sin(angle), np.sin(angle)
        turned = turn @ turned
    return turned


def cells_of(grid: Frame, frame: Frame) -> Cells:
    """The places of a map's cells, in raster order, and whether they are in the volume; no vectors."""
    places = positions(grid).reshape(-1, 3)
    held = frame.holds(places)
    # relative to the volume's centre: float32 keeps small distances
    centred = places - frame.to_lps((np.asarray(frame.shape) - 1) / 2)
    return Cells(torch.empty(0), torch.from_numpy(centred.astype(np.float32)), torch.from_numpy(np.asarray(held)))


def augmented(image: Tensor, ct: bool, rng: np.random.Generator) -> Tensor:
    """An image (C, z, y, x) with other intensities: blur, gamma, for MR and others shifts of the histogram, noise."""
    image = image.clone()
    for channel in image:
        if rng.random() < 0.3:
            sigma = float(rng.uniform(0.4, 1.0))
            for axis in (1, 2, 3):
                channel.copy_(gaussian(channel[None], axis, sigma)[0])
        low, span = channel.min(), channel.max() - channel.min()
        if span > 0:
            relative = ((channel - low) / span).clamp(0, 1)
            if not ct and rng.random() < 0.5:
                relative = _shifted_histogram(relative, rng)
            if rng.random() < 0.3:
                relative = relative ** float(rng.uniform(0.7, 1.5))
            noise = rng.standard_normal(tuple(channel.shape), dtype=np.float32) * rng.uniform(0, 0.05)
            channel.copy_(low + span * (relative + torch.from_numpy(noise.astype(np.float32))))
    return image


def _shifted_histogram(relative: Tensor, rng: np.random.Generator) -> Tensor:
    """Values between 0 and 1 under a random rising curve through five points."""
    known = np.linspace(0, 1, 5)
    moved = known.copy()
    moved[1:-1] = np.sort((known[1:-1] + rng.uniform(-0.1, 0.1, size=3)).clip(0, 1))
    return torch.from_numpy(np.interp(relative.numpy(), known, moved).astype(np.float32))


def with_places(cells: Cells, device: torch.device) -> Cells:
    """Cells on another device."""
    moved: Any = (each.to(device) for each in cells)
    return Cells(*moved)
