"""Planners for SSH-UNet: as nnU-Net would plan it, and as it was published."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Sequence
from typing import Any, ClassVar

import numpy as np

from nnunet_ext.architectures.sshunet_plans import default_features, sshunet_architecture
from nnunet_ext.planners.base import BasePlanner, Choice, Topology
from nnunet_ext.planners.variants import variant_attribute

logger = logging.getLogger(__name__)

MIN_STAGES = 3
PUBLISHED_STRIDES = ((1, 1, 1),) + ((2, 2, 2),) * 4


class SSHUNetPlanner(BasePlanner):
    """Plans 3d_fullres and 3d_lowres for `SSHUNet` and leaves 2d on nnU-Net's network.

    SSH-UNet passes a volume three times through the same weights, sliced along its three axes, so it needs more
    memory than a plain network and gets smaller patches. Stages and strides are nnU-Net's, at least three, and no
    axis is halved below four voxels, so that every view has slices to shift. Kernels are 1 x 3 x 3 in view
    coordinates. The plans ask for temporal shift (TSM) and sum fusion; trainers change that by their suffixes. Images
    for which nnU-Net would plan two stages get a patch that is larger than they are, which nnU-Net pads.

    Reference: specification sshunet 6.4.
    """

    dimensions: ClassVar[tuple[int, ...]] = (3,)
    smallest_edge: ClassVar[int] = 4

    def topology(self, spacing: Sequence[float], patch_size: Sequence[int]) -> Topology:
        """nnU-Net's topology; a patch too small for three stages grows along its finest axes."""
        return self.topology_of_stages(MIN_STAGES, spacing, patch_size)

    def architecture_block(self, topology: Topology) -> dict[str, Any]:
        return sshunet_architecture(topology.strides, default_features(topology.n_stages, self.base_width))


class SSHUNetPlanner_Published(SSHUNetPlanner):  # noqa: N801  # our grammar of names
    """The published setting: 1 mm isotropic voxels, patches of 96^3, five stages of 32 to 320 features, batches of 8.

    No low-resolution configuration, as in the paper. `-gpu_memory_target` changes the 2d configuration only, which is
    nnU-Net's, planned as with `-overwrite_target_spacing 1 1 1`; that option overrules the 1 mm. Axes along which
    images are smaller than the patch get a patch that just holds the median image (a multiple of 16 voxels, at least
    32) instead of padding; an axis with a single voxel keeps its spacing.

    Reference: specification sshunet 4.2 to 4.4, 6.4.
    """

    published_patch: ClassVar[int] = 96
    published_batch_size: ClassVar[int] = 8
    smallest_edge: ClassVar[int] = 32

    def plan_experiment(self) -> dict[str, Any]:
        self.lowres_creation_threshold = 0  # never: the paper has one resolution
        return super().plan_experiment()

    def determine_fullres_target_spacing(self) -> np.ndarray:
        if self.overwrite_target_spacing is not None:
            return np.array(self.overwrite_target_spacing)
        flat = np.max(self.dataset_fingerprint["shapes_after_crop"], 0) == 1
        return np.where(flat, np.median(self.dataset_fingerprint["spacings"], 0), 1.0)

    def search(
        self,
        spacing: Sequence[float],
        median_shape: Sequence[float],
        approximate_n_voxels_dataset: float,
        cache: dict[Hashable, int],
    ) -> Choice:
        if len(spacing) not in self.dimensions:
            return super().search(spacing, median_shape, approximate_n_voxels_dataset, cache)
        patch = self._patch(spacing, median_shape)
        architecture = sshunet_architecture(
            PUBLISHED_STRIDES, default_features(len(PUBLISHED_STRIDES), self.base_width)
        )
        units = self._cached_estimate(patch, architecture, cache) * self.published_batch_size / 2
        need = units / self.reference(3) * self.UNet_vram_target_GB
        level = logging.WARNING if need > self.UNet_vram_target_GB else logging.INFO
        message = "%s: training on batches of %d patches of %s voxels needs a GPU with about %.0f GB."
        logger.log(level, message, type(self).__name__, self.published_batch_size, patch, np.ceil(need))
        return Choice(patch, self.published_batch_size, architecture)

    def _patch(self, spacing: Sequence[float], median_shape: Sequence[float]) -> tuple[int, ...]:
        """The published patch, or along short axes the least that holds the median image."""
        step = int(np.prod([stride[0] for stride in PUBLISHED_STRIDES]))
        holding = [max(self.smallest_edge, step * int(np.ceil(i / step))) for i in median_shape]
        patch = tuple(min(self.published_patch, i) for i in holding)
        if min(patch) < self.published_patch:
            message = (
                "%s: the median image has only %s voxels of %s mm; the published patch of 96 x 96 x 96 becomes %s."
            )
            image = [round(float(i)) for i in median_shape]
            logger.warning(message, type(self).__name__, image, [float(i) for i in spacing], patch)
        return patch


__getattr__ = variant_attribute(__name__)
