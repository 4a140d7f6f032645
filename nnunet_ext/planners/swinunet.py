"""Planner for Swin-Unet: the 2d configuration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from nnunet_ext.architectures.swinunet_plans import BASE_WIDTH, swinunet_architecture, swinunet_strides, total_stride
from nnunet_ext.planners.base import BasePlanner, Topology
from nnunet_ext.planners.variants import variant_attribute


class SwinUNetPlanner(BasePlanner):
    """Plans 2d for `SwinUNet` and leaves the 3d configurations on nnU-Net's network.

    Patches are multiples of 32 pixels along each axis and keep the images' aspect ratio; smaller images are padded by
    nnU-Net. The network has the four published stages whatever the patch is, and its own measured need of memory. The
    width (`_W<n>`) is that of the patch embedding.

    Reference: specification selfreg 4.8.
    """

    dimensions: ClassVar[tuple[int, ...]] = (2,)
    base_width: ClassVar[int] = BASE_WIDTH

    def topology(self, spacing: Sequence[float], patch_size: Sequence[int]) -> Topology:
        step = total_stride()
        patch = tuple(-(-max(1, int(edge)) // step) * step for edge in patch_size)
        strides = tuple(tuple(stride) for stride in swinunet_strides())
        return Topology(patch, strides, ((3, 3),) * len(strides), (step, step))

    def architecture_block(self, topology: Topology) -> dict[str, Any]:
        return swinunet_architecture(topology.patch_size, base_width=self.base_width)


__getattr__ = variant_attribute(__name__)
