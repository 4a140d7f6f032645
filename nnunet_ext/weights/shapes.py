"""What the names and shapes of a state dict tell of a network."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from nnunet_ext.weights.loading import CheckpointError, shorten


def count(state: Mapping[str, Tensor], group: str) -> int:
    """How many entries a module list has; they must start at 0 without gaps.

    Raises:
        CheckpointError: there is a gap, or nothing.
    """
    pattern = re.compile(rf"{re.escape(group)}\.(\d+)\.")
    found = sorted({int(match[1]) for key in state if (match := pattern.match(key))})
    if not found or found != list(range(len(found))):
        raise CheckpointError(f"checkpoint is incomplete: {group} has the indices {shorten(map(str, found)) or 'none'}")
    return len(found)


def shape(state: Mapping[str, Tensor], key: str, axes: int) -> tuple[int, ...]:
    """The shape of an entry.

    Raises:
        CheckpointError: there is no such entry, or not of so many axes, none of them empty.
    """
    if key not in state:
        raise CheckpointError(f"checkpoint is incomplete: {key} is missing")
    found = tuple(state[key].shape)
    if len(found) != axes or min(found) < 1:
        raise CheckpointError(f"checkpoint entry {key} must have {axes} axes, none of them empty, got shape {found}")
    return found
