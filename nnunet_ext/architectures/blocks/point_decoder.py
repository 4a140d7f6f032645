"""From features of points to logits: residual layers, modulated by the image's global context."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nnunet_ext.architectures.blocks.activation import make_activation
from nnunet_ext.architectures.blocks.precision import without_autocast


class ModulatedNorm(nn.Module):
    """Layer normalisation of a point's features, scaled and shifted by the global context (FiLM).

    A point's result depends on no other point. At first the context has no effect. Autocast would make the norm's
    output float32 on GPUs, and with it all that is kept for the backward pass; the kernel's own sums are anyway.
    """

    def __init__(self, features: int, context: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(features, elementwise_affine=False)
        self.modulation = nn.Linear(context, 2 * features)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """x: (B, N, features); context: (B, context); returns x's shape."""
        scale, shift = self.modulation(context)[:, None].chunk(2, -1)
        with without_autocast(x):
            normal = self.norm(x)
        return torch.addcmul(shift, normal, 1 + scale)


class PointBlock(nn.Module):
    """act(norm(linear(act(norm(linear(x))))) + x), both norms modulated."""

    def __init__(self, features: int, context: int, activation: str) -> None:
        super().__init__()
        self.linear1, self.linear2 = nn.Linear(features, features), nn.Linear(features, features)
        self.norm1, self.norm2 = ModulatedNorm(features, context), ModulatedNorm(features, context)
        self.activation1, self.activation2 = make_activation(activation), make_activation(activation)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """x: (B, N, features); context: (B, context); returns x's shape."""
        h = self.activation1(self.norm1(self.linear1(x), context))
        out: Tensor = self.activation2(self.norm2(self.linear2(h), context) + x)
        return out


class PointDecoder(nn.Module):
    """Logits of points (``specs/ossnet.md`` 6.3).

    Args:
        inputs: features of a point.
        features: width of the layers.
        context: width of the global context.
        classes: K.
        blocks: residual blocks.
        activation: "leaky_relu", "gelu" or "pade".
        deep_supervision: nnU-Net's switch, see `OccupancyNetwork.forward`.
    """

    def __init__(
        self,
        inputs: int,
        features: int,
        context: int,
        classes: int,
        blocks: int,
        activation: str,
        deep_supervision: bool,
    ) -> None:
        super().__init__()
        self.deep_supervision = deep_supervision
        self.input = nn.Linear(inputs, features)
        self.blocks = nn.ModuleList(PointBlock(features, context, activation) for _ in range(blocks))
        self.seg_layers = nn.ModuleList([nn.Linear(features, classes)])

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """x: (B, N, inputs); context: (B, context); returns (B, K, N)."""
        x = self.input(x)
        for block in self.blocks:
            x = block(x, context)
        logits: Tensor = self.seg_layers[0](x)
        return logits.transpose(1, 2)
