"""Where self-regularisation takes its features from a network: names of modules, resolved once.

A network states its points by a method `kd_points(self) -> KDPoints`; nnU-Net's own U-Nets, and any other network with
`encoder.stages` and `decoder.stages`, are known here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

Select = Callable[[Any], Tensor]


@dataclass(frozen=True)
class KDPoint:
    """A feature map of a network.

    Attributes:
        module: dotted name of the sub-module whose output it is, such as "encoder.stages.1". It must be the result of
            a stage or block: inside a convolution-norm-activation block the activation overwrites it.
        select: turns the module's output into a tensor (B, C, *spatial); None: it is one.
    """

    module: str
    select: Select | None = None


@dataclass(frozen=True)
class KDPoints:
    """The maps that are taught and the one that teaches (specification selfreg 4.2).

    Attributes:
        encoder: for each stage, high resolution first, its maps: the last block's, or the first and the last block's.
        decoder: the same for the decoder, low resolution first, without the teacher.
        teacher: the input of the last segmentation layer.
    """

    encoder: tuple[tuple[KDPoint, ...], ...]
    decoder: tuple[tuple[KDPoint, ...], ...]
    teacher: KDPoint

    @property
    def students(self) -> tuple[KDPoint, ...]:
        """All maps that are taught, encoder first."""
        return tuple(point for stage in (*self.encoder, *self.decoder) for point in stage)


def points_of(network: nn.Module) -> KDPoints:
    """The feature points of a network.

    Raises:
        NotImplementedError: the network states none and has no `encoder.stages` and `decoder.stages`.
        ValueError: a stated module does not exist, or there is nothing to teach.
    """
    stated = getattr(network, "kd_points", None)
    points: KDPoints = _by_stages(network) if stated is None else stated()
    modules = dict(network.named_modules(remove_duplicate=False))
    for point in (*points.students, points.teacher):
        if point.module not in modules:
            raise ValueError(
                f"{type(network).__name__} has no module {point.module!r}, which its kd_points() names; the names are "
                "those of named_modules()."
            )
    if not points.students:
        raise ValueError(f"{type(network).__name__} has no stages that could be taught; KD needs at least two stages.")
    return points


def _by_stages(network: nn.Module) -> KDPoints:
    """All encoder stages but the full-resolution stem, all decoder stages but the last, which teaches."""
    stages = [getattr(getattr(network, part, None), "stages", None) for part in ("encoder", "decoder")]
    if not all(isinstance(found, (nn.ModuleList, nn.Sequential)) and len(found) for found in stages):
        raise NotImplementedError(
            f"KD does not know the features of {type(network).__name__}: give the network a method "
            "`kd_points(self) -> nnunet_ext.losses.points.KDPoints` that names them (docs/kd.md, 'Your own network')."
        )
    encoder, decoder = stages
    assert encoder is not None
    assert decoder is not None
    return KDPoints(
        tuple((KDPoint(f"encoder.stages.{i}"),) for i in range(1, len(encoder))),
        tuple((KDPoint(f"decoder.stages.{i}"),) for i in range(len(decoder) - 1)),
        KDPoint(f"decoder.stages.{len(decoder) - 1}"),
    )
