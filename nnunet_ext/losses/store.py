"""Takes a network's features while it trains, by forward hooks that leave its code and its state dict alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from nnunet_ext.losses.points import KDPoint, KDPoints, points_of
from nnunet_ext.losses.self_regularisation import Features


class FeatureStore:
    """The features of the last training forward; nothing in evaluation mode or without gradients.

    Attach it before the first call of a compiled network: later hooks would not be compiled in. A module that is called
    several times in a forward pass (SSH-UNet's three views) gives a map in as many pieces.

    Args:
        network: without the wrappers of DDP and torch.compile.
        points: what to take; None: what the network states.
    """

    def __init__(self, network: nn.Module, points: KDPoints | None = None) -> None:
        self.points = points or points_of(network)
        self.armed = False
        self._taken: dict[KDPoint, list[Tensor]] = {point: [] for point in (*self.points.students, self.points.teacher)}
        self._handles: list[RemovableHandle] = [network.register_forward_pre_hook(self._begin)]
        for point in self._taken:
            self._handles.append(network.get_submodule(point.module).register_forward_hook(self._hook(point)))

    def _begin(self, module: nn.Module, _: Any) -> None:
        """Forget an earlier forward pass; take this one's features only if it trains."""
        for taken in self._taken.values():
            taken.clear()
        self.armed = module.training and torch.is_grad_enabled()

    def _hook(self, point: KDPoint) -> Any:
        taken, select = self._taken[point], point.select

        def take(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if self.armed:
                taken.append(output if select is None else select(output))

        return take

    def take(self) -> Features | None:
        """The features, once; None after a forward pass that did not train.

        Raises:
            RuntimeError: a training forward gave nothing.
        """
        if not self.armed:
            return None
        self.armed = False
        missing = [point.module for point, taken in self._taken.items() if not taken]
        if missing:
            raise RuntimeError(
                f"KD got no features of {', '.join(missing)} in a training forward: the modules were not called, or "
                "the network was compiled and called before KD was attached (the trainer's initialize() does it)."
            )
        maps = {point: list(taken) for point, taken in self._taken.items()}
        for taken in self._taken.values():
            taken.clear()
        encoder, decoder = (
            [[maps[point] for point in stage] for stage in stages]
            for stages in (self.points.encoder, self.points.decoder)
        )
        return Features(encoder, decoder, maps[self.points.teacher])

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()


@contextmanager
def capture(network: nn.Module, points: KDPoints | None = None) -> Iterator[FeatureStore]:
    """A store for a training loop of one's own; its hooks are removed at the end.

    Args:
        network: see `FeatureStore`.
        points: see `FeatureStore`.
    """
    store = FeatureStore(network, points)
    try:
        yield store
    finally:
        store.remove()
