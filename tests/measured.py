"""Memory that autograd really keeps, to hold estimates against."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from nnunet_ext.trainers.ossnet import OSSNetTrainer


def really_saved_bytes(network: nn.Module, shape: tuple[int, ...]) -> int:
    """Counted on a real device with code of its own: by address, the outputs twice.

    Networks that decode points get them as their trainer draws them: at voxel centres, then between them.
    """
    network.train()
    x = torch.randn(shape)
    inputs: list[Any] = [x]
    if hasattr(network, "n_points"):
        points: Any = network.n_points
        centred = points - round(points * OSSNetTrainer.jitter)
        coords = torch.rand(shape[0], points, len(shape) - 2) * (min(shape[2:]) - 1)
        inputs += [torch.cat([coords[:, :centred].round(), coords[:, centred:]], 1), centred]
    skip = {t.untyped_storage().data_ptr() for t in (*inputs, *network.parameters()) if isinstance(t, Tensor)}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.detach()
        return tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = network(*inputs)
    saved = sum(t.untyped_storage().nbytes() for address, t in kept.items() if address not in skip)
    return saved + 2 * sum(o.numel() * o.element_size() for o in _flat(outputs))


def _flat(outputs: Any) -> list[Tensor]:
    if isinstance(outputs, (list, tuple)):
        return [tensor for output in outputs for tensor in _flat(output)]
    return [outputs]
