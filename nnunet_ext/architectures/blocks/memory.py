"""What a network keeps for its backward pass, measured without computing anything.

nnU-Net's planners choose patch and batch size from a count of convolution outputs, calibrated for nnU-Net's own
networks. Other networks keep other things (norms, gates, copies, recomputed activations), so here the count is
replaced by a measurement: one training forward on torch's meta device, which has shapes and storages but neither
memory nor arithmetic, while `torch.autograd.graph.saved_tensors_hooks` tells every tensor that autograd keeps. It
takes milliseconds and does not depend on the machine.

nnU-Net's unit. An element that nnU-Net counts is the output of a convolution. Of a `PlainConvUNet` autograd keeps
each of them twice, the output itself for the norm and the activation for the next convolution, in float32 for the
reference's two samples: `BYTES_PER_UNIT` = 2 x 4 x 2 = 16 bytes. The measurement agrees within 0.1 % from 2 to 118
classes, in 2D and 3D (the rest are the norms' statistics); the skip connections fit because the concatenation holds
what the transposed convolution's output would have held twice. Divided by this constant any network is measured in
nnU-Net's units and can be held against nnU-Net's references.

What the number leaves out: weights, gradients and the optimizer's state, copies that the loss makes, the workspace of
convolutions, and mixed precision. All of these are in nnU-Net's references in the same way.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

#: Bytes that nnU-Net's PlainConvUNet keeps for backward, per element of its own count (batch of 2, float32).
BYTES_PER_UNIT = 16.0

#: The batch size for which nnU-Net's reference values stand.
REFERENCE_BATCH_SIZE = 2


def saved_bytes(
    network: nn.Module,
    input_size: Sequence[int],
    input_channels: int,
    batch_size: int = REFERENCE_BATCH_SIZE,
) -> int:
    """Bytes that one training step keeps between forward and backward, in float32.

    Counted are the distinct storages that autograd keeps, without the network's inputs, parameters and buffers, and
    twice the outputs (logits and the probabilities that the loss makes of them). The network runs in training mode
    with deep supervision on, as nnU-Net trains; `network` itself is neither run nor changed.

    A network whose forward pass needs more than an image, or whose shapes depend on data, may have a method
    `memory_probe(patch_size, batch_size) -> tuple` that returns the arguments for its forward pass, on the device of
    its parameters.

    Activation checkpointing shows at most its inputs here: the recomputed segment has to be added by whoever uses it.

    Args:
        network: On any device, the meta device included.
        input_size: Patch size in voxels, (D, H, W) or (H, W).
        input_channels: Channels of the input image.
        batch_size: Samples a step.

    Returns:
        Bytes. Proportional to `batch_size` up to the statistics of norms.
    """
    with torch.inference_mode(False):  # autograd refuses tensors that were made in inference mode
        probe = _meta_copy(network).train()
        for module in probe.modules():
            if isinstance(getattr(module, "deep_supervision", None), bool):
                module.deep_supervision = True  # type: ignore[assignment]  # the module's own switch, a plain bool
        inputs = training_inputs(probe, tuple(int(i) for i in input_size), input_channels, batch_size)
        return kept_for_backward(lambda: probe(*inputs), exclude=[*inputs, *probe.parameters(), *probe.buffers()])


def conv_feature_map_units(network: nn.Module, input_size: Sequence[int]) -> int:
    """The network's need in the units of nnU-Net's `compute_conv_feature_map_size` and of its planners' references.

    Args:
        network: Has an attribute `input_channels`.
        input_size: Patch size in voxels, (D, H, W) or (H, W).

    Returns:
        `saved_bytes` for nnU-Net's reference batch, divided by `BYTES_PER_UNIT`.
    """
    return round(saved_bytes(network, input_size, cast(int, network.input_channels)) / BYTES_PER_UNIT)


def kept_for_backward(forward: Callable[[], Any], exclude: Iterable[Any] = ()) -> int:
    """Bytes of the distinct storages that autograd keeps while `forward` runs, plus twice its outputs.

    Works on every device. Nothing can be differentiated afterwards: the tensors are counted, not kept.

    Args:
        forward: Runs a forward pass and returns its outputs: a tensor, or lists, tuples and dicts of tensors.
        exclude: Tensors (nested as above) whose storages are not counted.
    """
    excluded = {tensor.untyped_storage()._cdata for tensor in _tensors(list(exclude))}
    kept: dict[int, torch.UntypedStorage] = {}  # holds the storages: a freed one's address would be used again

    def pack(tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        kept.setdefault(storage._cdata, storage)

    def unpack(_: None) -> Tensor:
        raise RuntimeError("kept_for_backward only counts: this graph cannot be differentiated.")

    with (
        torch.enable_grad(),
        torch.autograd.graph.saved_tensors_hooks(pack, unpack),
    ):
        outputs = forward()
    total = sum(storage.nbytes() for address, storage in kept.items() if address not in excluded)
    return total + 2 * sum(output.numel() * output.element_size() for output in _tensors(outputs))


def _meta_copy(network: nn.Module) -> nn.Module:
    """A copy of the network on the meta device in float32, made without copying any weights."""
    memo: dict[int, Any] = {}
    for parameter in network.parameters():
        memo[id(parameter)] = nn.Parameter(_meta_like(parameter), requires_grad=parameter.requires_grad)
    for buffer in network.buffers():
        memo[id(buffer)] = _meta_like(buffer)
    return copy.deepcopy(network, memo)


def _meta_like(tensor: Tensor) -> Tensor:
    dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
    return torch.empty_like(tensor.detach(), device="meta", dtype=dtype)


def training_inputs(
    network: nn.Module, input_size: Sequence[int], channels: int, batch_size: int = 1
) -> tuple[Any, ...]:
    """Arguments of a training step's forward pass, on the device of the network's parameters.

    Args:
        network: with a method `memory_probe`, asked for them (see `saved_bytes`).
        input_size: patch size in voxels, (D, H, W) or (H, W).
        channels: channels of the image.
        batch_size: samples.
    """
    probe = getattr(network, "memory_probe", None)
    if probe is not None:
        return tuple(probe(input_size, batch_size))
    return (torch.empty(batch_size, channels, *input_size, device=next(network.parameters()).device),)


def _tensors(nested: Any) -> Iterator[Tensor]:
    """All tensors in nested lists, tuples and dicts."""
    if isinstance(nested, Tensor):
        yield nested
    elif isinstance(nested, dict):
        for value in nested.values():
            yield from _tensors(value)
    elif isinstance(nested, (list, tuple)):
        for value in nested:
            yield from _tensors(value)
