"""Published weights of the plain 2D U-Net into our network (specification selfreg 2.1, 2.4)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from nnunet_ext.architectures.unet2d import unet2d_architecture
from nnunet_ext.weights import transfer
from nnunet_ext.weights.loading import CheckpointError, shorten
from nnunet_ext.weights.recognise import looks_like
from nnunet_ext.weights.report import Report

_FIRST, _HEAD, _TRANSPOSED = "inc.double_conv.0.weight", "outc.conv.", "up1.up.weight"
_OUR_HEAD = "decoder.seg_layers.0."


@dataclass(frozen=True)
class Configuration:
    """A plain 2D U-Net as its weights show it.

    Attributes:
        input_channels: of the images.
        num_classes: outputs, with the background.
        width: features at full resolution.
        upsampling: "bilinear" or "transposed".
    """

    input_channels: int
    num_classes: int
    width: int
    upsampling: str

    @property
    def architecture(self) -> dict[str, Any]:
        """The plans' block."""
        return unet2d_architecture(self.width, self.upsampling)


def infer_configuration(state: Mapping[str, Tensor]) -> Configuration:
    """Read the network off its weights.

    Raises:
        CheckpointError: no such network.
    """
    for key in (_FIRST, f"{_HEAD}weight"):
        if key not in state or state[key].dim() != 4:
            found = shorten(state, 3)
            raise CheckpointError(f"not a plain 2D U-Net: {key} is missing, found {found}{looks_like(state)}")
    width, channels = state[_FIRST].shape[:2]
    upsampling = "transposed" if _TRANSPOSED in state else "bilinear"
    return Configuration(int(channels), int(state[f"{_HEAD}weight"].shape[0]), int(width), upsampling)


def build_network(configuration: Configuration) -> nn.Module:
    """Our network for `configuration`."""
    c = configuration
    return transfer.build_network(c.architecture, c.input_channels, c.num_classes)


def key_map(network: nn.Module) -> dict[str, str]:
    """Every published name -> our name: they differ in the head."""
    return {name.replace(_OUR_HEAD, _HEAD): name for name in network.state_dict()}


def load_weights(network: nn.Module, state: Mapping[str, Tensor]) -> Report:
    """Load published weights, strictly, into a network built for them.

    Raises:
        CheckpointError: missing or unexpected names, or shapes that do not fit.
    """
    return transfer.load_normed_weights(network, state, key_map(network))
