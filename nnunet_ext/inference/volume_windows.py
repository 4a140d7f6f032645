"""A case in sliding windows, asked for points: windows are encoded when they are needed, and blended as by nnU-Net."""

from __future__ import annotations

import itertools
import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nnunet_ext.architectures.blocks.adaptive_decoding import Presence
from nnunet_ext.architectures.occupancy import OccupancyNetwork

Window = tuple[int, ...]
_SIGMA = 1 / 8  # of nnU-Net's Gaussian, in patches
#: Voxels that points asked for together may span, unless they are few. Networks take features of all voxels between
#: points, so that points far apart, those of a coarse grid, would need more memory than those of a fine one.
NEARBY_VOXELS, FEW_POINTS = 20_000, 1024


@dataclass(frozen=True)
class View:
    """A network (of one fold) that looks at windows mirrored along some axes of the image (0, 1, 2)."""

    network: OccupancyNetwork
    mirrored: tuple[int, ...] = ()

    def flipped(self, x: Tensor) -> Tensor:
        """(..., *spatial), mirrored; itself its inverse."""
        return x.flip([axis - self.network.dim for axis in self.mirrored]) if self.mirrored else x

    def mirror(self, coords: Tensor, patch: Sequence[int]) -> Tensor:
        """Voxel indices (N, dim) in the mirrored window."""
        if not self.mirrored:
            return coords
        sign = coords.new_tensor([-1.0 if axis in self.mirrored else 1.0 for axis in range(len(patch))])
        last = coords.new_tensor([p - 1.0 if axis in self.mirrored else 0.0 for axis, p in enumerate(patch)])
        return coords * sign + last


@dataclass(frozen=True)
class _Encoded:
    """A window as a view sees it."""

    network: OccupancyNetwork
    context: Any
    x: Tensor
    field: Callable[[Tensor], Tensor]

    def logits(self, coords: Tensor) -> Tensor:
        """(K, N) at points (N, dim); the network's `field` is the faster one, without gradients."""
        if not (coords.requires_grad and torch.is_grad_enabled()):
            return self.field(coords)
        chunks = coords.split(self.network.chunk_points)
        return torch.cat([self.network.decode(self.context, part[None], self.x)[0] for part in chunks], 1)


