"""Which parameters take part in a network's output: see `nnunet_ext.architectures.graph`."""

from __future__ import annotations

from nnunet_ext.architectures.graph import unused_parameters as unused_parameters
