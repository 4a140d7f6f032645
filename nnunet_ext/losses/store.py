"""Takes a network's features while it trains, by forward hooks that leave its code and its state dict alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from nnunet_ext.losses.points import KDPoint, KDPoints, points_of
from nnunet_ext.losses.self_regularisation import Features


@dataclass(frozen=True)
class _Taken:
    """A piece of a map, and torch's count of changes in place at the time (None within compiled code)."""

    tensor: Tensor
    version: int | None


class _Hook:
    """A hook of a store; without a point, that of the whole network before it runs.

    A copy of the network, deep or by pickle, must not fill this network's store: copies get a hook that does nothing.
    """

    def __init__(self, store: FeatureStore | None = None, point: KDPoint | None = None) -> None:
        self.store, self.point = store, point

    def __call__(self, module: nn.Module, _inputs: Any, output: Any = None) -> None:
        if self.store is None:
            return
        if self.point is None:
            self.store.begin(armed=module.training and torch.is_grad_enabled())
        elif self.store.armed:
            tensor = output if self.point.select is None else self.point.select(output)
            version = None if torch.compiler.is_compiling() else tensor._version
            self.store.taken[self.point].append(_Taken(tensor, version))

    def __deepcopy__(self, _: Any) -> _Hook:
        return _Hook()

    def __reduce__(self) -> tuple[type[_Hook], tuple[()]]:
        return _Hook, ()


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
        self.taken: dict[KDPoint, list[_Taken]] = {point: [] for point in (*self.points.students, self.points.teacher)}
        self._handles: list[RemovableHandle] = [network.register_forward_pre_hook(_Hook(self, None))]
        for point in self.taken:
            self._handles.append(network.get_submodule(point.module).register_forward_hook(_Hook(self, point)))

    def begin(self, armed: bool) -> None:
        """Forget an earlier forward pass; `armed`: take this one's features."""
        for taken in self.taken.values():
            taken.clear()
        self.armed = armed

    def take(self) -> Features | None:
        """The features, once; None after a forward pass that did not train.

        Of several forward passes the last one's are taken: use the loss after each.

        Raises:
            RuntimeError: a training forward gave nothing, or a feature was overwritten before the loss.
        """
        if not self.armed:
            return None
        taken = {point: list(pieces) for point, pieces in self.taken.items()}
        self.begin(armed=False)
        _check(taken)
        maps = {point: [piece.tensor for piece in pieces] for point, pieces in taken.items()}
        encoder, decoder = (
            [[maps[point] for point in stage] for stage in stages]
            for stages in (self.points.encoder, self.points.decoder)
        )
        return Features(encoder, decoder, maps[self.points.teacher])

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()


def _check(taken: Mapping[KDPoint, Sequence[_Taken]]) -> None:
    missing = [point.module for point, pieces in taken.items() if not pieces]
    if missing:
        raise RuntimeError(
            f"KD got no features of {', '.join(missing)} in a training forward: the modules were not called, or "
            "the network was compiled and called before KD was attached (the trainer's initialize() does it)."
        )
    numbers = {point.module: len(pieces) for point, pieces in taken.items()}
    if len(set(numbers.values())) > 1:
        raise RuntimeError(
            f"KD needs modules that are called equally often in a forward pass; got {numbers}: name modules around the "
            "calls in kd_points()."
        )
    for point, pieces in taken.items():
        if any(piece.version is not None and piece.tensor._version != piece.version for piece in pieces):
            raise RuntimeError(
                f"KD's feature {point.module} was overwritten after its module (an operation in place): name the "
                "result of the whole block or stage in kd_points()."
            )


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
