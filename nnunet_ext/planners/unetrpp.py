"""Planners for UNETR++: as nnU-Net would plan it, and the four published settings."""

from __future__ import annotations

import logging
import math
import pydoc
from collections.abc import Hashable, Sequence
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from nnunet_ext.architectures.grids import total_stride
from nnunet_ext.architectures.unetrpp_plans import (
    BASE_WIDTH,
    PRESETS,
    fitting_topology,
    preset_architecture,
    unetrpp_architecture,
)
from nnunet_ext.planners.base import BasePlanner, Choice, Topology
from nnunet_ext.planners.variants import variant_attribute

logger = logging.getLogger(__name__)

MOST_STRIDE = 8  # of the patch embedding; published: 4
CHEAP_EMBEDDING = 8  # voxels a token
MOST_COST = 3.0  # times the arithmetic of nnU-Net's PlainConvUNet


class UNETRPPPlanner(BasePlanner):
    """Plans 2d, 3d_fullres and 3d_lowres for `UNETRPP`, with tied projections and the corrected spatial layout.

    The network has five stages: full resolution, and four of tokens. The stride of the patch embedding is, an axis, the
    largest of 4, 2, 1 that leaves at least 32 tokens; the three stages below halve every axis that keeps at least two
    positions. The stride of the axis with most tokens is doubled while the embedding would have more than 75 000
    tokens or the weights that depend on the patch more than 30 million parameters, and once more where a training
    step would need more than three times the arithmetic of nnU-Net's PlainConvUNet at the same plan. Patches are kept
    so small that no stride has to be doubled beyond 8: with coarser tokens all detail would be left to 16 features.

    Reference: specification unetrpp 6.2, 6.5.
    """

    dimensions: ClassVar[tuple[int, ...]] = (2, 3)
    base_width: ClassVar[int] = BASE_WIDTH

    def initial_patch_size(self, spacing: Sequence[float], median_shape: Sequence[float]) -> list[int]:
        """The base's, with the axis of the coarsest tokens reduced until its embedding stride is at most 8."""
        patch = super().initial_patch_size(spacing, median_shape)
        while max(embedding := self._fitting(patch, 0).strides[1]) > MOST_STRIDE:
            axis = embedding.index(max(embedding))
            patch[axis] -= max(1, patch[axis] // 16)
        return patch

    def topology(self, spacing: Sequence[float], patch_size: Sequence[int]) -> Topology:
        topology = self._fitting(patch_size, 0)
        if self._is_costly(spacing, topology):
            return self._fitting(patch_size, 1)
        return topology

    def architecture_block(self, topology: Topology) -> dict[str, Any]:
        return unetrpp_architecture(topology.patch_size, topology.strides, base_width=self.base_width)

    def _fitting(self, patch_size: Sequence[int], raises: int) -> Topology:
        patch, strides = fitting_topology([int(edge) for edge in patch_size], self.base_width, raises=raises)
        listed = tuple(tuple(stride) for stride in strides)
        return Topology(patch, listed, ((3,) * len(patch),) * len(listed), total_stride(strides))

    @cached_property
    def _costly(self) -> dict[Hashable, bool]:
        return {}

    def _is_costly(self, spacing: Sequence[float], topology: Topology) -> bool:
        """Whether a training step needs more than `MOST_COST` times the arithmetic of nnU-Net's network."""
        if math.prod(topology.strides[1]) >= CHEAP_EMBEDDING and self.base_width <= BASE_WIDTH:
            return False  # less arithmetic than nnU-Net's network: no need to count
        key = (tuple(float(i) for i in spacing), topology.patch_size)
        if key not in self._costly:
            stock = self.stock_topology(spacing, topology.patch_size)
            self._costly[key] = stock.n_stages > 1 and (  # nnU-Net's network does not exist with one stage
                self._arithmetic(self.architecture_block(topology), topology.patch_size)
                > MOST_COST * self._arithmetic(self.stock_architecture(stock), stock.patch_size)
            )
        return self._costly[key]

    def _arithmetic(self, architecture: dict[str, Any], patch_size: Sequence[int]) -> int:
        """Floating point operations of a forward pass; a training step has about three times as many."""
        arguments = dict(architecture["arch_kwargs"])
        for name in architecture["_kw_requires_import"]:
            arguments[name] = None if arguments[name] is None else pydoc.locate(arguments[name])
        network_class: Any = pydoc.locate(architecture["network_class_name"])
        classes = len(self.dataset_json["labels"])
        with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
            network: nn.Module = network_class(
                input_channels=self.num_input_channels, num_classes=classes, deep_supervision=False, **arguments
            )
            network.eval()(torch.empty(1, self.num_input_channels, *patch_size))
        return int(counter.get_total_flops())


class _PublishedPlanner(UNETRPPPlanner):
    """Patch, batch, strides and network of a published setting, whatever the images are; no low resolution.

    Spacing and normalisation are nnU-Net's, as in the paper, and so is the 2d configuration's search.
    `-gpu_memory_target` does not change 3d_fullres; a line tells what it needs.
    """

    preset: ClassVar[str]

    def plan_experiment(self) -> dict[str, Any]:
        self.lowres_creation_threshold = 0  # never: the authors trained at full resolution only
        return super().plan_experiment()

    def search(
        self,
        spacing: Sequence[float],
        median_shape: Sequence[float],
        approximate_n_voxels_dataset: float,
        cache: dict[Hashable, int],
    ) -> Choice:
        if len(spacing) != 3:
            return super().search(spacing, median_shape, approximate_n_voxels_dataset, cache)
        preset = PRESETS[self.preset]
        architecture = preset_architecture(self.preset, base_width=self.base_width)
        units = self._cached_estimate(preset.patch_size, architecture, cache) * preset.batch_size / 2
        need = units / self.reference(3) * self.UNet_vram_target_GB
        level = logging.WARNING if need > self.UNet_vram_target_GB else logging.INFO
        message = "%s: training on batches of %d patches of %s voxels needs a GPU with about %.0f GB."
        logger.log(level, message, type(self).__name__, preset.batch_size, preset.patch_size, np.ceil(need))
        return Choice(preset.patch_size, preset.batch_size, architecture)


class UNETRPPPlanner_Synapse(_PublishedPlanner):  # noqa: N801  # our grammar of names
    """The published Synapse setting: patches of 64 x 128 x 128, batches of 2, embedding stride 2 x 4 x 4."""

    preset: ClassVar[str] = "synapse"


class UNETRPPPlanner_ACDC(_PublishedPlanner):  # noqa: N801
    """The published ACDC setting: patches of 16 x 160 x 160, batches of 4, embedding stride 1 x 4 x 4."""

    preset: ClassVar[str] = "acdc"


class UNETRPPPlanner_Lung(_PublishedPlanner):  # noqa: N801
    """The published MSD Lung setting: patches of 32 x 192 x 192, batches of 2, embedding stride 1 x 4 x 4."""

    preset: ClassVar[str] = "lung"


class UNETRPPPlanner_BraTS(_PublishedPlanner):  # noqa: N801
    """The published BraTS setting (MSD Task01): patches of 128 x 128 x 128, batches of 2, stride 4 x 4 x 4."""

    preset: ClassVar[str] = "brats"


__getattr__ = variant_attribute(__name__)
