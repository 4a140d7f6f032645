"""Planner for nnFormer: the 3D configurations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from nnunet_ext.architectures.grids import total_stride
from nnunet_ext.architectures.nnformer_plans import BASE_WIDTH, fitting_topology, nnformer_architecture
from nnunet_ext.planners.base import BasePlanner, Topology
from nnunet_ext.planners.variants import variant_attribute


class NNFormerPlanner(BasePlanner):
    """Plans 3d_fullres and 3d_lowres for `NNFormer` of Alice's widths and leaves 2d on nnU-Net's network.

    The network has four stages of tokens; the patch embedding and each merging halve every axis that keeps at least two
    positions and whose voxels are less than twice as long as the shortest (nnU-Net's rule). Where voxels are about
    cubes that is Alice's network, and its weights fit as they are. The width (`_W<n>`) is that of the first stage of
    tokens: 48, Alice's; the original nnFormer has 192.

    Reference: specification alice 1.5, 2.
    """

    dimensions: ClassVar[tuple[int, ...]] = (3,)
    base_width: ClassVar[int] = BASE_WIDTH

    def topology(self, spacing: Sequence[float], patch_size: Sequence[int]) -> Topology:
        patch, strides = fitting_topology([int(edge) for edge in patch_size], [float(mm) for mm in spacing])
        listed = tuple(tuple(stride) for stride in strides)
        return Topology(patch, listed, ((3, 3, 3),) * len(listed), total_stride(strides))

    def architecture_block(self, topology: Topology) -> dict[str, Any]:
        return nnformer_architecture(topology.patch_size, topology.strides, base_width=self.base_width)


__getattr__ = variant_attribute(__name__)
