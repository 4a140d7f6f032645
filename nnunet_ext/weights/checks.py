"""What the command line says in numbers, checked: argparse takes nan and inf for numbers, too."""

from __future__ import annotations

import math
from collections.abc import Sequence

from nnunet_ext.errors import UserError


def check_spacing(spacing: Sequence[float]) -> None:
    """Raise UserError for a spacing that is not of finite, positive millimetres."""
    if not all(math.isfinite(value) and value > 0 for value in spacing):
        axes = ", ".join("zyx"[-len(spacing) :])
        raise UserError(f"spacing must be positive millimetres ({axes}), each a finite number; got {tuple(spacing)}")


def check_window(window: Sequence[float]) -> None:
    """Raise UserError for a window (a_min, a_max) of intensities that does not rise from a number to another."""
    a_min, a_max = window
    if not (a_max > a_min and math.isfinite(a_max - a_min)):
        raise UserError(f"the intensity window must rise from A_MIN to A_MAX, both finite numbers; got {tuple(window)}")
