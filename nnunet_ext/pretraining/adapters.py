"""What pre-training needs of a network beside its output: its deepest features and the first of its decoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nnunet_ext.errors import UserError
from nnunet_ext.losses.points import KDPoint, points_of


@dataclass(frozen=True)
class Features:
    """Of one forward pass.

    Attributes:
        neck: (B, C_n, *grid), the deepest encoder stage.
        context: (B, C_c, *finer grid), the first decoder stage.
        reconstruction: (B, C, *patch), the network's output.
    """

    neck: Tensor
    context: Tensor
    reconstruction: Tensor


class Adapter(nn.Module):
    """A network made with as many classes as the image has channels, and where its features are.

    A module that a forward pass calls several times (SSH-UNet's three views) gives the mean of its maps. The hooks live
    for one forward pass, so that copies of the adapter are as good as the original.

    Args:
        network: built for pre-training: outputs are channels of the image, deep supervision is off.
        neck: where the deepest features are.
        context: where those of the first decoder stage are.
        channels: of both.
        total_stride: voxels of the image along each axis for one position of the deepest features.

    Attributes:
        network: its state dict is what is exported.
        neck_channels, context_channels: widths of the two maps.
        total_stride: see above.
    """

    def __init__(
        self,
        network: nn.Module,
        neck: KDPoint,
        context: KDPoint,
        channels: tuple[int, int] = (0, 0),
        total_stride: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.network = network
        self.points = (neck, context)
        self.neck_channels, self.context_channels = channels
        self.total_stride = tuple(total_stride)

    def forward(self, x: Tensor) -> Features:
        """Features of a batch (B, C, *patch)."""
        taken: tuple[list[Tensor], list[Tensor]] = ([], [])
        handles = [
            self.network.get_submodule(point.module).register_forward_hook(partial(_take, pieces, point.select))
            for point, pieces in zip(self.points, taken, strict=True)
        ]
        try:
            reconstruction: Tensor = self.network(x)
        finally:
            for handle in handles:
                handle.remove()
        neck, context = (torch.stack(pieces).mean(0) if len(pieces) > 1 else pieces[0] for pieces in taken)
        return Features(neck, context, reconstruction)

    def checkpoint_stages(self) -> None:
        """From now on keep no activations inside of stages; they are computed again in the backward pass."""
        for stage in _stages(self.network):
            if not isinstance(stage.forward, partial):
                stage.forward = partial(checkpoint, stage.forward, use_reentrant=False)


def make_adapter(network: nn.Module, input_channels: int, patch_size: Sequence[int]) -> Adapter:
    """The adapter for a network of nnU-Net's, of ours, or any other with known feature points.

    Args:
        network: see `Adapter`.
        input_channels: C.
        patch_size: of the images, in voxels.

    Raises:
        UserError: the network's features are not known (``nnunet_ext.losses.points``), its output is not an image, or
            it cannot take such patches.
    """
    if hasattr(network, "view_execution"):  # maps of one batch of views would be in the views' axes
        setattr(network, "view_execution", "sequential")  # noqa: B010  # not an attribute of every module
    try:
        points = points_of(network)
    except NotImplementedError as error:
        raise UserError(f"{type(network).__name__} cannot be pre-trained: {error}") from error
    if not points.encoder or not points.decoder:
        raise UserError(
            f"{type(network).__name__} cannot be pre-trained with stages this few: it needs two encoder and two "
            "decoder stages"
        )
    neck, context = points.encoder[-1][-1], points.decoder[0][-1]
    try:
        found = _probe(Adapter(network, neck, context), input_channels, patch_size)
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"{type(network).__name__} cannot be pre-trained on patches of {tuple(patch_size)}: "
            f"{str(error).splitlines()[0]}; choose another --patch, such as the plans' own"
        ) from error
    expected = (1, input_channels, *patch_size)
    if tuple(found.reconstruction.shape) != expected:
        raise UserError(
            f"{type(network).__name__} cannot be pre-trained: of an image {expected} it makes "
            f"{tuple(found.reconstruction.shape)}"
        )
    stride = [edge // cells for edge, cells in zip(patch_size, found.neck.shape[2:], strict=True)]
    return Adapter(network, neck, context, (found.neck.shape[1], found.context.shape[1]), stride)


def _take(pieces: list[Tensor], select: Callable[[Any], Tensor] | None, _: nn.Module, __: Any, output: Any) -> None:
    pieces.append(output if select is None else select(output))


@torch.no_grad()
def _probe(adapter: Adapter, channels: int, patch_size: Sequence[int]) -> Features:
    """One forward pass without arithmetic, on a copy of shapes only."""
    from copy import deepcopy

    shapes = deepcopy(adapter).to("meta").eval()
    found: Features = shapes(torch.empty(1, channels, *patch_size, device="meta"))
    return found


def _stages(network: nn.Module) -> list[nn.Module]:
    """Encoder and decoder stages; for networks that name them otherwise, the modules of their feature points."""
    stages = [getattr(getattr(network, part, None), "stages", None) for part in ("encoder", "decoder")]
    if all(isinstance(found, (nn.ModuleList, nn.Sequential)) for found in stages):
        return [stage for found in stages if found is not None for stage in found.children()]
    points = points_of(network)
    names = {point.module for point in (*points.students, points.teacher)}
    return [network.get_submodule(name) for name in sorted(names)]
