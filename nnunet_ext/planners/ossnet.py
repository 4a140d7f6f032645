"""Planners for OSS-Net: patches for the local network, and whole volumes as published."""

from __future__ import annotations

import logging
import math
from collections.abc import Hashable, Sequence
from typing import Any, ClassVar

import numpy as np

from nnunet_ext.architectures.ossnet_local_plans import BASE_WIDTH, number_of_points, ossnet_local_architecture
from nnunet_ext.architectures.ossnet_plans import (
    DECODER_WIDTH,
    DEEPEST_WIDTH,
    latent_halvings,
    ossnet_architecture,
    ossnet_strides,
)
from nnunet_ext.labels import has_regions
from nnunet_ext.planners.base import BasePlanner, Choice, Topology
from nnunet_ext.planners.variants import variant_attribute

logger = logging.getLogger(__name__)

MOST_VOXELS = 192**3  # of a 3D patch: nnU-Net augments it on the CPU
SAMPLES = 2  # of the largest patches, for each 8 GB
MIN_STAGES = 2


class OSSNetPlanner(BasePlanner):
    """Plans 2d, 3d_fullres and 3d_lowres for `OSSNetLocal`, with its own measured need of memory.

    The network keeps little of a patch for its backward pass and needs the rest for its points, so that patches are
    larger than nnU-Net's for the same memory; at most 192^3 voxels in 3D, and two of these a batch for each 8 GB of
    the memory target, since nnU-Net augments them on the CPU and loading would take longer than the network. Stages,
    strides and kernels are nnU-Net's, at least two stages.

    Reference: specification ossnet 6.9.

    Attributes:
        max_patch_voxels: of a 3D patch.
    """

    dimensions: ClassVar[tuple[int, ...]] = (2, 3)
    max_patch_voxels: ClassVar[int] = MOST_VOXELS
    base_width: ClassVar[int] = BASE_WIDTH
    smallest_edge: ClassVar[int] = 4

    def initial_patch_size(self, spacing: Sequence[float], median_shape: Sequence[float]) -> list[int]:
        """The base's; in 3D shrunk in its aspect ratio until it has, rounded to its strides, at most 192^3 voxels."""
        patch = super().initial_patch_size(spacing, median_shape)
        share = 1.0
        shrunk = patch
        while len(patch) == 3 and math.prod(self.topology(spacing, shrunk).patch_size) > self.max_patch_voxels:
            share *= 0.98
            shrunk = [max(1, int(edge * share)) for edge in patch]
        return shrunk

    def batch_size(
        self, estimate: float, reference: float, patch_size: Sequence[int], approximate_n_voxels_dataset: float
    ) -> int:
        """The base's; in 3D no more voxels than two of the largest patches for each 8 GB of the target."""
        batch_size = super().batch_size(estimate, reference, patch_size, approximate_n_voxels_dataset)
        if len(patch_size) != 3:
            return batch_size
        voxels = SAMPLES * self.max_patch_voxels * self.UNet_vram_target_GB / self.UNet_reference_val_corresp_GB
        return max(self.UNet_min_batch_size, min(batch_size, int(voxels / math.prod(patch_size))))

    def topology(self, spacing: Sequence[float], patch_size: Sequence[int]) -> Topology:
        """nnU-Net's topology; a patch too small for two stages grows along its finest axes."""
        return self.topology_of_stages(MIN_STAGES, spacing, patch_size)

    def architecture_block(self, topology: Topology) -> dict[str, Any]:
        return ossnet_local_architecture(
            topology.patch_size,
            topology.strides,
            topology.kernel_sizes,
            base_width=self.base_width,
            regions=has_regions(self.dataset_json),
        )


