"""What nnU-Net's training log says about each epoch."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

_NUMBER = r"-?(?:\d+\.?\d*(?:e[+-]?\d+)?|nan|inf)"
_EPOCH = re.compile(
    rf"train_loss (?P<train>{_NUMBER}).*?val_loss (?P<val>{_NUMBER}).*?Pseudo dice \[(?P<dice>[^\]]*)\]", re.DOTALL
)
_VALUE = re.compile(rf"(?<![\w.]){_NUMBER}")


@dataclass(frozen=True)
class Epoch:
    """One finished epoch: mean losses, and nnU-Net's pseudo Dice (over validation patches) of each foreground class."""

    train_loss: float
    val_loss: float
    dice: tuple[float, ...]

    @property
    def mean_dice(self) -> float:
        """Over the foreground classes that have one (NaN if none has)."""
        values = [value for value in self.dice if not math.isnan(value)]
        return sum(values) / len(values) if values else math.nan


def read_epochs(text: str) -> list[Epoch]:
    """The finished epochs in the output of ``nnUNetv2_train``, in order.

    Args:
        text: of the log file or the console; may end anywhere.
    """
    epochs = []
    for match in _EPOCH.finditer(text):
        dice = tuple(float(value) for value in _VALUE.findall(match["dice"]))
        epochs.append(Epoch(float(match["train"]), float(match["val"]), dice))
    return epochs
