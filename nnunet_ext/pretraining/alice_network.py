"""Alice's trained module: the plans' network, the head and CASA, in one forward pass (specification alice 1.6)."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional

from nnunet_ext.architectures.alice_head import AliceHead, Projections
from nnunet_ext.architectures.casa import CASA
from nnunet_ext.pretraining.adapters import Adapter, Features
from nnunet_ext.pretraining.alice_options import AliceOptions


class AliceOutputs(NamedTuple):
    """Of one forward pass over N = 2*B views.

    Attributes:
        cls: (N, K) logits of whole views.
        encoder: (N, L_q, K) logits of the neck's positions, detached: the queries of the teacher's alignment.
        aligned: (N, L_q, K) logits of the same, completed by CASA from the decoder's.
        reconstruction: (N, C, *patch).
    """

    cls: Tensor
    encoder: Tensor
    aligned: Tensor
    reconstruction: Tensor


class AliceNetwork(nn.Module):
    """Adapter, head and CASA; the teacher is a copy of it.

    Args:
        adapter: around the plans' network.
        options: sizes of head and CASA.
    """

    def __init__(self, adapter: Adapter, options: AliceOptions) -> None:
        super().__init__()
        self.adapter = adapter
        self.head = AliceHead(
            adapter.neck_channels,
            adapter.context_channels,
            options.width,
            options.hidden,
            options.bottleneck,
            options.prototypes,
        )
        self.casa: nn.Module = CASA(options.prototypes, options.heads, options.casa_hidden, options.dropout)
        self.token_cap, self.aligned_scale = options.token_cap, options.aligned_scale

    def project(self, images: Tensor) -> tuple[Features, Projections]:
        """Features and logits of images (N, C, *patch); the maps have at most `token_cap` positions."""
        features: Features = self.adapter(images)
        cls = features.neck.flatten(2).mean(2)
        neck, context = capped(features.neck, self.token_cap), capped(features.context, self.token_cap)
        projections: Projections = self.head(cls, neck, context)
        return Features(neck, context, features.reconstruction), projections

    def forward(self, images: Tensor) -> AliceOutputs:
        """The student's outputs for masked images (N, C, *patch)."""
        features, projections = self.project(images)
        aligned = self.aligned_scale * self.casa(projections.encoder, projections.decoder)
        return AliceOutputs(projections.cls, projections.encoder.detach(), aligned, features.reconstruction)


def capped(features: Tensor, cap: int) -> Tensor:
    """A map with at most `cap` positions, by averages over windows; the longest axis is halved first.

    Args:
        features: (N, C, *grid).
        cap: positions.

    Returns:
        (N, C, *coarser grid).
    """
    grid = features.shape[2:]
    window = [1] * len(grid)

    def cells() -> list[int]:
        return [math.ceil(n / edge) for n, edge in zip(grid, window, strict=True)]

    while math.prod(cells()) > max(1, cap):
        window[cells().index(max(cells()))] *= 2
    return functional.avg_pool3d(features, window, window, ceil_mode=True) if max(window) > 1 else features


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Move the teacher's parameters towards the student's of the same name, and copy the buffers.

    Args:
        teacher: has no parameters by other names than the student's.
        student: not wrapped.
        momentum: what remains of the teacher's values.
    """
    parameters, buffers = dict(student.named_parameters()), dict(student.named_buffers())
    for name, parameter in teacher.named_parameters():
        parameter.lerp_(parameters[name].detach(), 1 - momentum)
    for name, buffer in teacher.named_buffers():
        buffer.copy_(buffers[name])


def broadcast(module: nn.Module) -> None:
    """Give all processes the first one's parameters and buffers; nothing happens without a distributed training."""
    if distributed.is_available() and distributed.is_initialized():
        for tensor in module.state_dict().values():
            distributed.broadcast(tensor, 0)


@torch.no_grad()
def share_statistics(module: nn.Module) -> None:
    """Give all processes the first one's running statistics, as `DistributedDataParallel` does for the student's.

    A checkpoint holds the first process's alone: with others, a training that goes on would be another one.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return
    running = [b for name, b in module.named_buffers() if name.endswith(("running_mean", "running_var"))]
    if running:
        joined = torch.cat([buffer.flatten() for buffer in running])
        distributed.broadcast(joined, 0)
        for buffer, part in zip(running, joined.split([b.numel() for b in running]), strict=True):
            buffer.copy_(part.view_as(buffer))
