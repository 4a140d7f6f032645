"""nnU-Net's search for patch and batch size, once, with the planner's own network and its measured need of memory.

All knowledge of nnU-Net's planners sits here. A method's planner says what its network looks like for a topology
(`architecture_block`) and, where it must, restricts the topology (`topology`, `shape_constraint`); everything else is
nnU-Net's. With nnU-Net's own networks the plans are nnU-Net's, number for number.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet
from dynamic_network_architectures.building_blocks.helper import convert_dim_to_conv_op, get_matching_instancenorm
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

from nnunet_ext import __version__
from nnunet_ext.architectures.blocks.memory import BYTES_PER_UNIT, saved_bytes
from nnunet_ext.names import plans_name as default_plans_name
from nnunet_ext.planners.preprocessing import STOCK_PLANS, preprocesses_as_stock

STOCK_NETWORKS = "dynamic_network_architectures."
UNLIMITED_POOLING = 999999


@dataclass(frozen=True)
class Topology:
    """How a network halves a patch; sequences are (D, H, W) or (H, W) within a stage.

    Attributes:
        patch_size: Voxels, already a multiple of `divisors`.
        strides: One stride a stage, the first all ones.
        kernel_sizes: nnU-Net's kernel of each stage.
        divisors: What every axis of a patch with this topology must be divisible by.
    """

    patch_size: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]
    kernel_sizes: tuple[tuple[int, ...], ...]
    divisors: tuple[int, ...]

    @property
    def dim(self) -> int:
        return len(self.patch_size)

    @property
    def n_stages(self) -> int:
        return len(self.strides)


@dataclass(frozen=True)
class Choice:
    """What a search has found for one configuration."""

    patch_size: tuple[int, ...]
    batch_size: int
    architecture: dict[str, Any]


class BasePlanner(ExperimentPlanner):
    """nnU-Net's `ExperimentPlanner` with hooks, searching with the planner's own network.

    Memory: nnU-Net counts the elements of convolution outputs and allows 560e6 of them in 3D (85e6 in 2D) for a batch
    of 2 (12) on a GPU with 8 GB. Other networks are measured (`nnunet_ext.architectures.blocks.memory`) and expressed
    in the same units, so these references hold for every network, and `-gpu_memory_target` scales them linearly, as
    in nnU-Net. Presets are such targets, nnU-Net's: M 8, L 24, XL 40 GB. The references of nnU-Net's ResEnc presets
    (680e6, 2100e6, 3600e6) belong to that network's count, whose unit costs less; ours is PlainConvUNet's, whose
    reference is scaled. That is 3 % (L) and 6 % (XL) more careful, since what does not grow with the patch need not
    be scaled.

    Attributes:
        dimensions: In which dimensions the method's network exists; elsewhere the plans keep nnU-Net's network.
        default_gpu_memory_gb: The GPU memory target without `-gpu_memory_target`.
        base_width: Features of the first stage of the method's network (suffix `_W<n>`).
        smallest_edge: The search does not shrink an axis of a patch below this many voxels.
    """

    dimensions: ClassVar[tuple[int, ...]] = (2, 3)
    default_gpu_memory_gb: ClassVar[float] = 8
    base_width: ClassVar[int] = 32
    smallest_edge: ClassVar[int] = 1

    def __init__(
        self,
        dataset_name_or_id: str | int,
        gpu_memory_target_in_gb: float | None = None,
        preprocessor_name: str = "DefaultPreprocessor",
        plans_name: str | None = None,
        overwrite_target_spacing: Sequence[float] | None = None,
        suppress_transpose: bool = False,
    ) -> None:
        """As nnU-Net's planner; None stands for the class' own GPU memory target and plans name.

        Raises:
            ValueError: The GPU memory target is not positive.
        """
        target = self.default_gpu_memory_gb if gpu_memory_target_in_gb is None else gpu_memory_target_in_gb
        if target <= 0:
            raise ValueError(f"The GPU memory target must be positive, in GB; got {target}.")
        name = default_plans_name(type(self).__name__) if plans_name is None else plans_name
        super().__init__(
            dataset_name_or_id, target, preprocessor_name, name, overwrite_target_spacing, suppress_transpose
        )

    # ---- hooks

    def architecture_block(self, topology: Topology) -> dict[str, Any]:
        """The plans' `architecture` block for the method's network; JSON values only. nnU-Net's network by default."""
        return self.stock_architecture(topology)

    def topology(self, spacing: Sequence[float], patch_size: Sequence[int]) -> Topology:
        """The network's topology for a wished patch size, which it may enlarge to what the network can take.

        Args:
            spacing: Voxel size in mm, (D, H, W) or (H, W).
            patch_size: Wished patch in voxels, same order.
        """
        return self.stock_topology(spacing, patch_size, self.shape_constraint(len(patch_size)))

    def shape_constraint(self, dim: int) -> tuple[int, ...]:
        """What every patch axis must be divisible by whatever the strides are; all ones by default."""
        return (1,) * dim

    def estimate(self, patch_size: Sequence[int], architecture: dict[str, Any]) -> int:
        """Need of memory in nnU-Net's units: its own count for its own networks, a measurement for all others."""
        return self.static_estimate_VRAM_usage(
            tuple(patch_size),
            self.num_input_channels,
            len(self.dataset_json["labels"]),
            architecture["network_class_name"],
            architecture["arch_kwargs"],
            architecture["_kw_requires_import"],
        )

    def search(
        self,
        spacing: Sequence[float],
        median_shape: Sequence[float],
        approximate_n_voxels_dataset: float,
        cache: dict[Hashable, int],
    ) -> Choice:
        """Shrink the patch until the network fits the GPU, then fill the GPU with samples.

        Args:
            spacing: Voxel size in mm after transposition, (D, H, W) or (H, W).
            median_shape: Median image size in voxels at this spacing, same order.
            approximate_n_voxels_dataset: Voxels of the whole training set; a batch holds at most 5 % of them.
            cache: Estimates already made in this run.

        Raises:
            RuntimeError: No patch fits the GPU memory target.
        """
        dim = len(spacing)
        reference = self.reference(dim)
        topology = self._topology(spacing, self.initial_patch_size(spacing, median_shape))
        visited = {topology.patch_size}
        architecture = self._architecture(topology)
        estimate = self._cached_estimate(topology.patch_size, architecture, cache)
        while self.exceeds(estimate, reference, dim):
            smaller = self._shrink(spacing, median_shape, topology, visited)
            if smaller is None:
                raise RuntimeError(self._too_large(topology, estimate, reference))
            visited.add(smaller.patch_size)
            architecture = self._architecture(smaller)
            try:
                estimate = self._cached_estimate(smaller.patch_size, architecture, cache)
            except ValueError as error:  # the network cannot work with a patch so small
                raise RuntimeError(self._too_large(topology, estimate, reference)) from error
            topology = smaller
        batch_size = self.batch_size(estimate, reference, topology.patch_size, approximate_n_voxels_dataset)
        return Choice(topology.patch_size, batch_size, architecture)

    # ---- nnU-Net's rules

    @property
    def num_input_channels(self) -> int:
        channels = self.dataset_json.get("channel_names", self.dataset_json.get("modality"))
        return len(channels)

    def reference(self, dim: int) -> float:
        """The units that the GPU memory target allows."""
        value = self.UNet_reference_val_2d if dim == 2 else self.UNet_reference_val_3d
        return float(value * (self.UNet_vram_target_GB / self.UNet_reference_val_corresp_GB))

    def reference_batch_size(self, dim: int) -> int:
        return int(self.UNet_reference_val_corresp_bs_2d if dim == 2 else self.UNet_reference_val_corresp_bs_3d)

    def exceeds(self, estimate: float, reference: float, dim: int) -> bool:
        """Whether the patch leaves no room for two samples (in ResEnc planners: for the reference's batch)."""
        if issubclass(self.UNet_class, ResidualEncoderUNet):
            return estimate > reference
        return (estimate / self.reference_batch_size(dim) * 2) > reference

    def batch_size(
        self, estimate: float, reference: float, patch_size: Sequence[int], approximate_n_voxels_dataset: float
    ) -> int:
        """As many samples as fit, but no more than a small part of the data set, and at least two."""
        fits = round((reference / estimate) * self.reference_batch_size(len(patch_size)))
        voxels = np.prod(patch_size, dtype=np.float64)
        covered = round(approximate_n_voxels_dataset * self.max_dataset_covered / voxels)
        return int(max(min(fits, covered), self.UNet_min_batch_size))

    def initial_patch_size(self, spacing: Sequence[float], median_shape: Sequence[float]) -> list[int]:
        """256^3 (2048^2) voxels in the aspect ratio of cubic millimetres, clipped to the median image."""
        dim = len(spacing)
        aspect = 1 / np.array(spacing)
        volume = 2048**2 if dim == 2 else 256**3
        wished = [round(i) for i in aspect * (volume / np.prod(aspect)) ** (1 / dim)]
        return [int(min(i, j)) for i, j in zip(wished, median_shape[:dim], strict=True)]

    def stock_topology(
        self, spacing: Sequence[float], patch_size: Sequence[int], constraint: Sequence[int] | None = None
    ) -> Topology:
        """nnU-Net's topology, with the patch rounded up to the constraint as well."""
        _, strides, kernels, padded, divisors = get_pool_and_conv_props(
            spacing, patch_size, self.UNet_featuremap_min_edge_length, UNLIMITED_POOLING
        )
        steps = tuple(int(np.lcm(d, c)) for d, c in zip(divisors, constraint or (1,) * len(spacing), strict=True))
        patch = tuple(int(-(-p // step) * step) for p, step in zip(padded, steps, strict=True))
        return Topology(patch, strides, kernels, steps)

    def topology_of_stages(self, least: int, spacing: Sequence[float], patch_size: Sequence[int]) -> Topology:
        """nnU-Net's topology; a patch too small for `least` stages grows along its finest axes."""
        constraint = self.shape_constraint(len(patch_size))
        topology = self.stock_topology(spacing, patch_size, constraint)
        wished = list(topology.patch_size)
        while topology.n_stages < least:
            fine = [i < 2 * min(spacing) for i in spacing]
            step = self.UNet_featuremap_min_edge_length
            wished = [i + step if grows else i for i, grows in zip(wished, fine, strict=True)]
            topology = self.stock_topology(spacing, wished, constraint)
        return topology

    def stock_architecture(self, topology: Topology) -> dict[str, Any]:
        """nnU-Net's `architecture` block for its own network `self.UNet_class`."""
        conv = convert_dim_to_conv_op(topology.dim)
        norm = get_matching_instancenorm(conv)
        n = topology.n_stages
        max_features = self.UNet_max_features_2d if topology.dim == 2 else self.UNet_max_features_3d
        residual = issubclass(self.UNet_class, ResidualEncoderUNet)
        return {
            "network_class_name": f"{self.UNet_class.__module__}.{self.UNet_class.__name__}",
            "arch_kwargs": {
                "n_stages": n,
                "features_per_stage": tuple(min(max_features, self.UNet_base_num_features * 2**i) for i in range(n)),
                "conv_op": f"{conv.__module__}.{conv.__name__}",
                "kernel_sizes": topology.kernel_sizes,
                "strides": topology.strides,
                "n_blocks_per_stage" if residual else "n_conv_per_stage": self.UNet_blocks_per_stage_encoder[:n],
                "n_conv_per_stage_decoder": self.UNet_blocks_per_stage_decoder[: n - 1],
                "conv_bias": True,
                "norm_op": f"{norm.__module__}.{norm.__name__}",
                "norm_op_kwargs": {"eps": 1e-5, "affine": True},
                "dropout_op": None,
                "dropout_op_kwargs": None,
                "nonlin": "torch.nn.LeakyReLU",
                "nonlin_kwargs": {"inplace": True},
            },
            "_kw_requires_import": ("conv_op", "norm_op", "dropout_op", "nonlin"),
        }

    # ---- what nnU-Net calls

    @staticmethod
    def static_estimate_VRAM_usage(
        patch_size: tuple[int, ...],
        input_channels: int,
        output_channels: int,
        arch_class_name: str,
        arch_kwargs: dict[str, Any],
        arch_kwargs_req_import: Sequence[str],
    ) -> int:
        """`estimate` for a network given by its architecture block, built on the meta device: nothing is allocated."""
        with torch.device("meta"):
            network = get_network_from_plans(
                arch_class_name, arch_kwargs, arch_kwargs_req_import, input_channels, output_channels, allow_init=False
            )
        if arch_class_name.startswith(STOCK_NETWORKS):
            return int(network.compute_conv_feature_map_size(patch_size))
        return round(saved_bytes(network, patch_size, input_channels) / BYTES_PER_UNIT)

    def get_plans_for_configuration(
        self,
        spacing: Any,
        median_shape: Any,
        data_identifier: str,
        approximate_n_voxels_dataset: float,
        _cache: dict[Hashable, int],
    ) -> dict[str, Any]:
        """One configuration of the plans.

        Raises:
            ValueError: A spacing that is not positive.
            RuntimeError: No patch fits the GPU memory target.
        """
        if not all(i > 0 for i in spacing):
            raise ValueError(f"Voxel spacings must be positive; got {[float(i) for i in spacing]}.")
        choice = self.search(spacing, median_shape, approximate_n_voxels_dataset, _cache)
        data_fn, data_kwargs, seg_fn, seg_kwargs = self.determine_resampling()
        softmax_fn, softmax_kwargs = self.determine_segmentation_softmax_export_fn()
        schemes, use_mask = self.determine_normalization_scheme_and_whether_mask_is_used_for_norm()
        return {
            "data_identifier": data_identifier,
            "preprocessor_name": self.preprocessor_name,
            "batch_size": choice.batch_size,
            "patch_size": choice.patch_size,
            "median_image_size_in_voxels": median_shape,
            "spacing": spacing,
            "normalization_schemes": schemes,
            "use_mask_for_norm": use_mask,
            "resampling_fn_data": data_fn.__name__,
            "resampling_fn_seg": seg_fn.__name__,
            "resampling_fn_data_kwargs": data_kwargs,
            "resampling_fn_seg_kwargs": seg_kwargs,
            "resampling_fn_probabilities": softmax_fn.__name__,
            "resampling_fn_probabilities_kwargs": softmax_kwargs,
            "architecture": choice.architecture,
        }

    def save_plans(self, plans: dict[str, Any]) -> None:
        """Write the plans, with a note of the package version that their networks need."""
        plans["nnunet_ext"] = {
            "version": __version__,
            "planner": type(self).__name__,
            "gpu_memory_target_in_gb": float(self.UNet_vram_target_GB),
        }
        super().save_plans(plans)

    def generate_data_identifier(self, configuration_name: str) -> str:
        """The folder of the preprocessed data: nnU-Net's where ours would be identical, else our own.

        2d and 3d_fullres can be shared, as nnU-Net's ResEnc planners do.
        """
        if configuration_name in ("2d", "3d_fullres") and preprocesses_as_stock(self, configuration_name):
            return f"{STOCK_PLANS}_{configuration_name}"
        return str(super().generate_data_identifier(configuration_name))

    # ---- inside

    def _topology(self, spacing: Sequence[float], patch_size: Sequence[int]) -> Topology:
        if len(spacing) in self.dimensions:
            return self.topology(spacing, patch_size)
        return self.stock_topology(spacing, patch_size)

    def _architecture(self, topology: Topology) -> dict[str, Any]:
        if topology.dim in self.dimensions:
            return self.architecture_block(topology)
        return self.stock_architecture(topology)

    def _cached_estimate(
        self, patch_size: tuple[int, ...], architecture: dict[str, Any], cache: dict[Hashable, int]
    ) -> int:
        key = (patch_size, repr(architecture))
        if key not in cache:
            cache[key] = self.estimate(patch_size, architecture)
        return cache[key]

    def _shrink(
        self,
        spacing: Sequence[float],
        median_shape: Sequence[float],
        topology: Topology,
        visited: set[tuple[int, ...]],
    ) -> Topology | None:
        """The next smaller patch, or None: the axis that is largest relative to the image loses one step.

        A step is the divisor after the shrinkage, so that no valid size is skipped. Where that leads nowhere new, or to
        a larger patch (networks with a least number of stages), more steps are tried, then the other axes; nnU-Net
        would not end there.
        """
        patch = topology.patch_size
        ratios = [i / j for i, j in zip(patch, median_shape[: len(patch)], strict=True)]
        smallest = self.smallest_edge if len(patch) in self.dimensions else 1
        for axis in np.argsort(ratios)[::-1]:
            wished = list(patch)
            wished[axis] -= topology.divisors[axis]
            if wished[axis] < smallest:
                continue
            step = self._topology(spacing, wished).divisors[axis]
            for size in range(patch[axis] - step, smallest - 1, -step):
                wished[axis] = size
                smaller = self._topology(spacing, wished)
                if smaller.patch_size not in visited and self._leads_down(smaller, topology, spacing, wished):
                    return smaller
        return None

    def _leads_down(self, smaller: Topology, topology: Topology, spacing: Sequence[float], wished: list[int]) -> bool:
        """Whether a step makes the patch smaller, or is nnU-Net's own (where one axis' pooling can enlarge another)."""
        if np.prod(smaller.patch_size) < np.prod(topology.patch_size):
            return True
        return smaller.patch_size == self.stock_topology(spacing, wished).patch_size

    def _too_large(self, topology: Topology, estimate: float, reference: float) -> str:
        scale = 2 / self.reference_batch_size(topology.dim)
        need = estimate * scale / reference * self.UNet_vram_target_GB
        return (
            f"{type(self).__name__}: no patch fits a GPU memory target of {self.UNet_vram_target_GB:g} GB. "
            f"The smallest, {topology.patch_size} voxels, needs about {need:.2g} GB with "
            f"{self.num_input_channels} input channels and {len(self.dataset_json['labels'])} labels. "
            "Raise the target (-gpu_memory_target) or plan a narrower "
            "network (planner suffix _W<n>, e.g. _W8)."
        )
