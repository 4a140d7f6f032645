"""SSH-UNet: 2D convolutions over three orthogonal planes, context across slices by shifting features.

C. I. Ugwu, S. Casarin, O. Lanz, Spatiotemporal Modeling Encounters 3D Medical Image Analysis: Slice-Shift UNet with
Multi-View Fusion, ICMVA 2024, arXiv 2307.12853 (authors' code: Apache-2.0). Written from the specification `sshunet`.

Differences from the published network:
    * Volumes keep their (D, H, W) order and the small weights are permuted instead, so any patch shape works and the
      views are aligned at every level (specification 6.2).
    * Volumetric fusion sees aligned views (`vfn_alignment="legacy"` restores the published order).
    * Deep supervision as in nnU-Net: one head a decoder level, at that level's own resolution.
    * A view with a single slice is not shifted; the published code zeroes half of its features.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from nnunet_ext.architectures.blocks.convolution import Conv3d
from nnunet_ext.architectures.blocks.layout import CPU_LIKE, to_channels_last
from nnunet_ext.architectures.blocks.memory import conv_feature_map_units
from nnunet_ext.architectures.blocks.view_blocks import BlockOptions, InstanceNormAct, ShiftBlock, ViewTransposedConv
from nnunet_ext.architectures.blocks.views import VIEWS, swap_volume
from nnunet_ext.architectures.blocks.volumetric_fusion import VolumetricFusion
from nnunet_ext.architectures.sshunet_checks import check_choices, check_patch_size, gates_per_stage, per_stage


class SSHUNetEncoder(nn.Module):
    """The contracting path of one view; `stages.0` is the published input block, the last one the bottleneck."""

    def __init__(
        self,
        input_channels: int,
        features: Sequence[int],
        kernels: Sequence[Sequence[int]],
        strides: Sequence[Sequence[int]],
        gates: Sequence[str],
        options: BlockOptions,
    ) -> None:
        super().__init__()
        inputs = [input_channels, *features[:-1]]
        self.stages = nn.ModuleList(
            ShiftBlock(*stage, options) for stage in zip(inputs, features, kernels, strides, gates, strict=True)
        )

    def forward(self, x: Tensor, axis: int) -> list[Tensor]:
        """x: (B, C, D, H, W); returns the features of every stage for view `axis`, high resolution first."""
        skips = []
        for stage in self.stages:
            x = stage([x], axis)
            skips.append(x)
        return skips


class SSHUNetDecoder(nn.Module):
    """The expanding path of one view, and the heads. Index 0 is the lowest resolution, as in nnU-Net's decoder."""

    def __init__(
        self,
        num_classes: int,
        features: Sequence[int],
        kernels: Sequence[Sequence[int]],
        strides: Sequence[Sequence[int]],
        gates: Sequence[str],
        options: BlockOptions,
        *,
        residual: bool,
        vfn_levels: int,
        vfn_channels: int | None,
        deep_supervision: bool,
    ) -> None:
        super().__init__()
        self.deep_supervision = deep_supervision
        n_stages = len(features)
        self.transpconvs = nn.ModuleList()
        self.stages = nn.ModuleList()
        self.fusion = nn.ModuleDict()
        self.seg_layers = nn.ModuleList()
        self.norm = InstanceNormAct(features[0], BlockOptions(eps=options.eps, slope=options.slope))
        self.dropout = options.dropout()
        for j, gate in enumerate(gates):
            level = n_stages - 2 - j
            below, width = features[level + 1], features[level]
            self.transpconvs.append(
                ViewTransposedConv(below, width, strides[level + 1], options.stride_space, options.transpconv_bias)
            )
            block = ShiftBlock(
                2 * width, width, kernels[level + 1], (1, 1, 1), gate, options, decoder=True, residual=residual
            )
            self.stages.append(block)
            if level < vfn_levels:
                self.seg_layers.append(VolumetricFusion(width, num_classes, vfn_channels))
            else:
                self.fusion[str(j)] = Conv3d(width, width, 1)
                self.seg_layers.append(Conv3d(width, num_classes, 1))

    def forward(self, skips: list[Tensor], axis: int, n_levels: int) -> list[Tensor]:
        """Features of the `n_levels` highest resolutions for view `axis`, high resolution first; empties `skips`."""
        x = skips.pop()
        levels: list[Tensor] = []
        for transpconv, stage in zip(self.transpconvs, self.stages, strict=True):
            up = transpconv(x, axis)
            del x  # at inference the memory is free again before the block needs its own
            x = stage([up if self.dropout is None else self.dropout(up), skips.pop()], axis)
            levels.insert(0, x)
            del levels[n_levels:]
        return levels

    def project(self, level: int, features: Tensor) -> Tensor:
        """One view's features (B, C, D, H, W) of `level` as its volumetric fusion takes them."""
        maps: Tensor = self._volumetric(level).project(features)
        return maps

    def fuse(self, level: int, projected: list[Tensor]) -> Tensor:
        """Logits (B, K, D, H, W) of `level` from the three projected views, by volumetric fusion."""
        logits: Tensor = self._volumetric(level)(projected)
        return logits

    def _volumetric(self, level: int) -> VolumetricFusion:
        fusion = self.seg_layers[len(self.stages) - 1 - level]
        assert isinstance(fusion, VolumetricFusion)
        return fusion

    def logits(self, level: int, view_sum: Tensor) -> Tensor:
        """Segmentation head of `level` (0 is full resolution) on the sum of the views' features (B, C, D, H, W)."""
        j = len(self.stages) - 1 - level
        fused = self.norm(self.fusion[str(j)](view_sum))
        logits: Tensor = self.seg_layers[j](fused)
        return logits


