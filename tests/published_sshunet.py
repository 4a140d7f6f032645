"""Checkpoint files as the authors' scripts write them, made from the golden fixtures' lists of names and shapes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import golden_tools as golden
import torch
from torch import Tensor

GOLDEN = Path(__file__).parent / "golden" / "sshunet"

State = dict[str, Tensor]


def fixture_state(name: str) -> tuple[State, dict[str, Any]]:
    """The canonical weights of a network fixture, and the arguments of its constructor."""
    spec, _ = golden.load(GOLDEN / name)
    return {key: torch.from_numpy(value) for key, value in golden.reference_state(spec).items()}, spec["constructor"]


def alias(key: str, levels: int) -> str | None:
    """The second name of a weight in a published file; None for the output block, which has none."""
    group, _, rest = key.partition(".")
    down = "skip_layers." + "{}"
    if group == "input_block":
        return down.format(f"downsample.{rest}")
    if group == "bottleneck":
        return down.format("next_layer." * (levels - 1) + rest)
    if group == "output_block":
        return None
    index, _, rest = rest.partition(".")
    depth, kind = {
        "downsamples": (int(index) + 1, "downsample"),
        "upsamples": (levels - 2 - int(index), "upsample"),
        "deep_supervision_heads": (int(index) + 1, "super_head"),
    }[group]
    return down.format("next_layer." * depth + f"{kind}.{rest}")


def aliases(state: State, levels: int) -> State:
    """The second names' entries: the same tensors."""
    return {name: value for key, value in state.items() if (name := alias(key, levels)) is not None}


def save_published(path: Path, state: State, levels: int, **entries: Any) -> Path:
    """Write a file in the format of the authors' `save_checkpoint`."""
    parameter = torch.nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.AdamW([parameter], 4e-4, weight_decay=1e-5)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    parameter.grad = torch.ones(3)
    optimizer.step()
    content = {
        "epoch": 2699,
        "best_acc": 0.8264,
        "state_dict": {**state, **aliases(state, levels)},
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        **entries,
    }
    torch.save(content, path)
    return path