class WindowField:
    """Logits at voxel indices of a preprocessed image that is at least as large as the patch.

    Args:
        views: whose logits are averaged.
        data: (C, *spatial), on any device.
        windows: first voxels of the windows, which together cover the image.
        patch: voxels of a window.
        gaussian: blend with nnU-Net's Gaussian weights, at the points; else evenly.
        device: where the networks are.
        cached: encoded windows to keep, of each view.
    """

    def __init__(
        self,
        views: Sequence[View],
        data: Tensor,
        windows: Sequence[Window],
        patch: Sequence[int],
        *,
        gaussian: bool,
        device: torch.device,
        cached: int,
    ) -> None:
        self.windows = list(windows)
        self.patch = tuple(patch)
        self.encoded = 0  # how often a window was encoded
        self._views, self._data, self._gaussian = list(views), data, gaussian
        self._device, self._cached = device, cached * len(views)
        self._kept: OrderedDict[tuple[Window, int], _Encoded] = OrderedDict()
        self._presence = _PresenceMap(self.windows, self.patch)

    def __call__(self, coords: Tensor) -> Tensor:
        """Logits (K, N), float32, at points (N, dim) of the image; differentiable in the points."""
        last = torch.tensor([edge - 0.5 for edge in self._data.shape[1:]], device=coords.device)
        coords = coords.clamp(min=torch.full_like(last, -0.5), max=last)
        if not len(coords):
            return torch.zeros(self._views[0].network.num_classes, 0, device=self._device)
        parts = [] if coords.requires_grad and torch.is_grad_enabled() else nearby(coords)
        if len(parts) < 2:
            return self._blended(coords)
        logits = torch.zeros(self._views[0].network.num_classes, len(coords), device=self._device)
        for part in parts:
            logits[:, part] = self._blended(coords[part])
        return logits

    def _blended(self, coords: Tensor) -> Tensor:
        """Logits (K, N) at points (N, dim) in the image, N > 0, of all windows that hold them."""
        low, high = (bound.tolist() for bound in (coords.detach().amin(0), coords.detach().amax(0)))
        holding = self.holding(low, high)
        if len(holding) == 1:
            return self._of_window(holding[0], coords)
        logits = torch.zeros(self._views[0].network.num_classes, len(coords), device=self._device)
        weights = torch.zeros(len(coords), device=self._device)
        for window in holding:
            start = coords.new_tensor(window)
            within = ((coords >= start - 0.5) & (coords <= start + coords.new_tensor(self.patch) - 0.5)).all(1)
            where = within.nonzero()[:, 0]
            if not len(where):
                continue
            points = coords[where]
            weight = self._weight(points - start)
            logits = logits.index_add(1, where, self._of_window(window, points) * weight)
            weights = weights.index_add(0, where, weight)
        return logits / weights

    def holding(self, low: Sequence[float], high: Sequence[float]) -> list[Window]:
        """The windows that hold a point of a box."""
        return [
            window
            for window in self.windows
            if all(
                start - 0.5 <= h and low_ <= start + edge - 0.5
                for start, edge, low_, h in zip(window, self.patch, low, high, strict=True)
            )
        ]

    def presence(self, low: Sequence[float], high: Sequence[float]) -> Presence | None:
        """What the networks' heads see where in the image; filled in at least where windows hold a point of the box."""
        for window in self.holding(low, high):
            for view in range(len(self._views)):
                if self._presence.lacks(window, view):
                    self._encode(window, view)
        return self._presence.found()

    def _of_window(self, window: Window, coords: Tensor) -> Tensor:
        """Logits (K, N) of one window, the mean of all views."""
        local = coords - coords.new_tensor(window)
        total: Tensor | None = None
        for index, view in enumerate(self._views):
            with torch.autocast(self._device.type, enabled=self._device.type == "cuda"):
                logits = self._encode(window, index).logits(view.mirror(local, self.patch)).float()
            total = logits if total is None else total + logits
        if total is None:
            raise ValueError("a field needs a network")
        return total / len(self._views)

    def _encode(self, window: Window, index: int) -> _Encoded:
        key = (window, index)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        while len(self._kept) >= self._cached:  # before encoding: its peak comes on top
            self._kept.popitem(last=False)
        view = self._views[index]
        cut = (slice(None), *(slice(s, s + edge) for s, edge in zip(window, self.patch, strict=True)))
        with torch.no_grad(), torch.autocast(self._device.type, enabled=self._device.type == "cuda"):
            x = view.flipped(self._data[cut][None].to(self._device))
            context = view.network.encode(x)
            probabilities = view.network.presence(context)
        self._presence.add(window, index, None if probabilities is None else view.flipped(probabilities[0].float()))
        self._kept[key] = _Encoded(view.network, context, x, view.network.field(context, x))
        self.encoded += 1
        return self._kept[key]

    def _weight(self, local: Tensor) -> Tensor:
        """nnU-Net's Gaussian at points (N, dim) of a window, up to a factor."""
        if not self._gaussian:
            return local.new_ones(len(local))
        centre = local.new_tensor([edge // 2 for edge in self.patch])
        sigma = local.new_tensor([edge * _SIGMA for edge in self.patch])
        return torch.exp(-0.5 * ((local - centre) / sigma).square().sum(1))


def nearby(coords: Tensor) -> list[Tensor]:
    """Indices of points (N, dim), N > 0, in parts that span no more voxels than may be asked for together.

    Boxes are halved along their longest axis; all indices are in one part each.
    """
    parts, waiting = [], [torch.arange(len(coords), device=coords.device)]
    while waiting:
        index = waiting.pop()
        points = coords[index]
        low, high = points.amin(0), points.amax(0)
        extent = (high - low).tolist()
        if len(index) <= FEW_POINTS or not math.prod(edge + 1 for edge in extent) > NEARBY_VOXELS:  # or NaN
            parts.append(index)
            continue
        axis = extent.index(max(extent))
        first = points[:, axis] < (low[axis] + high[axis]) / 2
        waiting += [index[~first], index[first]]
    return parts


class _PresenceMap:
    """The windows' presence probabilities put together: in each cell of the image the highest that a window sees."""

    def __init__(self, windows: Sequence[Window], patch: Sequence[int]) -> None:
        self._patch = tuple(patch)
        self._ends = [max(window[axis] for window in windows) + edge for axis, edge in enumerate(patch)]
        self._seen: set[tuple[Window, int]] = set()
        self._map: Tensor | None = None
        self._cell: tuple[int, ...] = ()
        self._none = False

    def lacks(self, window: Window, view: int) -> bool:
        return not self._none and (window, view) not in self._seen

    def found(self) -> Presence | None:
        if self._map is None or self._none:
            return None
        size = tuple(cells * edge for cells, edge in zip(self._map.shape[1:], self._cell, strict=True))
        return Presence(self._map, size)

    def add(self, window: Window, view: int, probabilities: Tensor | None) -> None:
        """Of a window: (K, *cells); None, or cells of broken voxels: there is no map at all."""
        if not self.lacks(window, view):
            return
        if probabilities is None or any(p % c for p, c in zip(self._patch, probabilities.shape[1:], strict=True)):
            self._none = True
            return
        self._seen.add((window, view))
        cells = probabilities.shape[1:]
        if self._map is None:
            self._cell = tuple(p // c for p, c in zip(self._patch, cells, strict=True))
            shape = [math.ceil(end / edge) for end, edge in zip(self._ends, self._cell, strict=True)]
            self._map = probabilities.new_zeros(probabilities.shape[0], *shape)
        # a window need not start at a cell's face; its cells then reach into two cells of the map
        offsets = [(s // c, s // c + 1) if s % c else (s // c,) for s, c in zip(window, self._cell, strict=True)]
        for corner in itertools.product(*offsets):
            there = (slice(None), *(slice(o, o + n) for o, n in zip(corner, cells, strict=True)))
            part = self._map[there]
            fitting = (slice(None), *(slice(0, n) for n in part.shape[1:]))
            part.copy_(torch.maximum(part, probabilities[fitting]))
