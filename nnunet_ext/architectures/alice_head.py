"""Alice's projection head: features become logits over prototypes (specification alice 1.6; iBOT's head)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional


class Projections(NamedTuple):
    """Logits over K prototypes.

    Attributes:
        cls: (B, K), of the whole view.
        encoder: (B, L_n, K), of the neck's positions in the grid's order.
        decoder: (B, L_c, K), of the context's positions.
    """

    cls: Tensor
    encoder: Tensor
    decoder: Tensor


class Prototypes(nn.Module):
    """A linear layer without bias whose rows have length `scale`; computed in float32.

    Args:
        features: width of the input.
        number: of prototypes, K.

    Attributes:
        weight: (K, features); only its rows' directions matter.
        scale: (K, 1), all 1; a buffer, for it is never trained.
    """

    def __init__(self, features: int, number: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.Linear(features, number, bias=False).weight.detach().clone())
        self.register_buffer("scale", torch.ones(number, 1))
        self.scale: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Logits (..., K) of x (..., features)."""
        with torch.autocast("cpu" if x.is_meta else x.device.type, enabled=False):
            weight = self.weight.float()
            return functional.linear(x.float(), weight * (self.scale / weight.norm(dim=1, keepdim=True)))


class AliceHead(nn.Module):
    """Three-layer MLP to a normalised bottleneck, and prototypes for the whole view and for positions.

    Args:
        neck_channels: width of the network's deepest features.
        context_channels: width of its first decoder stage.
        width: of the MLP's input. Where the neck has another width, the view's mean feature goes through a linear
            layer of its own (published networks have none: both are 384).
        hidden: width of the MLP.
        bottleneck: width of its output.
        prototypes: K.
    """

    def __init__(
        self,
        neck_channels: int,
        context_channels: int,
        width: int = 384,
        hidden: int = 2048,
        bottleneck: int = 256,
        prototypes: int = 512,
    ) -> None:
        super().__init__()
        self.cls_projection: nn.Module = nn.Identity() if neck_channels == width else nn.Linear(neck_channels, width)
        self.neck_projection = nn.Linear(neck_channels, width)
        self.context_projection = nn.Linear(context_channels, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, bottleneck)
        )
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        self.cls_prototypes = Prototypes(bottleneck, prototypes)
        self.patch_prototypes = Prototypes(bottleneck, prototypes)

    def share_prototypes(self) -> None:
        """Let the published teacher's one matrix serve both: it begins as the positions', and keeps the view's name."""
        self.cls_prototypes.load_state_dict(self.patch_prototypes.state_dict())
        self.patch_prototypes = self.cls_prototypes

    def forward(self, cls: Tensor, neck: Tensor, context: Tensor) -> Projections:
        """Logits of a view and of its positions.

        Args:
            cls: (B, C_n), the mean of the neck.
            neck: (B, C_n, *grid).
            context: (B, C_c, *finer grid).
        """
        return Projections(
            self.cls_prototypes(self._bottleneck(self.cls_projection(cls))),
            self.patch_prototypes(self._bottleneck(self.neck_projection(neck.flatten(2).mT))),
            self.patch_prototypes(self._bottleneck(self.context_projection(context.flatten(2).mT))),
        )

    def _bottleneck(self, x: Tensor) -> Tensor:
        return functional.normalize(self.mlp(x).float(), dim=-1)
