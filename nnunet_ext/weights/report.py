"""What an import did with every weight."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from nnunet_ext.weights.loading import shorten


@dataclass(frozen=True)
class Report:
    """The fate of every entry of a checkpoint and of every weight of our network.

    Attributes:
        loaded: our names that received a weight from the file.
        filled: our names that the file has nothing for; they keep a fresh, seeded initialisation.
        dropped_aliases: second names in the file of weights that were loaded.
    """

    loaded: tuple[str, ...]
    filled: tuple[str, ...] = ()
    dropped_aliases: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {key: list(value) for key, value in asdict(self).items()}

    def summary(self) -> str:
        """One line a group, for people."""
        lines = [f"loaded   {len(self.loaded)} weights"]
        if self.filled:
            lines.append(f"filled   {len(self.filled)} weights afresh, absent from the file: {shorten(self.filled, 4)}")
        if self.dropped_aliases:
            lines.append(f"dropped  {len(self.dropped_aliases)} second names of loaded weights (skip_layers.*)")
        return "\n".join(lines)
