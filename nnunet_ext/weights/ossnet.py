"""Published OSS-Net weights into our network (specification ossnet 4): one logit becomes two classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from nnunet_ext.weights import transfer
from nnunet_ext.weights.loading import CheckpointError
from nnunet_ext.weights.ossnet_configuration import FREQUENCIES, HEAD, Configuration
from nnunet_ext.weights.report import Report

CLASSES = 2
_NAMES = {"decoder.seg_layers.0.weight": HEAD, "decoder.frequencies": FREQUENCIES}
"""Our name -> the published one, where they differ."""


def canonical_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights with a head of two classes.

    The published network has one logit z and a sigmoid. Two classes with the logits 0 and z have the same
    probabilities under a softmax.
    """
    canonical = dict(state)
    if HEAD in canonical:
        canonical[HEAD] = torch.cat([torch.zeros_like(canonical[HEAD]), canonical[HEAD]])
    return canonical


def build_network(
    configuration: Configuration, patch_size: Sequence[int] | None = None, large_pooling: str = "average"
) -> nn.Module:
    """Our network for `configuration`.

    Args:
        configuration: of the weights.
        patch_size: voxels (x, y, z) of its grid; None for the published one.
        large_pooling: of large windows, "average" or "max".

    Raises:
        UserError: a patch size is needed, or does not fit the weights, or there is no such network.
    """
    architecture = configuration.architecture(configuration.patch(patch_size), large_pooling)
    try:
        return transfer.build_network(architecture, configuration.input_channels, CLASSES)
    except ValueError as error:
        raise CheckpointError(f"the weights are of no OSS-Net that can be built; {error}") from error


def key_map(network: nn.Module) -> dict[str, str]:
    """Every published name -> our name."""
    return {_NAMES.get(name, name): name for name in network.state_dict()}


def load_weights(network: nn.Module, state: Mapping[str, Tensor]) -> Report:
    """Load canonical weights, strictly, into a network built for them.

    Raises:
        CheckpointError: missing or unexpected names, or shapes that do not fit.
    """
    return transfer.load_normed_weights(network, state, key_map(network))
