"""Where the backbone is in a file of Alice's or of nnFormer's authors (specification alice 1.9)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nnunet_ext.weights.loading import Checkpoint, CheckpointError, find_state_dict, read_checkpoint, shorten

STUDENT, TEACHER = "student", "teacher"
NETWORKS = (TEACHER, STUDENT)
"""What a raw checkpoint of Alice's pre-training holds; the first is taken where nobody chooses."""
CHOOSE = "choose by --network (pretrain-export: --branch)"


@dataclass(frozen=True)
class Found:
    """A checkpoint and how it was laid out.

    Attributes:
        checkpoint: weights without wrapper prefixes.
        layout: "training" (a raw checkpoint of Alice), "student" (its script's extract, weights beside an empty
            `state_dict`) or "state_dict" (the script's extract of the teacher, nnFormer's own files, bare ones).
        network: of a raw checkpoint, the one that was taken.
    """

    checkpoint: Checkpoint
    layout: str
    network: str | None


def read_backbone(path: Path, wanted: str | None) -> Found:
    """Read a file in any of the layouts.

    Args:
        path: of the file.
        wanted: "student" or "teacher" of a raw checkpoint; None: the teacher.

    Raises:
        CheckpointError: the file cannot be used, or has not the wanted network.
    """
    layouts: list[str] = []

    def find(content: Any, name: str) -> Mapping[str, Any]:
        layouts.append(_layout(content))
        return _weights(content, name, layouts[0], wanted)

    checkpoint = read_checkpoint(path, find)
    return Found(checkpoint, layouts[0], (wanted or NETWORKS[0]) if layouts[0] == "training" else None)


def _layout(content: Any) -> str:
    if not isinstance(content, Mapping):
        return "state_dict"
    if any(isinstance(content.get(network), Mapping) for network in NETWORKS):
        return "training"
    inner = content.get("state_dict")
    return "student" if isinstance(inner, Mapping) and not inner and len(content) > 1 else "state_dict"


def _weights(content: Any, name: str, layout: str, wanted: str | None) -> Mapping[str, Any]:
    if layout == "training":
        network = wanted or NETWORKS[0]
        weights = content.get(network)
        if not isinstance(weights, Mapping) or not weights:
            there = [other for other in NETWORKS if content.get(other)]
            raise CheckpointError(f"{name}: there is no {network} in it, only {shorten(there)}; {CHOOSE}")
        return find_state_dict(weights, name)
    if wanted is not None:
        raise CheckpointError(
            f"{name}: the file holds one network, there is nothing to choose (found {shorten(map(str, content), 3)}): "
            "leave out --network (pretrain-export: --branch), or give the checkpoint that the pre-training wrote"
        )
    if layout == "student":
        return {key: value for key, value in content.items() if isinstance(value, torch.Tensor)}
    return find_state_dict(content, name)
