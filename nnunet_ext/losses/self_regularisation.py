"""Self-regularisation: the last decoder map teaches all other maps, and a map's channels teach each other.

W. Zhu, X. Chen, P. Qiu, M. Farazi, A. Sotiras, A. Razi, Y. Wang, SelfReg-UNet: Self-Regularized UNet for Medical Image
Segmentation, MICCAI 2024, arXiv 2406.14896 (authors' code: MIT). Written from the specification `selfreg`, sections 1.3
and 4.1, for maps of any dimension, shape and number of channels.

* Semantic consistency (SCR): every map is drawn to the average-pooled teacher. The published form pairs channels at
  random at every step; its expected gradient is that of regression onto the mean of the teacher's channels, which is
  the default here ("mean": no noise, one pooled map).
* Internal feature distillation (IFD): channels are ranked by their activation, and the upper half of the ranks and the
  lower half are drawn together, both ways.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nnunet_ext.losses.taught_map import SCORE_EPS, channel_sums, pool, rank_channels, taught_sums

MATCHINGS = ("mean", "random", "attention")
RMS_EPS = 1e-6

Map = Sequence[Tensor]
"""A feature map (B, C, *spatial) in pieces along the batch, whose spatial axes may differ."""

Stage = Sequence[Map]
"""The maps of a stage: its last block's, or its first and its last block's."""

Channels = Mapping[tuple[str, int, str], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Options:
    """What the regulariser computes.

    Attributes:
        scr_weight, ifd_weight: factors of the two terms, at least 0; published: 0.015 each.
        matching: "mean", "random" (as published), or "attention" (experimental: the maps' energies are compared,
            whatever their scale and channels).
        normalise: experimental: divide every channel map by its root mean square first.
        detach_top: experimental: in IFD only the lower half gets a gradient.
    """

    scr_weight: float = 0.015
    ifd_weight: float = 0.015
    matching: str = "mean"
    normalise: bool = False
    detach_top: bool = False

    def __post_init__(self) -> None:
        if min(self.scr_weight, self.ifd_weight) < 0:
            raise ValueError(f"KD weights must not be negative; got {self.scr_weight} (SCR), {self.ifd_weight} (IFD).")
        if self.matching not in MATCHINGS:
            raise ValueError(f"KD matching {self.matching!r} unknown; choose {', '.join(MATCHINGS)}.")


@dataclass(frozen=True)
class Features:
    """A network's maps in one training step.

    Attributes:
        encoder: for each stage, high resolution first, its maps.
        decoder: the same, low resolution first, without the teacher.
        teacher: the input of the last segmentation layer; it gets no gradient.
    """

    encoder: Sequence[Stage]
    decoder: Sequence[Stage]
    teacher: Map

    def sets(self) -> list[str]:
        """("last",), or ("last", "first") where a stage has two maps."""
        return ["last", "first"] if any(len(stage) > 1 for stage in (*self.encoder, *self.decoder)) else ["last"]


@dataclass(frozen=True)
class Terms:
    """The two terms, unweighted: 0-dimensional tensors."""

    scr: Tensor
    ifd: Tensor


class Teacher:
    """The teacher's maps, pooled to the sizes that are asked for; nothing has a gradient."""

    def __init__(self, pieces: Map, matching: str) -> None:
        with torch.no_grad():
            self.full = [_reduced(piece.detach(), matching) for piece in pieces]
        self.channels = pieces[0].shape[1]
        self.sizes = [tuple(piece.shape[2:]) for piece in pieces]
        self._levels: list[dict[tuple[int, ...], Tensor]] = [
            {size: full} for size, full in zip(self.sizes, self.full, strict=True)
        ]

    def level(self, piece: int, size: tuple[int, ...]) -> Tensor:
        """The piece pooled to a size: from the smallest level that is as good as the full size."""
        levels, full = self._levels[piece], self.sizes[piece]
        if size not in levels:
            exact = [s for s in levels if _divides(full, s) and _divides(s, size)]
            source = min(exact, key=lambda s: levels[s].numel(), default=full)
            with torch.no_grad():
                levels[size] = pool(levels[source], size)
        return levels[size]


def _reduced(teacher: Tensor, matching: str) -> Tensor:
    """What of the teacher is compared: all channels, their mean, or their mean square; (B, C or 1, *spatial)."""
    wide = torch.promote_types(teacher.dtype, torch.float32)
    if matching == "random":
        return teacher.to(wide)
    if matching == "mean":
        return teacher.mean(1, keepdim=True, dtype=wide)
    return teacher.to(wide).square().mean(1, keepdim=True)


