"""Dense logits from a function of points, evaluated where classes meet.

A lattice of points is evaluated, then the lattice is refined, halving its stride until it is the grid itself. Of each
finer lattice only those points are evaluated near which the coarser one is not of one class, or not sure; the others
are interpolated, so that the logits are soft everywhere (``specs/ossnet.md`` 6.5; the idea is that of multi-resolution
surface extraction, L. Mescheder et al., CVPR 2019, and of the subdivision of A. Kirillov et al., PointRend, CVPR 2020).

Cells in which a class is said to occur (`Presence`) but that no point of the lattice has found are evaluated as well:
structures between the coarsest points are not lost. Presence adds work, it never saves any; what it adds on mere
possibility is bounded. A cell of several classes
that have all been found gets none: their surfaces are followed anyway, and cells are large.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from nnunet_ext.architectures.blocks import lattice
from nnunet_ext.architectures.blocks.point_grid import PointGrid
from nnunet_ext.architectures.blocks.presence import Presence

Field = Callable[[Tensor], Tensor]

DecodeMode = Literal["dense", "adaptive", "budget"]
MODES: tuple[DecodeMode, ...] = get_args(DecodeMode)

__all__ = ["MODES", "DecodeMode", "Decoded", "Field", "Presence", "decode_grid"]


@dataclass(frozen=True)
class Decoded:
    """Logits (K, *grid.shape) float32 and, by the same indices, which of them were evaluated (bool, *grid.shape)."""

    logits: Tensor
    evaluated: Tensor


@torch.no_grad()
def decode_grid(
    field: Field,
    grid: PointGrid,
    *,
    mode: str,
    regions: bool,
    first_stride: Sequence[int],
    presence: Presence | None = None,
    device: torch.device | str = "cpu",
    margin: float = 0.1,
    presence_threshold: float = 0.05,
    presence_share: float = 0.05,
    dense_share: float = 0.4,
    budget_share: float = 0.1,
) -> Decoded:
    """Logits of all points of a grid; no gradients.

    What is evaluated equals "dense" but for the rounding of other batches. `field` is given points that are near each
    other, a block at a time; a few of them lie beyond the end of the grid, by less than `first_stride`.

    Args:
        field: coordinates (N, dim) float32 -> logits (K, N), any N > 0.
        grid: the points.
        mode: "dense" (all are evaluated), "adaptive" (those that need it) or "budget" (a fixed number of the least
            certain of each lattice, whatever the data).
        regions: K regions with a sigmoid each, instead of K classes with a softmax. One class alone is a region.
        first_stride: points of the grid from a point of the first lattice to the next, of each axis; rounded down to a
            power of two.
        presence: what is known of the classes that occur in parts of the image.
        device: of the coordinates and of the result.
        margin: a point is sure where the two best classes' probabilities differ by so much; of a region, |2 p - 1|.
        presence_threshold: probability from which a class may occur in a cell.
        presence_share: of the cells, how many are looked into at most in which no class is likely (`presence.LIKELY`).
        dense_share: a lattice is evaluated wholly if a larger share of its points would be.
        budget_share: the share of each lattice after the first that "budget" evaluates.

    Raises:
        ValueError: another mode, or a presence whose channels are not the logits'.
    """
    if mode not in MODES:
        raise ValueError(f"mode is {mode!r}; the modes are {', '.join(MODES)}.")
    decoder = _Decoder(field, grid, torch.device(device))
    strides = (1,) * len(grid.shape) if mode == "dense" else lattice.first_strides(first_stride, grid.shape)
    level = decoder.first(strides)
    regions = regions or level.logits.shape[0] == 1
    while max(level.strides) > 1:
        finer = decoder.refined(level)
        suspect = None
        if presence is not None:
            found = _found(level.logits, presence.probabilities.shape[0], regions)
            cells = presence.unseen(found, decoder.axes(level), presence_threshold, presence_share)
            suspect = presence.at(cells, decoder.axes(finer))
        if mode == "adaptive":
            active = _active(level, finer, regions, margin)
            active = active if suspect is None else active.logical_or_(suspect)
            active &= ~finer.evaluated
            if int(active.sum()) > dense_share * active.numel():
                active = ~finer.evaluated
        else:
            active = _least_certain(finer, regions, budget_share, suspect)
        decoder.evaluate(finer, active)
        level = finer
    return Decoded(level.logits, level.evaluated)


@dataclass(frozen=True)
class _Level:
    """Logits (K, *points) of a lattice and which of its points were evaluated (*points)."""

    strides: tuple[int, ...]
    logits: Tensor
    evaluated: Tensor


class _Decoder:
    """Lattices of one grid, evaluated by its field."""

    def __init__(self, field: Field, grid: PointGrid, device: torch.device) -> None:
        self.field, self.grid, self.device = field, grid, device

    def first(self, strides: tuple[int, ...]) -> _Level:
        """The whole lattice, evaluated."""
        shape = lattice.lattice_shape(self.grid.shape, strides)
        everywhere = torch.ones(shape, dtype=torch.bool, device=self.device)
        logits: Tensor | None = None
        for index in lattice.in_blocks(everywhere):
            values = self._values(index, strides)
            if logits is None:
                logits = values.new_empty((values.shape[0], *shape))
            _write(logits, index, values)
        if logits is None:
            raise ValueError(f"The grid's shape is {self.grid.shape}: it has no points; every axis needs one at least.")
        return _Level(strides, logits, everywhere)

    def refined(self, level: _Level) -> _Level:
        """The lattice of half the stride, interpolated; nothing of it is evaluated that was not before."""
        strides = tuple(max(1, stride // 2) for stride in level.strides)
        shape = lattice.lattice_shape(self.grid.shape, strides)
        logits = lattice.refine(level.logits, shape, lattice.halfway)
        return _Level(strides, logits, lattice.only_old(level.evaluated, shape))

    def evaluate(self, level: _Level, points: Tensor) -> None:
        """Replace the logits where the mask `points` is set."""
        for index in lattice.in_blocks(points):
            _write(level.logits, index, self._values(index, level.strides))
        level.evaluated.logical_or_(points)

    def axes(self, level: _Level) -> list[Tensor]:
        """Of each axis, the coordinates of the lattice's points."""
        rows = zip(level.evaluated.shape, level.strides, self.grid.scale, self.grid.offset, strict=True)
        return [
            torch.arange(points, dtype=torch.float32, device=self.device) * (stride * scale) + offset
            for points, stride, scale, offset in rows
        ]

    def _values(self, index: Tensor, strides: Sequence[int]) -> Tensor:
        steps = torch.tensor(strides, device=index.device)
        return self.field(self.grid.coordinates(index * steps)).float()


