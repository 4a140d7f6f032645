"""Channel redundancy of a trained model: how much alike the channels of its feature maps are on images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import mean
from typing import Any

import torch
from torch import Tensor, nn

from nnunet_ext.losses.points import KDPoint, KDPoints, points_of

CHUNK = 2**16  # positions that are in float64 at a time


class ChannelGram:
    """Sums over positions that the correlations of a map's channels follow from; of pieces, one after the other."""

    def __init__(self) -> None:
        self.count = 0
        self.sums = self.products = torch.zeros(())

    def add(self, f: Tensor) -> None:
        """Add a map (B, C, *spatial)."""
        rows = f.detach().movedim(1, -1).flatten(0, -2)
        for chunk in rows.split(CHUNK):
            x = chunk.double()
            self.sums = self.sums.to(x) + x.sum(0)
            self.products = self.products.to(x) + x.T @ x
            self.count += len(x)

    def redundancy(self) -> float | None:
        """Mean absolute correlation over all pairs of channels that vary; None if fewer than two do."""
        centre = self.sums / self.count
        covariance = self.products / self.count - torch.outer(centre, centre)
        variances, scale = covariance.diagonal(), self.products.diagonal() / self.count
        varying = variances > 1e-9 * scale  # far above rounding, far below what a living channel has
        if int(varying.sum()) < 2:
            return None
        deviations = variances[varying].sqrt()
        correlations = covariance[varying][:, varying] / torch.outer(deviations, deviations)
        pairs = torch.triu_indices(len(deviations), len(deviations), 1)
        return float(correlations[pairs[0], pairs[1]].abs().clamp(max=1).mean())


@dataclass(frozen=True)
class Place:
    """A feature point with its place in the network.

    Attributes:
        part: "encoder", "decoder", or "last" for the input of the segmentation layer.
        stage: its number in that part, in the order in which the network computes.
        point: the module.
    """

    part: str
    stage: int
    point: KDPoint


def places(points: KDPoints) -> list[Place]:
    """All feature points in the order in which the network computes them; the last one teaches in KD."""
    parts = {"encoder": points.encoder, "decoder": points.decoder, "last": ((points.teacher,),)}
    return [
        Place(part, number, point)
        for part, stages in parts.items()
        for number, stage in enumerate(stages)
        for point in stage
    ]


@dataclass(frozen=True)
class Redundancy:
    """The redundancy at one place of the network.

    Attributes:
        place: where.
        channels: of the map.
        positions: in a patch, that the correlations are over; few raise them by chance.
        cases: case to mean absolute correlation, over its patches; None where fewer than two channels vary.
    """

    place: Place
    channels: int
    positions: int
    cases: Mapping[str, float | None]

    @property
    def values(self) -> list[float]:
        """Of all cases that have one."""
        return [value for value in self.cases.values() if value is not None]

    @property
    def mean(self) -> float | None:
        """Over the cases."""
        return mean(self.values) if self.values else None


class Probe:
    """Forward hooks on a network's feature points that sum up what passes; in evaluation mode, too.

    Args:
        network: without wrappers.
    """

    def __init__(self, network: nn.Module) -> None:
        self.places = places(points_of(network))
        self.channels, self.positions = [0] * len(self.places), [0] * len(self.places)
        self._grams: list[ChannelGram] = []
        self._handles = [
            network.get_submodule(place.point.module).register_forward_hook(self._hook(index))
            for index, place in enumerate(self.places)
        ]

    def _hook(self, index: int) -> Any:
        select = self.places[index].point.select

        def take(_module: nn.Module, _inputs: Any, output: Any) -> None:
            f = output if select is None else select(output)
            self.channels[index] = int(f.shape[1])
            self._grams[index].add(f)

        return take

    def start(self) -> None:
        """Begin a new patch."""
        self._grams = [ChannelGram() for _ in self.places]

    def redundancies(self) -> list[float | None]:
        """Of the patch that has passed, place by place."""
        self.positions = [gram.count for gram in self._grams]
        return [gram.redundancy() if gram.count else None for gram in self._grams]

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()


@contextmanager
def probing(network: nn.Module) -> Iterator[Probe]:
    """A probe whose hooks are removed at the end."""
    probe = Probe(network)
    try:
        yield probe
    finally:
        probe.remove()


def measure(
    network: nn.Module, cases: Mapping[str, Sequence[Tensor]] | Iterator[tuple[str, Sequence[Tensor]]]
) -> list[Redundancy]:
    """The redundancy at every feature point of a network.

    Args:
        network: any with feature points (`nnunet_ext.losses.points`), without wrappers; is set to evaluation mode.
        cases: case to patches (1, C, *spatial) on the network's device; an iterator may make them one by one.

    Raises:
        NotImplementedError: the network's feature points are not known.
    """
    network.eval()
    found: dict[str, list[float | None]] = {}
    with probing(network) as probe, torch.inference_mode():
        for case, patches in cases.items() if isinstance(cases, Mapping) else cases:
            of_patches = []
            for patch in patches:
                probe.start()
                with torch.autocast(patch.device.type, enabled=patch.device.type == "cuda"):
                    network(patch)
                of_patches.append(probe.redundancies())
            found[case] = [_mean(values) for values in zip(*of_patches, strict=True)]
        return [
            Redundancy(
                place, probe.channels[i], probe.positions[i], {case: values[i] for case, values in found.items()}
            )
            for i, place in enumerate(probe.places)
        ]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return mean(known) if known else None
