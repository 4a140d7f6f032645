"""The folder of a training: checkpoints, numbers for people and programs, pictures."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nnunet_ext.errors import UserError
from nnunet_ext.pretraining import checkpoint_format

LATEST, FINAL = "checkpoint_latest.pth", "checkpoint_final.pth"
LOG, PICTURES = "log.jsonl", "pictures"


class RunFolder:
    """Where a training writes; only the first process has one.

    Args:
        path: the folder; is made.
        tensorboard: also write events for TensorBoard, if it is installed.
    """

    def __init__(self, path: Path, tensorboard: bool = True) -> None:
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot make the folder {path}: {error.strerror or error}") from error
        self.tensorboard = _writer(path / "tensorboard") if tensorboard else None

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """One line of JSON, and a point in every curve."""
        values = {name: float(value) if math.isfinite(value) else None for name, value in numbers.items()}  # valid JSON
        line = {"step": step, "time": round(time.time(), 1), **values}
        with (self.path / LOG).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if self.tensorboard is not None:
            for name, value in numbers.items():
                self.tensorboard.add_scalar(name, value, step)

    def forget_after(self, step: int) -> None:
        """Drop numbers that lie after a checkpoint: the training goes through these steps again."""
        if self.tensorboard is not None:
            self.tensorboard.close()
            self.tensorboard = _writer(self.path / "tensorboard", step + 1)
        path = self.path / LOG
        if not path.is_file():
            return
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if _step(line) <= step]
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")

    def save(self, content: Mapping[str, Any], *, final: bool = False, keep: bool = False) -> Path:
        """Write the latest checkpoint.

        Args:
            content: of `checkpoint_format`.
            final: the training is over: under the final name.
            keep: also under a name of its own, with the step.
        """
        path = self.path / (FINAL if final else LATEST)
        checkpoint_format.write(path, content)
        if keep:
            kept = self.path / f"checkpoint_{content['step']:07d}.pth"
            kept.unlink(missing_ok=True)
            try:
                os.link(path, kept)
            except OSError:  # a file system without links
                checkpoint_format.write(kept, content)
        if final:
            (self.path / LATEST).unlink(missing_ok=True)
        return path

    def draw(self, step: int, images: Sequence[npt.NDArray[np.float32]], titles: Sequence[str]) -> None:
        """A picture of middle slices, one row a sample.

        Args:
            step: for the name.
            images: as many as titles, each (samples, H, W).
            titles: of the columns.
        """
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        rows, columns = len(images[0]), len(images)
        figure = Figure(figsize=(2.2 * columns, 2.2 * rows), layout="tight")
        FigureCanvasAgg(figure)
        axes = np.asarray(figure.subplots(rows, columns, squeeze=False))
        for row in range(rows):
            low, high = np.percentile(images[0][row], (1, 99))
            for column, title in enumerate(titles):
                axis = axes[row, column]
                axis.imshow(images[column][row], cmap="gray", vmin=low, vmax=max(high, low + 1e-6))
                axis.set_axis_off()
                axis.set_title(title if row == 0 else "", fontsize=8)
        (self.path / PICTURES).mkdir(exist_ok=True)
        figure.savefig(self.path / PICTURES / f"step_{step:07d}.png", dpi=100)

    def close(self) -> None:
        """Finish TensorBoard's file."""
        if self.tensorboard is not None:
            self.tensorboard.close()


def has_run(path: Path) -> bool:
    """Whether a training was begun in a folder."""
    return any((path / name).is_file() for name in (LATEST, FINAL))


def _step(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")  # cut off when the process was killed


def _writer(folder: Path, first: int | None = None) -> Any:
    """TensorBoard's writer, which hides earlier points from step `first` on; None where it isn't installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=first)
