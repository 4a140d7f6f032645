"""Checks inside training: the first batch against the contract, and where a loss that is not finite comes from.

Nothing here runs inside the network's forward in a normal step, so there are no graph breaks under ``torch.compile``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

CheckFunction = Callable[[Any, Any], None]


class NonFiniteLossError(RuntimeError):
    """A training step's loss is NaN or infinite; the message says where it arose."""


class ContractError(RuntimeError):
    """What the network returns does not fit the targets that nnU-Net makes for it."""


class LossGuard:
    """A loss function that looks at what it is given in training; otherwise it behaves as the loss it wraps.

    The first call with gradients enabled is checked. On devices without gradient scaler (CPU, MPS) the value of every
    such call is looked at before the backward pass, so that a NaN cannot reach the weights; with a scaler this would
    cost a synchronisation, and the scaler skips such a step by itself.

    Args:
        loss: nnU-Net's loss, called with (output, target).
        check: called with (output, target) of the first training batch; raises if they do not fit.
        every_step: look at the value at every training step.
    """

    def __init__(self, loss: Callable[..., Tensor], check: CheckFunction, every_step: bool) -> None:
        self.wrapped = loss
        self.every_step = every_step
        self._check: CheckFunction | None = check

    def __call__(self, output: Any, target: Any) -> Tensor:
        if not torch.is_grad_enabled():
            return self.wrapped(output, target)
        first = self._check is not None
        if self._check is not None:
            self._check(output, target)
            self._check = None
        loss = self.wrapped(output, target)
        if (first or self.every_step) and not math.isfinite(loss.item()):
            raise NonFiniteLossError(f"The loss is {loss.item()}.")
        return loss

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "wrapped":
            raise AttributeError(name)
        return getattr(self.wrapped, name)

    def __repr__(self) -> str:
        return f"LossGuard({self.wrapped!r})"


def check_outputs(output: Any, target: Any, heads: int, network_name: str) -> None:
    """Compare the network's outputs with the targets of a batch: number, order, channels and sizes.

    Args:
        output: (B, K, *spatial) or, with deep supervision, a list of these, highest resolution first.
        target: (B, 1 or more, *spatial) or a list of these, as nnU-Net's data loader makes them.
        heads: K, the label manager's number of segmentation heads.
        network_name: for the error text.

    Raises:
        ContractError: they do not fit.
    """
    supervised = isinstance(target, (list, tuple))
    if supervised != isinstance(output, (list, tuple)):
        got = _kind(output)
        wanted = f"a list of {len(target)} tensors (deep supervision is on)" if supervised else "one tensor"
        raise ContractError(
            f"{network_name} returns {got} where {wanted} is needed. The switch is network.decoder.deep_supervision; "
            "a network without it needs a trainer with `supports_deep_supervision = False`."
        )
    outputs, targets = (output, target) if supervised else ([output], [target])
    sizes, wanted_sizes = [_size(o) for o in outputs], [_size(t) for t in targets]
    if sizes != wanted_sizes:
        raise ContractError(
            f"{network_name} returns {len(outputs)} output(s) of (batch, *spatial) sizes {sizes}, but the targets are "
            f"{len(targets)} of {wanted_sizes}. Number, order (highest resolution first) and sizes must agree; the "
            "targets follow the plans' strides (see the trainer's _get_deep_supervision_scales)."
        )
    channels = [int(o.shape[1]) for o in outputs]
    if any(count != heads for count in channels):
        raise ContractError(
            f"{network_name} returns {channels} channels, but the labels need {heads} segmentation heads "
            "(regions: one each; an ignore label has none)."
        )


def _kind(output: Any) -> str:
    return f"a list of {len(output)}" if isinstance(output, (list, tuple)) else f"one {type(output).__name__}"


def _size(tensor: Tensor) -> tuple[int, ...]:
    """(B, *spatial) of a (B, C, *spatial) tensor."""
    return (int(tensor.shape[0]), *(int(edge) for edge in tensor.shape[2:]))


def explain_non_finite(
    network: nn.Module, data: Tensor, cases: Sequence[str], autocast: AbstractContextManager[Any] | None = None
) -> str:
    """Say in a sentence where values that are not finite come from: data, weights, a module, or the loss.

    Runs the (unwrapped, not compiled) network once more on the batch, without gradients. Buffers are put back.

    Args:
        network: as it was before the optimizer's step.
        data: (B, C, *spatial) on the network's device.
        cases: identifiers of the batch's cases, for the text.
        autocast: context of the forward pass.
    """
    if not torch.isfinite(data).all():
        bad = [i for i in range(len(data)) if not torch.isfinite(data[i]).all()]
        names = ", ".join(cases[i] for i in bad if i < len(cases)) or f"samples {bad} of the batch"
        return f"The input data itself is not finite ({names}): look at these cases' images, and preprocess them again."
    for name, parameter in network.named_parameters():
        if not torch.isfinite(parameter).all():
            return (
                f"The weights are already not finite, first in {name}: an earlier update has broken them. "
                "Continue from a checkpoint (--c) with a lower learning rate."
            )
    if any(isinstance(module, nn.SyncBatchNorm) for module in network.modules()):
        return "Input data and weights are finite; SyncBatchNorm forbids another forward pass to find the module."
    place = _first_non_finite(network, data, autocast or nullcontext())
    if place is None:
        return (
            "Input data, weights and all modules' outputs are finite, so it arises in the loss: look at the targets of "
            f"the batch ({', '.join(cases)})."
        )
    return f"Input data and weights are finite; the first value that is not finite arises {place}."


class _FoundError(Exception):
    """Stops the diagnosing forward pass at the first finding."""


def _first_non_finite(network: nn.Module, data: Tensor, autocast: AbstractContextManager[Any]) -> str | None:
    """Run ``network(data)`` with a look at every module's inputs and outputs; name the first bad one."""
    handles: list[RemovableHandle] = []

    def look(name: str) -> None:
        module = network.get_submodule(name)
        label = f"{name or 'the network itself'} ({type(module).__name__})"

        def before(_: nn.Module, inputs: Any) -> None:
            if not _finite(inputs):
                raise _FoundError(f"in the code that calls {label}, before it")

        def after(_: nn.Module, __: Any, outputs: Any) -> None:
            if not _finite(outputs):
                raise _FoundError(f"in {label}")

        handles.append(module.register_forward_pre_hook(before))
        handles.append(module.register_forward_hook(after))

    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    for name, _ in network.named_modules():
        look(name)
    try:
        with torch.no_grad(), autocast:
            network(data)
    except _FoundError as found:
        return str(found)
    finally:
        for handle in handles:
            handle.remove()
        with torch.no_grad():
            for name, buffer in network.named_buffers():
                buffer.copy_(buffers[name])
    return None


def _finite(values: Any) -> bool:
    return all(bool(torch.isfinite(tensor).all()) for tensor in _tensors(values))


def _tensors(values: Any) -> Iterator[Tensor]:
    """The floating point tensors in nested lists, tuples and dicts."""
    if isinstance(values, Tensor):
        if values.is_floating_point():
            yield values
    elif isinstance(values, (list, tuple)):
        for value in values:
            yield from _tensors(value)
    elif isinstance(values, dict):
        yield from _tensors(list(values.values()))