class SSHUNet(nn.Module):
    """Slice-Shift UNet for (B, C, D, H, W) volumes, built from nnU-Net plans.

    Args:
        input_channels: C.
        n_stages: resolution levels, at least 3.
        features_per_stage: feature maps per stage; one number means the same everywhere.
        conv_op: `torch.nn.Conv3d`; there is no 2d form.
        kernel_sizes: (slice, row, column) per stage in view coordinates, odd numbers. The decoder's block at a level
            uses the kernel of the level below, as published.
        strides: (D, H, W) per stage as nnU-Net plans them, the first all ones.
        num_classes: K, number of segmentation heads.
        norm_op, norm_op_kwargs: instance normalisation; "eps" and "affine" (published and default: not affine).
        dropout_op, dropout_op_kwargs: after every convolution but the heads.
        nonlin, nonlin_kwargs: leaky ReLU; "negative_slope".
        gate: "tsm", "gsm", "gsf" or "none".
        gate_stages: per encoder stage, whether it is gated; None: all.
        gate_decoder: per decoder stage, lowest resolution first; None: all but the full-resolution one (published).
        tsm_fold_div: 1 / tsm_fold_div of the channels moves in each direction.
        gsf_ratio: share of the channels that GSF gates.
        decoder_block: "residual", or "basic" without shortcuts.
        transpconv_bias: bias of the transposed convolutions.
        fusion: "sum" of the views, or "vfn", a small 3D U-Net on their class maps at full resolution.
        vfn_alignment: "aligned", or "legacy" for weights trained with the published code, which fuses each view in
            its own axis order (cubes only).
        vfn_channels: width of the fusion net; None: K, as published.
        vfn_levels: so many of the highest resolutions have a fusion net of their own, the others' heads sum the views.
            1 unless for weights trained with the published deep supervision, where every head is a fusion net.
        stride_space: whether `strides` are those of the "volume" or, as published, of every "view".
        axes: "zyx", nnU-Net's order, or "xyz" for imported weights: the volume is transposed on the way in and out.
        view_execution: "sequential" one view after the other; "batched" the views as one batch (cubes with equal
            strides along the axes); "auto": batched where that is possible when training on an accelerator.
        stacked_supervision: n > 0 returns (B, 1 + n, K, D, H, W) in training mode with deep supervision, heads
            upsampled to the nearest voxel, as the published code does.
        deep_supervision: see `forward`.

    Raises:
        NotImplementedError: a 2d `conv_op`.
        ValueError: anything else that is impossible; the text says what is allowed.
    """

    key_to_encoder = "encoder.stages"
    key_to_stem = "encoder.stages.0"
    keys_to_in_proj = ("encoder.stages.0.conv1", "encoder.stages.0.shortcut")

    def __init__(
        self,
        input_channels: int,
        n_stages: int,
        features_per_stage: int | Sequence[int],
        conv_op: type[nn.Module],
        kernel_sizes: int | Sequence[Any],
        strides: Sequence[Sequence[int]],
        num_classes: int,
        norm_op: type[nn.Module] | None = nn.InstanceNorm3d,
        norm_op_kwargs: dict[str, Any] | None = None,
        dropout_op: type[nn.Module] | None = None,
        dropout_op_kwargs: dict[str, Any] | None = None,
        nonlin: type[nn.Module] | None = nn.LeakyReLU,
        nonlin_kwargs: dict[str, Any] | None = None,
        gate: str = "tsm",
        gate_stages: Sequence[bool] | None = None,
        gate_decoder: Sequence[bool] | None = None,
        tsm_fold_div: int = 4,
        gsf_ratio: float = 0.25,
        decoder_block: str = "residual",
        transpconv_bias: bool = True,
        fusion: str = "sum",
        vfn_alignment: str = "aligned",
        vfn_channels: int | None = None,
        vfn_levels: int = 1,
        stride_space: str = "volume",
        axes: str = "zyx",
        view_execution: str = "auto",
        stacked_supervision: int = 0,
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        check_choices(
            conv_op=conv_op,
            norm_op=norm_op,
            nonlin=nonlin,
            gate=gate,
            decoder_block=decoder_block,
            fusion=fusion,
            vfn_alignment=vfn_alignment,
            stride_space=stride_space,
            axes=axes,
            view_execution=view_execution,
        )
        features = per_stage("features_per_stage", features_per_stage, n_stages)
        kernels, self.strides = (
            per_stage("kernel_sizes", kernel_sizes, n_stages, 3),
            per_stage("strides", strides, n_stages, 3),
        )
        norm_kwargs = norm_op_kwargs or {}
        options = BlockOptions(
            eps=norm_kwargs.get("eps", 1e-5),
            affine=norm_kwargs.get("affine", False),
            slope=(nonlin_kwargs or {}).get("negative_slope", 0.01),
            dropout_op=dropout_op,
            dropout_op_kwargs=dropout_op_kwargs,
            fold_div=tsm_fold_div,
            ratio=gsf_ratio,
            stride_space=stride_space,
            transpconv_bias=transpconv_bias,
        )
        self.input_channels, self.num_classes = input_channels, num_classes
        self.vfn_levels, self.vfn_alignment = vfn_levels if fusion == "vfn" else 0, vfn_alignment
        self.stride_space, self.axes, self.view_execution = stride_space, axes, view_execution
        self.stacked_supervision = stacked_supervision
        encoder_gates = gates_per_stage("gate_stages", gate, gate_stages, [True] * n_stages, features)
        default = [True] * (n_stages - 2) + [False]
        decoder_gates = gates_per_stage("gate_decoder", gate, gate_decoder, default, features[-2::-1])
        self.encoder = SSHUNetEncoder(input_channels, features, kernels, self.strides, encoder_gates, options)
        self.decoder = SSHUNetDecoder(
            num_classes,
            features,
            kernels,
            self.strides,
            decoder_gates,
            options,
            residual=decoder_block == "residual",
            vfn_levels=self.vfn_levels,
            vfn_channels=vfn_channels,
            deep_supervision=deep_supervision,
        )

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Logits of a batch.

        Args:
            x: (B, C, D, H, W), floating.

        Returns:
            (B, K, D, H, W). With `decoder.deep_supervision`, in training and eval mode alike, a list of `n_stages` - 1
            such tensors, full resolution first, each at its decoder level's own size.

        Raises:
            ValueError: a size that the strides do not divide, or that is too small (`check_patch_size`).
        """
        if self.axes == "xyz":
            x = swap_volume(x, 2)
        if not torch.compiler.is_compiling():  # no place in a graph; the trainer has checked the patch size before
            self._check_size(x.shape[2:])
        supervised = self.decoder.deep_supervision
        outputs = self._logits(x, len(self.decoder.stages) if supervised else 1)
        if self.axes == "xyz":
            outputs = [swap_volume(y, 2).contiguous() for y in outputs]
        if not supervised:
            return outputs[0]
        if self.stacked_supervision and self.training:
            size = outputs[0].shape[2:]
            return torch.stack([functional.interpolate(y, size) for y in outputs[: 1 + self.stacked_supervision]], 1)
        return outputs

    def _logits(self, x: Tensor, n_levels: int) -> list[Tensor]:
        """Logits of the `n_levels` highest resolutions for x in the network's own axis order."""
        n_fused = min(self.vfn_levels, n_levels)
        projected: list[list[Tensor]] = [[] for _ in range(n_fused)]
        sums: list[Tensor] = []
        for axis, levels in self._views(x, n_levels):
            for level in range(n_fused):
                maps = self.decoder.project(level, levels.pop(0))
                projected[level].append(swap_volume(maps, axis) if self.vfn_alignment == "legacy" else maps)
            sums = levels if axis == 0 else [_add(total, level) for total, level in zip(sums, levels, strict=True)]
        fused = [self.decoder.fuse(level, projected[level]) for level in range(n_fused)]
        return fused + [self.decoder.logits(n_fused + i, total) for i, total in enumerate(sums)]

    def _views(self, x: Tensor, n_levels: int) -> Iterator[tuple[int, list[Tensor]]]:
        """For every view its slice axis and its decoder features (B, C, D, H, W), high resolution first."""
        if self._batches_views(x):
            stacked = torch.cat([swap_volume(x, axis) for axis in VIEWS])
            levels = self._trunk(stacked, 0, n_levels)
            for axis in VIEWS:
                rows = slice(axis * x.shape[0], (axis + 1) * x.shape[0])
                yield axis, [swap_volume(level[rows], axis) for level in levels]
        else:
            for axis in VIEWS:
                yield axis, self._trunk(x, axis, n_levels)

    def _trunk(self, x: Tensor, axis: int, n_levels: int) -> list[Tensor]:
        if x.device.type in CPU_LIKE and not torch.compiler.is_compiling():
            x = to_channels_last(x)  # convolutions are twice as fast; blocks/norm_act.py has the norm for it
        levels: list[Tensor] = self.decoder(self.encoder(x, axis), axis, n_levels)
        return levels

    def _batches_views(self, x: Tensor) -> bool:
        if self.view_execution == "auto":
            return self.training and x.device.type not in CPU_LIKE and self._can_batch(x.shape[2:])
        if self.view_execution == "batched" and not self._can_batch(x.shape[2:]):
            raise ValueError(
                f"SSH-UNet: view_execution 'batched' needs a cubic patch and, per stage, the same stride along all "
                f"axes; got patch {tuple(x.shape[2:])} and strides {self.strides}. Use 'sequential' or 'auto'."
            )
        return self.view_execution == "batched"

    def _can_batch(self, size: Sequence[int]) -> bool:
        same_strides = self.stride_space == "view" or all(len(set(stride)) == 1 for stride in self.strides)
        return len(set(size)) == 1 and same_strides

    def view_features(self, x: Tensor) -> Tensor:
        """Decoder features at full resolution in view coordinates, view-major: (3 B, features, D, H, W); cubes only."""
        return torch.cat([swap_volume(levels[0], axis) for axis, levels in self._views(x, 1)])

    def check_patch_size(self, patch_size: Sequence[int]) -> None:
        """Raise a ValueError that says what is allowed if the network cannot process (D, H, W) patches of this size."""
        size = list(patch_size)[::-1] if self.axes == "xyz" else list(patch_size)
        self._check_size(size)

    def _check_size(self, size: Sequence[int]) -> None:
        supervised = self.decoder.deep_supervision
        n_fused = self.vfn_levels if supervised else min(self.vfn_levels, 1)
        legacy = bool(n_fused) and self.vfn_alignment == "legacy"
        check_patch_size(size, self.strides, self.stride_space, n_fused, supervised=supervised, cubes_only=legacy)

    def compute_conv_feature_map_size(self, input_size: Sequence[int]) -> int:
        """Memory of a training step in nnU-Net's units, one sample of `input_size` (D, H, W); see blocks/memory.py."""
        return conv_feature_map_units(self, input_size)

    @staticmethod
    def initialize(module: nn.Module) -> None:
        """Kaiming normal for a leaky ReLU of slope 0.01, biases zero (specification sshunet 1.12)."""
        if isinstance(module, (nn.Conv2d, nn.Conv3d, nn.ConvTranspose3d)):
            nn.init.kaiming_normal_(module.weight, a=1e-2)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _add(total: Tensor, level: Tensor) -> Tensor:
    """The sum, in place where autograd does not watch: one buffer less at the largest resolution."""
    return total + level if torch.is_grad_enabled() else total.add_(level)
