"""Activations by name, as OSS-Net's plans state them."""

from __future__ import annotations

from torch import nn

from nnunet_ext.architectures.blocks.pade import PadeActivation

ACTIVATIONS = ("leaky_relu", "gelu", "pade")
SLOPE = 0.01


def make_activation(name: str) -> nn.Module:
    """A fresh activation.

    Args:
        name: one of `ACTIVATIONS`; "pade" has ten parameters of its own.

    Raises:
        ValueError: an unknown name.
    """
    if name == "pade":
        return PadeActivation()
    if name == "gelu":
        return nn.GELU()
    if name == "leaky_relu":
        return nn.LeakyReLU(SLOPE, inplace=True)
    raise ValueError(f"activation is {name!r}; allowed are {', '.join(map(repr, ACTIVATIONS))}.")
