"""Starts of trainings: a network for the user's plans, and what nnU-Net takes of its weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nnunet_ext.weights import transfer
from nnunet_ext.weights.loading import CheckpointError

HEADS = ".seg_layers."


def headless(network: nn.Module) -> dict[str, Tensor]:
    """The weights that nnU-Net takes from a file for `-pretrained_weights`."""
    return {name: value.detach().clone() for name, value in network.state_dict().items() if HEADS not in name}


def seeded(network_architecture: Mapping[str, Any], channels: int, planner: str) -> nn.Module:
    """The plans' network with a seeded initialisation; its head is for two classes and will not be used.

    Args:
        network_architecture: the plans' block.
        channels: of the images.
        planner: that makes right plans, for the error.

    Raises:
        CheckpointError: no network has these arguments.
    """
    try:
        with torch.no_grad():
            return transfer.build_network(network_architecture, channels, 2)
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(
            f"the plans' network cannot be built ({type(error).__name__}: {reason}); correct its arch_kwargs in the "
            f"plans, or plan anew with {planner}"
        ) from error