def _write(logits: Tensor, index: Tensor, values: Tensor) -> None:
    where: tuple[Any, ...] = (slice(None), *index.unbind(1))
    logits[where] = values


def _labels(logits: Tensor, regions: bool) -> Tensor:
    """(1, *points) the best class; of regions (K, *points), zero or one. In the smallest integers that hold them."""
    if regions:
        return (logits > 0).to(torch.uint8)
    return logits.argmax(0, keepdim=True).to(torch.uint8 if logits.shape[0] <= 256 else torch.int16)


def _found(logits: Tensor, channels: int, regions: bool) -> list[Tensor]:
    """Of each channel of a presence, where it is (bool, *points)."""
    labels, heads = _labels(logits, regions), logits.shape[0]
    if channels == heads:
        return [labels[k].bool() for k in range(heads)] if regions else [labels[0] == k for k in range(heads)]
    if channels == 1 + (not regions):
        return [labels.bool().any(0)] if regions else [labels[0] == 0, labels[0] > 0]
    what, other = ("regions", "one, all of them") if regions else ("classes", "two, the background and all others")
    raise ValueError(
        f"The presence has {channels} channels, the logits are of {heads} {what}; it needs as many, or {other}."
    )


def _margin(logits: Tensor, regions: bool) -> Tensor:
    """How sure a point is, 0 to 1 (*points): its two best classes' difference; the least sure region's |2 p - 1|."""
    if regions:
        return logits.abs().amin(0).mul_(0.5).tanh_()
    first, second = torch.maximum(logits[0], logits[1]), torch.minimum(logits[0], logits[1])
    for other in logits[2:]:  # torch.topk over the classes takes many times as long
        second = torch.maximum(second, torch.minimum(first, other))
        first = torch.maximum(first, other)
    total = torch.zeros_like(first)
    for each in logits:
        total += (each - first).exp_()
    return (1 - (second - first).exp_()).div_(total)


def _active(level: _Level, finer: _Level, regions: bool, margin: float) -> Tensor:
    """The finer lattice's points between points where labels meet within a step, or one of which is not sure."""
    unsettled = lattice.mixed(_labels(level.logits, regions))
    unsettled |= _margin(level.logits, regions) < margin
    return lattice.near_any(unsettled, finer.evaluated.shape)


def _least_certain(finer: _Level, regions: bool, share: float, first: Tensor | None) -> Tensor:
    """A fixed number of the points that were not evaluated, suspects before all others."""
    doubt = 1 - _margin(finer.logits, regions)
    if first is not None:
        doubt += first
    doubt[finer.evaluated] = -1
    number = min(round(share * doubt.numel()), doubt.numel())
    chosen = torch.zeros(doubt.numel(), dtype=torch.bool, device=doubt.device)
    chosen[doubt.flatten().topk(number, sorted=False).indices] = True
    return chosen.view(doubt.shape) & ~finer.evaluated
