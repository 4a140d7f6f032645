"""The file of an embedding of our own: network, settings, and what its training needs to go on.

A dict of tensors and plain Python values, which loads with ``weights_only=True``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nnunet_ext.architectures.anatomical_embedding import SmallEmbedding
from nnunet_ext.errors import UserError
from nnunet_ext.pretraining.embedding_settings import Settings
from nnunet_ext.weights.loading import safe_load
from nnunet_ext.weights.saving import save_atomically

FORMAT = "nnunet_ext anatomical embedding"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class EmbeddingFile:
    """What is in the file.

    Attributes:
        settings: of network and training.
        weights: the network's state dict.
        step: steps done.
        steps: of the whole training.
        seed: of all its draws.
        cases: names of the cases that it was trained on.
        held_out: names of the cases that only measured it.
        optimizer: its state dict.
        quality: of the quality check; empty before the end of the training.
    """

    settings: Settings
    weights: dict[str, Tensor]
    step: int
    steps: int
    seed: int
    cases: tuple[str, ...]
    held_out: tuple[str, ...]
    optimizer: dict[str, Any]
    quality: dict[str, Any] = field(default_factory=dict)

    def network(self) -> SmallEmbedding:
        """The network with its weights, on the CPU.

        Raises:
            UserError: the weights do not fit the settings.
        """
        network = new_network(self.settings)
        try:
            network.load_state_dict(self.weights)
        except RuntimeError as error:
            raise UserError(f"the embedding's weights do not fit its settings; train it again: {error}") from error
        return network

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all.

        Raises:
            UserError: it cannot be written.
        """
        content = {**vars(self), "settings": self.settings.as_dict()}
        content |= {"cases": list(self.cases), "held_out": list(self.held_out)}
        save_atomically({"format": FORMAT, "format_version": FORMAT_VERSION, **content}, path)


def new_network(settings: Settings, seed: int = 0) -> SmallEmbedding:
    """A fresh network; its initialisation depends on `seed` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SmallEmbedding(settings.input_channels, settings.features, settings.fine, settings.coarse)


def is_ours(content: Any) -> bool:
    """Whether the content of a file is an embedding of our own, of whatever version."""
    return isinstance(content, Mapping) and content.get("format") == FORMAT


def read_embedding_file(path: Path) -> EmbeddingFile:
    """Read an embedding of our own; nothing in the file is executed.

    Raises:
        UserError: the file is missing, damaged, of another version, or something else.
    """
    if not path.is_file():
        raise UserError(f"{path}: there is no such file; give one that nnunet-ext correspond --train-embedding wrote")
    content = safe_load(path)
    if not is_ours(content) or content.get("format_version") != FORMAT_VERSION:
        raise UserError(
            f"{path.name}: not an embedding that nnunet-ext correspond --train-embedding wrote (format version "
            f"{FORMAT_VERSION}); train one, or give SAM.pth where published weights are allowed"
        )
    values: dict[str, Any] = {key: value for key, value in content.items() if key not in ("format", "format_version")}
    try:
        settings = Settings.from_dict(values.pop("settings"))
        values |= {key: tuple(values[key]) for key in ("cases", "held_out")}
        return EmbeddingFile(settings=settings, **values)
    except (KeyError, TypeError) as error:
        raise UserError(f"{path.name}: the file was changed or is incomplete ({error}); train it again") from error
