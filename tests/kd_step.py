"""A foreign network and a step with self-regularisation; light to import, for tests in several processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import support
import torch
from torch import Tensor, nn

from nnunet_ext.losses.points import KDPoint, KDPoints
from nnunet_ext.losses.self_regularisation import Options, SelfRegularisation
from nnunet_ext.losses.store import FeatureStore


class Foreign(nn.Module):
    """A U-shaped network of somebody else's: other names, a tuple, and features in channels-last order."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.deep = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(4, 6)
        self.bottom, self.up = nn.LSTM(6, 5, batch_first=True), nn.Linear(5, 4)
        self.join, self.head = nn.Conv2d(8, 4, 3, padding=1), nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        wide = self.wide(x)
        deep = self.deep(nn.functional.avg_pool2d(wide, 2).movedim(1, -1))
        tokens, _ = self.bottom(deep.flatten(1, 2))
        up = self.up(tokens).unflatten(1, deep.shape[1:3]).movedim(-1, 1)
        joined = self.join(torch.cat([wide, nn.functional.interpolate(up, scale_factor=2)], 1))
        logits: Tensor = self.head(joined)
        return logits


class StatedForeign(Foreign):
    """The same with its points."""

    def kd_points(self) -> KDPoints:
        return KDPoints(
            encoder=((KDPoint("deep", lambda y: y.movedim(-1, 1)),),),
            decoder=((KDPoint("bottom", lambda y: y[0].movedim(-1, 1).unflatten(2, (4, 6))),),),
            teacher=KDPoint("join"),
        )


def step(network: Callable[[Tensor], Any], store: FeatureStore, x: Tensor) -> Tensor:
    """Loss of a training step with KD at weight 1, backward done."""
    outputs = network(x)
    squares = [y.square().mean() for y in ([outputs] if isinstance(outputs, Tensor) else outputs)]
    features = store.take()
    assert features is not None
    regularise = SelfRegularisation(Options(1.0, 1.0))
    value = torch.stack(squares).sum() + regularise.total(regularise(features))
    value.backward()
    return value.detach()


def gradients(network: nn.Module) -> Tensor:
    """Of all parameters that have one, in one vector."""
    return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])


def seeded() -> nn.Module:
    """The foreign network, the same every time, training."""
    torch.manual_seed(0)
    return StatedForeign().train()


def halves() -> tuple[Tensor, ...]:
    """The batches of two processes."""
    return torch.randn(4, 1, 8, 12, generator=torch.Generator().manual_seed(5)).chunk(2)


def parallel_step(rank: int, folder: str) -> Tensor:
    """The gradients that one of two processes gets of a DDP step with KD on its half."""
    network = seeded()
    with support.one_of_two(rank, folder):
        store = FeatureStore(network)
        step(nn.parallel.DistributedDataParallel(network), store, halves()[rank])
    return gradients(network)


def other_process(index: int, folder: str) -> None:
    """The second process."""
    torch.set_num_threads(1)
    parallel_step(index + 1, folder)
