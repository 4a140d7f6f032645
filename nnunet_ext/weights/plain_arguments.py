"""A harmless stand-in for `argparse.Namespace`, in which training scripts keep their arguments beside the weights."""

from __future__ import annotations

import pickle
from typing import Any


class PlainArguments:
    """Stands for `argparse.Namespace` while a pickle is read; what torch's unpickler lets through is plain data."""

    __slots__ = ("values",)

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        """Take the arguments by their names."""
        if not isinstance(state, dict):
            raise pickle.UnpicklingError("a command's arguments are not stored by their names")
        self.values = state


ARGUMENTS: dict[str, Any] = {"argparse.Namespace": PlainArguments}
"""Name that a pickle asks for -> what it gets."""
