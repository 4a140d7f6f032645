"""OSS-Net's encoders: a small residual CNN over the whole image, flattened to one or several latent vectors.

``specs/ossnet.md`` 1.2, 1.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from nnunet_ext.architectures.blocks.pade import PadeActivation
from nnunet_ext.architectures.blocks.pooling import pooled

_BATCH_NORM = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_MAX_POOL = {2: functional.adaptive_max_pool2d, 3: functional.adaptive_max_pool3d}
_AVERAGE_POOL: dict[int, Any] = {2: functional.avg_pool2d, 3: functional.avg_pool3d}


class AveragePool(nn.Module):
    """Average pooling that keeps nothing for backward where the stride divides the image.

    Args:
        stride: of each axis; a window is as large.
    """

    def __init__(self, stride: Sequence[int]) -> None:
        super().__init__()
        self.stride = tuple(int(step) for step in stride)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, *spatial) to (B, C, *spatial // stride)."""
        return average_pool(x, self.stride)


def average_pool(x: Tensor, stride: Sequence[int]) -> Tensor:
    """Averages of x (B, C, *spatial) over boxes of `stride` voxels; a rest at the end of an axis is left out."""
    divides = all(edge % step == 0 for edge, step in zip(x.shape[2:], stride, strict=True))
    if divides and (x.requires_grad or all(step == 1 for step in stride)):
        return pooled(x, stride)
    return cast(Tensor, _AVERAGE_POOL[len(stride)](x, stride, stride))


class ResidualBlock(nn.Module):
    """Convolution, norm, activation, pooling, convolution, norm; beside it a 1 x 1 x 1 convolution and pooling.

    The shortcut is pooled before its convolution, which gives the same and costs an eighth.

    Args:
        inputs, outputs: channels.
        stride: of the pooling, for each axis.
        conv_op: `torch.nn.Conv2d` or `torch.nn.Conv3d`.
    """

    def __init__(self, inputs: int, outputs: int, stride: Sequence[int], conv_op: type[nn.Module]) -> None:
        super().__init__()
        norm = _BATCH_NORM[len(stride)]
        self.main_mapping = nn.Sequential(
            conv_op(inputs, outputs, 3, padding=1, bias=False),
            norm(outputs),
            PadeActivation(),
            AveragePool(stride),
            nn.Identity(),  # the original's dropout, with rate 0
            conv_op(outputs, outputs, 3, padding=1, bias=False),
            norm(outputs),
        )
        same = inputs == outputs
        self.residual_mapping = nn.Identity() if same else conv_op(inputs, outputs, 1, bias=False)
        self.stride = tuple(stride)
        self.final_activation = PadeActivation()

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, *spatial) to (B, outputs, *spatial // stride)."""
        shortcut = self.residual_mapping(average_pool(x, self.stride))
        outputs: Tensor = self.final_activation(self.main_mapping(x) + shortcut)
        return outputs


class OccupancyEncoder(nn.Module):
    """Blocks, and a mapping of the last one (plain) or of all (skip) to the latent vectors.

    Args:
        channels: of the image, then of each block's output.
        strides: pooling of each block, for each axis.
        latent_shape: cells of each axis that are flattened to a latent vector; of the plain encoder the image decides.
        n_latents: latent vectors; 1 for the plain encoder.
        skip: all blocks contribute, at `latent_shape`.
        head: beside the latents, logits of a coarse segmentation; skip encoders only.
        conv_op: `torch.nn.Conv2d` or `torch.nn.Conv3d`.
    """

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[Sequence[int]],
        latent_shape: Sequence[int],
        n_latents: int,
        skip: bool,
        head: bool,
        conv_op: type[nn.Module],
    ) -> None:
        super().__init__()
        self.latent_shape = tuple(latent_shape)
        dim = len(self.latent_shape)
        norm = _BATCH_NORM[dim]
        pairs = zip(channels[:-1], channels[1:], strides, strict=True)
        self.blocks = nn.ModuleList(ResidualBlock(a, b, stride, conv_op) for a, b, stride in pairs)
        widths = [channels[-1]]
        self.output_mappings: nn.ModuleList | None = None
        if skip:
            widths = [max(width // 2, 1) for width in channels[1:]]
            self.output_mappings = nn.ModuleList(
                nn.Sequential(
                    _AdaptiveMaxPool(self.latent_shape),
                    conv_op(width, half, 5, padding=2, bias=False),
                    norm(half),
                    PadeActivation(),
                )
                for width, half in zip(channels[1:], widths, strict=True)
            )
        self.final_mapping = nn.Sequential(
            conv_op(sum(widths), n_latents, 5, padding=2), norm(n_latents), PadeActivation()
        )
        self.segmentation_mapping: nn.Sequential | None = None
        if head:
            self.segmentation_mapping = nn.Sequential(conv_op(channels[-1], 1, 5, padding=2, bias=False))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Latents and coarse logits of images at half resolution.

        Args:
            x: (B, C, *spatial).

        Returns:
            Latents (B, latents, cells), and logits (B, 1, *cells of the last block) or None.
        """
        outputs = []
        for i, block in enumerate(self.blocks):
            x = block(x)
            if self.output_mappings is not None:
                outputs.append(self.output_mappings[i](x))
        features = torch.cat(outputs, 1) if outputs else x
        logits = None if self.segmentation_mapping is None else self.segmentation_mapping(x)
        return cast(Tensor, self.final_mapping(features)).flatten(2), logits


class _AdaptiveMaxPool(nn.Module):
    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.shape = tuple(shape)

    def forward(self, x: Tensor) -> Tensor:
        return _MAX_POOL[len(self.shape)](x, self.shape)
