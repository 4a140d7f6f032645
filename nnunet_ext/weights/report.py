"""What an import did with every weight, and what it tells people."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nnunet_ext.weights.loading import shorten


@dataclass(frozen=True)
class Report:
    """The fate of every entry of a checkpoint and of every weight of our network.

    Attributes:
        loaded: our names that received a weight from the file.
        filled: our names that the file has nothing for; they keep a fresh, seeded initialisation.
        dropped_aliases: second names in the file of weights that were loaded.
        zeroed: our names without a counterpart in the published network, set to zero.
        copied: our names that received a copy of a weight that another of our names was loaded with.
        left: names in the file that our network has no place for.
    """

    loaded: tuple[str, ...]
    filled: tuple[str, ...] = ()
    dropped_aliases: tuple[str, ...] = ()
    zeroed: tuple[str, ...] = ()
    copied: tuple[str, ...] = ()
    left: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {key: list(value) for key, value in asdict(self).items()}

    def summary(self) -> str:
        """One line a group, for people."""
        lines = [f"loaded   {len(self.loaded)} weights"]
        if self.copied:
            lines.append(f"copied   {len(self.copied)} weights to a second place: {shorten(self.copied, 2)}")
        if self.left:
            lines.append(f"left     {len(self.left)} weights of the file without a place here: {shorten(self.left, 2)}")
        if self.filled:
            lines.append(f"filled   {len(self.filled)} weights afresh, absent from the file: {shorten(self.filled, 4)}")
        if self.zeroed:
            lines.append(
                f"zeroed   {len(self.zeroed)} weights that the published network lacks: {shorten(self.zeroed)}"
            )
        if self.dropped_aliases:
            second = shorten(self.dropped_aliases, 1)
            lines.append(f"dropped  {len(self.dropped_aliases)} second names of loaded weights: {second}")
        return "\n".join(lines)


@dataclass(frozen=True)
class Outcome:
    """A finished import.

    Attributes:
        folder: the model folder, or the file, that was written.
        report: what happened to the weights.
        assumptions: what the file does not say or nnU-Net does differently, one sentence each.
        use: the command to go on with; empty: predict from the model folder.
    """

    folder: Path
    report: Report
    assumptions: tuple[str, ...]
    use: str = ""