class SelfRegularisation:
    """Both terms of a network's maps.

    Args:
        options: see `Options`.
    """

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or Options()

    def __call__(
        self, features: Features, generator: torch.Generator | None = None, channels: Channels | None = None
    ) -> Terms:
        """Compute the terms (specification selfreg 4.1).

        For every set of maps SCR is the mean over all maps; IFD is the mean over the encoder's maps plus the mean over
        the decoder's. Sets are added.

        Args:
            features: the maps.
            generator: for "random"; one draw a map and call, decoder before encoder, "last" before "first".
            channels: for "random", instead of draws: (part, stage, set) to the indices of student's and teacher's
                channels.

        Returns:
            Unweighted terms in float32 (float64 for maps in float64).
        """
        with torch.autocast(features.teacher[0].device.type, enabled=False):
            normalised = _normalised_features(features) if self.options.normalise else features
            return self._terms(normalised, generator, channels)

    def total(self, terms: Terms) -> Tensor:
        """The weighted sum."""
        return self.options.scr_weight * terms.scr + self.options.ifd_weight * terms.ifd

    def _terms(self, features: Features, generator: torch.Generator | None, channels: Channels | None) -> Terms:
        teacher = Teacher(features.teacher, self.options.matching)
        zero = torch.zeros((), device=features.teacher[0].device)
        scr, ifd = zero, zero
        for name, parts in _by_set(features):
            count = sum(len(maps) for maps in parts.values())
            for part, maps in parts.items():
                for stage, pieces in enumerate(maps):
                    drawn = None
                    if self.options.matching == "random":
                        given = None if channels is None else channels[part, stage, name]
                        drawn = given or draw(pieces[0].shape[1], teacher.channels, generator)
                    one_scr, one_ifd = self._map_terms(pieces, teacher, drawn)
                    scr = scr + one_scr / count
                    ifd = ifd + one_ifd / len(maps)
        return Terms(scr, ifd)

    def _map_terms(self, pieces: Map, teacher: Teacher, drawn: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
        """SCR and IFD of one map."""
        known = [channel_sums(piece) for piece in pieces]
        order = rank_channels(known)
        in_one = self.options.matching == "mean" and all(
            _smaller(piece, size) for piece, size in zip(pieces, teacher.sizes, strict=True)
        )
        levels = [teacher.level(i, tuple(piece.shape[2:])) if in_one else None for i, piece in enumerate(pieces)]
        scr_sum, ifd_sum = zip(
            *(
                taught_sums(piece, sums, level, order, self.options.detach_top)
                for piece, sums, level in zip(pieces, known, levels, strict=True)
            ),
            strict=True,
        )
        elements = sum(piece.numel() for piece in pieces)
        width, half = pieces[0].shape[1], pieces[0].shape[1] // 2
        ifd = sum(ifd_sum) / max(1, elements // width * half)
        scr = sum(scr_sum) / elements if in_one else self._compared(pieces, teacher, drawn)
        return torch.as_tensor(scr), torch.as_tensor(ifd)

    def _compared(self, pieces: Map, teacher: Teacher, drawn: tuple[Tensor, Tensor] | None) -> Tensor:
        """SCR where maps are larger than the teacher's, and of the other matchings: by plain operations."""
        total: Any = 0.0
        elements = 0
        for i, piece in enumerate(pieces):
            size = tuple(min(a, b) for a, b in zip(piece.shape[2:], teacher.sizes[i], strict=True))
            level = teacher.level(i, size)
            student = pool(piece.to(level.dtype), size)
            if self.options.matching == "attention":
                total = total + (_energy(student) - _unit(level)).square().sum()
                elements += piece.shape[0]
                continue
            if drawn is not None:
                student, level = (
                    student.index_select(1, drawn[0].to(student.device)),
                    level.index_select(1, drawn[1].to(level.device)),
                )
            total = total + (student - level).square().sum()
            elements += student.numel()
        return torch.as_tensor(total / elements)


def _by_set(features: Features) -> Iterator[tuple[str, dict[str, list[Map]]]]:
    """Each set's maps by part, in the order of the random draws; a stage with one map belongs to every set."""
    for name in features.sets():
        index = -1 if name == "last" else 0
        parts = {"decoder": features.decoder, "encoder": features.encoder}
        yield name, {part: [stage[index] for stage in stages] for part, stages in parts.items()}


def draw(students: int, teachers: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """As many random channels of each as the smaller one has, both in random order (specification selfreg 1.3)."""
    count = min(students, teachers)
    return torch.randperm(students, generator=generator)[:count], torch.randperm(teachers, generator=generator)[:count]


def _divides(larger: Sequence[int], smaller: Sequence[int]) -> bool:
    return all(a % b == 0 for a, b in zip(larger, smaller, strict=True))


def _smaller(piece: Tensor, size: Sequence[int]) -> bool:
    return all(a <= b for a, b in zip(piece.shape[2:], size, strict=True))


def _unit(energy: Tensor) -> Tensor:
    """(B, 1, *spatial) as vectors (B, N) of length 1."""
    return torch.nn.functional.normalize(energy.flatten(1), dim=1, eps=SCORE_EPS)


def _energy(f: Tensor) -> Tensor:
    return _unit(f.square().mean(1, keepdim=True))


def _normalised_features(features: Features) -> Features:
    def scaled(pieces: Map) -> Map:
        return [_rms_normalised(piece) for piece in pieces]

    def stages(listed: Sequence[Stage]) -> list[Stage]:
        return [[scaled(pieces) for pieces in stage] for stage in listed]

    return Features(stages(features.encoder), stages(features.decoder), scaled(features.teacher))


def _rms_normalised(f: Tensor) -> Tensor:
    """Every channel map of every sample divided by its root mean square."""
    wide = f.to(torch.promote_types(f.dtype, torch.float32))
    squares = wide.square().mean(tuple(range(2, f.dim())), keepdim=True)
    return wide * (squares + RMS_EPS**2).rsqrt()