class OSSNetPlanner_Published(OSSNetPlanner):  # noqa: N801  # our grammar of names
    """Whole volumes for the published networks (`OSSNet`, variant C): the patch holds every image of the data set.

    Smaller images are padded, as the authors padded BraTS' to 256 x 256 x 160 voxels. Where an axis of the largest
    image would have more than 512 voxels, the spacing of that axis is coarsened until it has not (the authors resized
    LiTS' to 512 voxels along each axis). Batches of 8, or what fits the GPU. No low resolution. The width (`_W<n>`) is
    that of the first block, of 16.

    Reference: specification ossnet 2.1, 2.2, 2.5.
    """

    base_width: ClassVar[int] = 16
    most_voxels_of_an_axis: ClassVar[int] = 512
    published_batch_size: ClassVar[int] = 8

    def plan_experiment(self) -> dict[str, Any]:
        self.lowres_creation_threshold = 0  # never: the whole volume is one patch already
        return super().plan_experiment()

    def determine_fullres_target_spacing(self) -> np.ndarray:
        """nnU-Net's, coarser along axes of more than 512 voxels."""
        spacing = np.array(super().determine_fullres_target_spacing(), dtype=np.float64)
        if self.overwrite_target_spacing is not None:
            return spacing
        return np.maximum(spacing, self._largest_extent() / self.most_voxels_of_an_axis)

    def search(
        self,
        spacing: Sequence[float],
        median_shape: Sequence[float],
        approximate_n_voxels_dataset: float,
        cache: dict[Hashable, int],
    ) -> Choice:
        """The patch that holds every image, and as many of them as fit, at most eight."""
        forward, _ = self.determine_transpose()
        extent = self._largest_extent()[list(forward)][-len(spacing) :]
        patch = whole_volume_patch([math.ceil(e / s - 1e-6) for e, s in zip(extent, spacing, strict=True)])
        architecture = self._published_architecture(patch)
        estimate = self._cached_estimate(patch, architecture, cache)
        reference = self.reference(len(spacing))
        fits = int(reference / estimate * self.reference_batch_size(len(spacing)))
        batch_size = max(self.UNet_min_batch_size, min(fits, self.published_batch_size))
        if fits < self.UNet_min_batch_size:
            need = estimate / self.reference_batch_size(len(spacing)) * batch_size / reference
            message = "%s: batches of %d volumes of %s voxels need a GPU with about %.0f GB."
            logger.warning(message, type(self).__name__, batch_size, patch, math.ceil(need * self.UNet_vram_target_GB))
        return Choice(patch, batch_size, architecture)

    def _published_architecture(self, patch: Sequence[int]) -> dict[str, Any]:
        strides = ossnet_strides(patch)
        features = [min(DEEPEST_WIDTH, self.base_width * 2**i) for i in range(len(strides) - 1)]
        return ossnet_architecture(
            patch,
            strides=strides,
            features_per_stage=[features[0], *features],
            decoder_width=min(DECODER_WIDTH, 32 * self.base_width),
            n_points=number_of_points(patch),
            regions=has_regions(self.dataset_json),
        )

    def _largest_extent(self) -> np.ndarray:
        """Of the images after cropping, in mm along each axis, before any transposition."""
        fingerprint = self.dataset_fingerprint
        extents = np.array(fingerprint["shapes_after_crop"]) * np.array(fingerprint["spacings"])
        largest: np.ndarray = extents.max(0)
        return largest


def whole_volume_patch(shape: Sequence[int]) -> tuple[int, ...]:
    """The smallest patch that holds an image of `shape` voxels, divided by its strides, which leave about 8 cells."""
    deepest = 2 ** latent_halvings(max(shape))
    patch = tuple(-(-edge // deepest) * deepest if edge == max(shape) else edge for edge in map(int, shape))
    while True:
        steps = [math.prod(axis) for axis in zip(*ossnet_strides(patch), strict=True)]
        rounded = tuple(-(-edge // step) * step for edge, step in zip(patch, steps, strict=True))
        if rounded == patch:
            return patch
        patch = rounded


__getattr__ = variant_attribute(__name__)
