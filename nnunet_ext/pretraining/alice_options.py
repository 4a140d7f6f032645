"""What can be chosen of Alice, and what the published code had instead (specification alice 1.8, 4.4)."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, Literal

from nnunet_ext.errors import UserError
from nnunet_ext.pretraining.masks import STYLES, Style

Fidelity = Literal["ours", "original"]
FIDELITIES: tuple[Fidelity, ...] = ("ours", "original")
Extent = Literal["hidden", "all"]
EXTENTS: tuple[Extent, ...] = ("hidden", "all")
SHARES = ("temperature_warm_up", "frozen_prototypes", "centre_momentum", "teacher_momentum", "dropout")


@dataclass(frozen=True)
class AliceOptions:
    """Options of Alice; the defaults correct the published code, `alice_options("original")` gives its values.

    Attributes:
        augmentation: the student sees the augmented images of `Views`; otherwise the clean ones. The teacher always
            sees the clean ones.
        across_views: patch targets across views too, for pairs from one volume.
        reconstruction: "hidden" for the mean squared error over hidden voxels, "all" for half of it over all.
        visible_weight: with "hidden", factor of the mean squared error over visible voxels.
        shared_teacher_head: the teacher has one matrix of prototypes, which begins as the student's for positions and
            follows the student's for whole views; otherwise it has and follows both.
        average_casa: the teacher's alignment comes from a moving average of CASA in eval mode; otherwise from the
            student's CASA with its dropout.
        teacher_temperatures: at the beginning and after the warm-up.
        aligned_scale: factor of CASA's outputs, which a layer norm has made about 16 times as large as the cosines that
            these temperatures are for.
        temperature_warm_up: part of the steps.
        student_temperature: constant.
        weights: of the whole views', the positions' and the reconstruction's loss.
        centre_momentum: what remains of the centres at a step.
        teacher_momentum: of the moving average at step 0 (None: by the number of steps); it rises to 1.
        frozen_prototypes: part of the steps, at the beginning, in which prototypes do not learn.
        clip: largest norm of the gradient.
        clip_per_tensor: of each parameter by itself instead of all together.
        weight_decay: at the first and at the last step, of weights of two and more axes.
        minimum_rate: last learning rate.
        rate_may_rise: the learning rate "falls" to `minimum_rate` even if that is the higher one.
        mask_style: "blocks" or "tube".
        dropout: of CASA.
        width, hidden, bottleneck, prototypes: sizes of the head; CASA is as wide as there are prototypes.
        heads, casa_hidden: sizes of CASA.
        token_cap: feature maps with more positions are averaged to at most so many before the head.
        fill: of hidden voxels, one value or one for each channel.
        scale: unit of the error over hidden voxels, as many values; see `masked_error`.
    """

    augmentation: bool = True
    across_views: bool = True
    reconstruction: Extent = "hidden"
    visible_weight: float = 0.0
    shared_teacher_head: bool = False
    average_casa: bool = True
    teacher_temperatures: tuple[float, float] = (0.04, 0.07)
    aligned_scale: float = 1 / 16
    temperature_warm_up: float = 0.03
    student_temperature: float = 0.1
    weights: tuple[float, float, float] = (1.0, 1.0, 5.0)
    centre_momentum: float = 0.9
    teacher_momentum: float | None = None
    frozen_prototypes: float = 0.001
    clip: float = 3.0
    clip_per_tensor: bool = False
    weight_decay: tuple[float, float] = (1e-2, 5e-2)
    minimum_rate: float = 1e-6
    rate_may_rise: bool = False
    mask_style: Style = "blocks"
    dropout: float = 0.1
    width: int = 384
    hidden: int = 2048
    bottleneck: int = 256
    prototypes: int = 512
    heads: int = 8
    casa_hidden: int = 2048
    token_cap: int = 4096
    fill: tuple[float, ...] = (0.0,)
    scale: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        """Refuse what cannot work.

        Raises:
            UserError: an option out of its range.
        """
        for field in fields(self):
            _check_type(field.name, getattr(self, field.name), field.default)
        _one_of("reconstruction", self.reconstruction, EXTENTS)
        _one_of("mask_style", self.mask_style, STYLES)
        temperatures = (*self.teacher_temperatures, self.student_temperature)
        if min(temperatures) <= 0:
            raise UserError(f"two temperatures of the teacher and one of the student, above 0, not {temperatures}")
        if min(self.weights) < 0 or not any(self.weights):
            raise UserError(f"three weights are needed (views, positions, reconstruction), 0 or more: {self.weights}")
        for name in SHARES:
            if (getattr(self, name) or 0) > 1:
                raise UserError(f"Alice's option {name} is {getattr(self, name)}; wanted: from 0 to 1")
        if self.reconstruction == "all" and self.visible_weight:
            raise UserError(
                f"visible_weight is {self.visible_weight}, but all voxels are reconstructed anyway (reconstruction is "
                "'all'): leave one of them out"
            )
        if self.prototypes % self.heads:
            raise UserError(f"{self.prototypes} prototypes cannot be divided among {self.heads} heads of CASA")


ORIGINAL: dict[str, Any] = {
    "augmentation": False,
    "across_views": False,
    "reconstruction": "all",
    "shared_teacher_head": True,
    "average_casa": False,
    "teacher_temperatures": (0.008, 0.01),
    "aligned_scale": 1.0,
    "weights": (1.0, 1.0, 10.0),
    "teacher_momentum": 0.996,
    "clip_per_tensor": True,
    "weight_decay": (0.04, 0.4),
    "minimum_rate": 1e-4,
    "rate_may_rise": True,
    "mask_style": "tube",
}
"""The published code's values, where ours are others."""


def alice_options(fidelity: Fidelity = "ours", **chosen: Any) -> AliceOptions:
    """Options with all corrections or with none, and single ones chosen otherwise.

    Args:
        fidelity: "ours" or "original".
        **chosen: options by name; they win.

    Raises:
        UserError: another fidelity, an unknown option, or a value out of range.
    """
    _one_of("fidelity", fidelity, FIDELITIES)
    known = [field.name for field in fields(AliceOptions)]
    unknown = sorted(set(chosen) - set(known))
    if unknown:
        raise UserError(f"Alice has no options {unknown}; it has {known}")
    return AliceOptions(**{**(ORIGINAL if fidelity == "original" else {}), **chosen})


def _check_type(name: str, value: Any, default: Any) -> None:
    """Refuse a value that is of another type than the default, such as a number where there should be two.

    Raises:
        UserError: names both.
    """
    if isinstance(default, tuple):
        length = None if name in ("fill", "scale") else len(default)
        fits = isinstance(value, tuple) and length in (None, len(value)) and all(map(_is_number, value))
        wanted = f"{length} numbers, separated by commas" if length else "numbers, separated by commas"
    elif isinstance(default, bool):
        fits, wanted = isinstance(value, bool), "true or false"
    elif isinstance(default, int):
        fits, wanted = type(value) is int and value > 0, "a whole number above 0"
    elif isinstance(default, str):
        fits, wanted = isinstance(value, str), "a word"
    else:  # a number, or None for one that follows from others
        fits, wanted = value == default or (_is_number(value) and value >= 0), "a number, 0 or more"
    if not fits:
        raise UserError(f"Alice's option {name} is {value!r}; wanted: {wanted}")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UserError(f"{name} is {value!r}; allowed are {', '.join(map(repr, allowed))}")
