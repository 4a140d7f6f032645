"""Where the pieces of `gpu.py` run and how large, and what one of them has found."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from gpu_networks import Plan
from torch import Tensor

EQUAL = 1e-3  # one way against another in float32 without TF32: outputs in standard deviations, gradients relatively


@dataclass(frozen=True)
class Setting:
    """Where and how large: the device, the plan, and how often a timing is repeated."""

    device: str
    plan: Plan
    rounds: int = 10

    @property
    def backend(self) -> str:
        """What `torch.compile` compiles with: nnU-Net's on a GPU; what needs no C++ compiler on a CPU."""
        return "inductor" if self.device == "cuda" else "aot_eager"

    def synchronise(self) -> None:
        """Wait until the device has done its work."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    def autocast(self, enabled: bool = True) -> torch.autocast:
        """Mixed precision as nnU-Net has it, in float16 (slow on a CPU)."""
        return torch.autocast(self.device, dtype=torch.float16, enabled=enabled)


@dataclass
class Outcome:
    """What a piece found: a table for people, whether every check held, and a remark."""

    header: Sequence[str] = ()
    rows: list[list[str]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    remark: str = ""
    skipped: bool = False

    def check(self, held: bool, complaint: str) -> str:
        """Note a failure; returns the word for the table."""
        if not held:
            self.failures.append(complaint)
        return "ok" if held else "FAILED"


def first(outputs: Tensor | Sequence[Tensor]) -> Tensor:
    return outputs if isinstance(outputs, Tensor) else outputs[0]


def numerics(exact: bool) -> None:
    """Full float32 and fixed algorithms to compare results; TF32 and chosen algorithms, as nnU-Net, to measure."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = not exact
    torch.backends.cudnn.benchmark = not exact


def cause(error: Exception) -> str:
    """The first line of a compilation's error, and the innermost line of the network's code that it names."""
    lines = [line.strip() for line in str(error).splitlines()]
    places = [f"{line} {code}" for line, code in itertools.pairwise(lines) if line.startswith("File ")]
    return " ".join([lines[0], *places[-1:]])
