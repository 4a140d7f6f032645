"""Published weights of the anatomical embedding (SAM, UAE) into our network (specification alice 3.1)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from nnunet_ext.architectures.anatomical_embedding import SAMEmbedding
from nnunet_ext.weights import transfer
from nnunet_ext.weights.loading import CheckpointError, read_checkpoint, shorten
from nnunet_ext.weights.recognise import looks_like
from nnunet_ext.weights.report import Report

_BACKBONE, _SEMANTIC = "backbone.", "semantic_head."
_CHARACTERISTIC = ("conv1.conv.weight", "neck.fpn_convs.0.conv.weight", "read_out_head.fpn_convs.0.conv.weight")


def canonical_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights under names without the prefixes `module.` and `backbone.`, as `loading.read_checkpoint` leaves them."""
    return {key.removeprefix("module.").removeprefix(_BACKBONE): value for key, value in state.items()}


def build_network(state: Mapping[str, Tensor]) -> SAMEmbedding:
    """The network that the names and shapes of canonical weights show: with the semantic head where they have one.

    Raises:
        CheckpointError: weights of something else.
    """
    missing = [key for key in _CHARACTERISTIC if key not in state or state[key].dim() != 5]
    if missing:
        raise CheckpointError(
            f"not an anatomical embedding (SAM.pth, SAMv2, CrossSAM): {shorten(missing)} missing or of another "
            f"dimension, found {shorten(state, 3)}{looks_like(state)}"
        )
    semantic = any(key.startswith(_SEMANTIC) for key in state)
    outputs = int(state[_CHARACTERISTIC[1]].shape[0])
    with torch.random.fork_rng(devices=[]):
        return SAMEmbedding(semantic, outputs)


def key_map(network: SAMEmbedding) -> dict[str, str]:
    """Canonical name -> our name, which is the published one."""
    return {name.removeprefix(_BACKBONE): name for name in network.state_dict()}


def load_weights(network: SAMEmbedding, state: Mapping[str, Tensor]) -> Report:
    """Load canonical weights, strictly; batch norm's counters may be absent.

    Raises:
        CheckpointError: missing or unexpected names, or shapes that do not fit; nothing was loaded.
    """
    return transfer.load_normed_weights(network, state, key_map(network))


def read_embedding(path: str | Path) -> tuple[SAMEmbedding, Report]:
    """The network of a published file, in eval mode: a dict with `state_dict`, perhaps mmcv's `meta` and `optimizer`.

    Only tensors, numbers and text are read, and nothing in the file is executed. Of a file that asks for more the error
    says how to save its weights alone.

    Raises:
        CheckpointError: the file is missing, damaged, asks for other Python objects, or does not fit the network.
    """
    state = canonical_state(read_checkpoint(path).state)
    network = build_network(state)
    report = load_weights(network, state)
    network.eval().requires_grad_(False)
    return network, report
