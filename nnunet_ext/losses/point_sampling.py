"""Points to train on, drawn on the device from an augmented target: everywhere, and near borders, of rare classes too.

OSS-Net draws points with precomputed border maps in its data loader (``specs/ossnet.md`` 2.3, 2.4). Here the border
comes from pooling the target, for any number of classes or regions, and every point carries the inverse of its
density, so that a loss over points estimates the loss over all voxels (``specs/ossnet.md`` 6.4). Shapes are static and
nothing is synchronised with the host.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

RADIUS = 7  # voxels; equal to the original's border maps (specs/ossnet.md 2.3)
RAREST = 20.0  # times that a voxel of a rare class may be preferred
LEAST, MOST = 0.1, 10.0  # bounds of the importance weights
FILL = 100.0  # how far keys of voxels that are not preferred lie below others: more than any log of a random float32


@dataclass(frozen=True)
class Sampling:
    """How points are drawn.

    Attributes:
        points: N, of each sample.
        border: share drawn near borders (without replacement).
        balanced: share drawn near borders, rare classes preferred (without replacement).
        jitter: share of all points that is moved by up to half a voxel.
        radius: how near, in voxels, of each axis.
        importance: weight points by their inverse density; else all weigh 1.
    """

    points: int
    border: float
    balanced: float
    jitter: float
    radius: tuple[int, ...]
    importance: bool = True

    @property
    def on_grid(self) -> int:
        """How many points, the first ones, are voxel centres."""
        return self.points - round(self.points * self.jitter)


@dataclass(frozen=True)
class Points:
    """Sampled points of B samples.

    Attributes:
        coords: (B, N, dim) float32, voxel indices in the target's axis order.
        target: (B, R, N), the target at the nearest voxels, in its dtype.
        weights: (B, 1, N) float32, 0 where ignored.
        on_grid: how many points, the first ones, are voxel centres.
    """

    coords: Tensor
    target: Tensor
    weights: Tensor
    on_grid: int


def border_radius(spacing: Sequence[float]) -> tuple[int, ...]:
    """Voxels along each axis that are about as far as `RADIUS` voxels of the finest one; 1 to 7."""
    finest = min(spacing)
    return tuple(int(min(max(round(RADIUS * finest / s), 1), RADIUS)) for s in spacing)


def border_mask(target: Tensor, radius: Sequence[int]) -> Tensor:
    """Where the target is not constant within `radius` voxels; image borders count as continued.

    Args:
        target: (B, R, *spatial), labels or regions of any dtype.
        radius: voxels along each axis.

    Returns:
        (B, 1, *spatial) bool.
    """
    changes = [_varies(channel.float(), radius) for channel in target.split(1, 1)]  # regions one by one: less memory
    return torch.stack(changes).any(0)


def _varies(values: Tensor, radius: Sequence[int]) -> Tensor:
    """Where one channel (B, 1, *spatial) is not constant within `radius` voxels."""
    extremes = [values, -values]
    pool = functional.max_pool3d if len(radius) == 3 else functional.max_pool2d
    for axis, r in enumerate(radius):
        kernel = [2 * r + 1 if i == axis else 1 for i in range(len(radius))]
        extremes = [pool(v, kernel, stride=1, padding=[k // 2 for k in kernel]) for v in extremes]
    largest, negative_smallest = extremes
    return largest != -negative_smallest


def draw_points(
    target: Tensor, sampling: Sampling, ignored: Tensor | None = None, generator: torch.Generator | None = None
) -> Points:
    """Draw points of a batch.

    Args:
        target: (B, R, *spatial): labels (R = 1), or one channel a region, without the channel of ignored voxels.
        sampling: how.
        ignored: (B, 1, *spatial) bool; such voxels get weight 0 and are not drawn near borders.
        generator: of the target's device; None: torch's own.
    """
    size = target.shape[2:]
    voxels = size.numel()
    flat = target.flatten(2)
    usable = torch.ones_like(flat[:, 0], dtype=torch.bool) if ignored is None else ~ignored.flatten(1)
    groups = [round(sampling.points * share) for share in (sampling.border, sampling.balanced)]
    groups = [min(count, voxels) for count in groups]
    uniform = sampling.points - sum(groups)
    index = torch.randint(voxels, (len(target), uniform), device=target.device, generator=generator)
    density = usable.new_full(usable.shape, uniform / voxels, dtype=torch.float32)
    parts = [index]
    if sum(groups):
        border = border_mask(target, sampling.radius).flatten(1) & usable
        preferences = (border.float(), border * _rarity(flat, border))
        for count, preference in zip(groups, preferences, strict=True):
            if count:
                drawn, inclusion = _draw_preferred(preference, usable, count, generator)
                parts.append(drawn)
                density = density + inclusion
    order = torch.randperm(sampling.points, device=target.device, generator=generator)
    index = torch.cat(parts, 1)[:, order]
    weights = usable.gather(1, index).float()
    if sampling.importance:
        weights = weights * _importance(density.gather(1, index), weights)
    labels = flat.gather(2, index[:, None].expand(-1, flat.shape[1], -1))
    return Points(_coordinates(index, size, sampling, generator), labels, weights[:, None], sampling.on_grid)


def _rarity(flat: Tensor, border: Tensor) -> Tensor:
    """(B, V) how much rarer a voxel's class is near borders than the commonest one there, at most `RAREST` times.

    With regions, classes are the combinations of regions, told apart by the number of regions that hold.
    """
    classes = (flat[:, 0] if flat.shape[1] == 1 else flat.sum(1)).long().clamp_(min=0)
    counts = border.new_zeros((len(flat), _CLASSES), dtype=torch.float32)
    counts.scatter_add_(1, classes.clamp(max=_CLASSES - 1), border.float())
    factor = (counts.amax(1, keepdim=True) / counts.clamp(min=1)).clamp(max=RAREST)
    return factor.gather(1, classes.clamp(max=_CLASSES - 1))


_CLASSES = 256  # classes told apart when rare ones are preferred; further ones count as one


def _draw_preferred(
    preference: Tensor, usable: Tensor, count: int, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """`count` different voxels (B, count), preferred ones first, and every voxel's chance of being drawn (B, V).

    Keys log(u) / preference, of which the largest are taken, draw without replacement in proportion to the preference
    (P. S. Efraimidis, P. G. Spirakis, Information Processing Letters 97, 2006). Where too few are preferred, others
    fill up, all alike; ignored voxels come last. Given the first key that was not taken, a voxel's chance is that of
    exceeding it; weights by the inverse of this chance estimate sums without bias (bottom-k sampling).
    """
    noise = torch.rand(preference.shape, device=preference.device, generator=generator).clamp_(min=1e-12)
    preferred = preference > 0
    keys = torch.where(preferred, torch.log(noise) / preference.clamp(min=1), noise - FILL)
    keys = torch.where(usable, keys, keys - 2 * FILL)
    if count == keys.shape[1]:
        return keys.argsort(1), torch.ones_like(keys)
    best = keys.topk(count + 1, 1)
    bar = best.values[:, count:]
    chance = torch.where(preferred, -torch.expm1(bar * preference), (1 - FILL - bar).clamp(0, 1))
    return best.indices[:, :count], chance * usable


def _importance(density: Tensor, usable: Tensor) -> Tensor:
    """Inverse densities (B, N), their mean over usable points 1, within bounds."""
    inverse = usable / density
    mean = inverse.sum(1, keepdim=True) / usable.sum(1, keepdim=True).clamp(min=1)
    return (inverse / mean.clamp(min=1e-12)).clamp(LEAST, MOST)


def _coordinates(index: Tensor, size: Sequence[int], sampling: Sampling, generator: torch.Generator | None) -> Tensor:
    """(B, N, dim) float32 of flat indices (B, N); the last ones moved by up to half a voxel along each axis."""
    steps = list(itertools.accumulate(reversed(size[1:]), lambda a, b: a * b, initial=1))[::-1]
    axes = [(index // step) % edge for step, edge in zip(steps, size, strict=True)]
    coords = torch.stack(axes, -1).float()
    moved = index.shape[1] - sampling.on_grid
    if moved:
        shape = (len(index), moved, len(size))
        shift = torch.rand(shape, device=index.device, generator=generator) - 0.5
        coords = torch.cat([coords[:, : sampling.on_grid], coords[:, sampling.on_grid :] + shift], 1)
    return coords
