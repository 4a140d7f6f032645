"""UNETR++: a hierarchy of efficient paired attention and convolutions, for 2D and 3D patches of any size.

A. M. Shaker, M. Maaz, H. Rasheed, S. Khan, M.-H. Yang, F. S. Khan, UNETR++: Delving into Efficient and Accurate 3D
Medical Image Segmentation, IEEE TMI 2024, arXiv 2212.04497 (authors' code: Apache-2.0). Written from the specification
`unetrpp`.

Differences from the published networks:
    * One network with switches for what tells the four published ones apart; any patch size, 2D too.
    * Attention is computed in another, cheaper order with the same results (`blocks/paired_attention.py`).
    * The spatial branch's tokens are in order (`sa_layout="legacy"` restores the published scramble).
    * A fourth head, on the lowest decoder stage, so that nnU-Net's list of targets fits; its weight in nnU-Net's loss
      is zero. Heads exist with and without deep supervision.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from nnunet_ext.architectures.blocks.convolution import convolution
from nnunet_ext.architectures.blocks.layout import CPU_LIKE, to_channels_last
from nnunet_ext.architectures.blocks.memory import conv_feature_map_units
from nnunet_ext.architectures.blocks.paired_attention import LAYOUTS
from nnunet_ext.architectures.blocks.patch_resampling import PatchEmbedding, PatchExpansion
from nnunet_ext.architectures.blocks.precision import without_autocast
from nnunet_ext.architectures.blocks.residual_block import ResidualBlock
from nnunet_ext.architectures.blocks.transformer_block import BlockOptions, TransformerBlock
from nnunet_ext.architectures.grids import token_grids
from nnunet_ext.architectures.unetrpp_checks import check_arguments, check_patch_size, other_layout, other_patch
from nnunet_ext.losses.points import KDPoint, KDPoints


class UNETRPPEncoder(nn.Module):
    """Full-resolution stem, then stages of strided convolution, group norm and transformer blocks."""

    def __init__(
        self,
        input_channels: int,
        features: Sequence[int],
        strides: Sequence[Sequence[int]],
        grids: Sequence[Sequence[int]],
        blocks: Sequence[int],
        heads: Sequence[int],
        sizes: Sequence[int],
        stem_groups: int | None,
        full_resolution: BlockOptions,
        options: BlockOptions,
    ) -> None:
        super().__init__()
        dim = len(strides[0])
        self.stem = _full_resolution_block(dim, input_channels, features[0], full_resolution)
        self.downsamples, self.stages = nn.ModuleList(), nn.ModuleList()
        for i, width in enumerate(features[1:]):
            before = features[i] if i else input_channels
            groups = before if i or stem_groups is None else stem_groups
            self.downsamples.append(PatchEmbedding(before, width, strides[i + 1], groups if width % groups == 0 else 1))
            tokens = math.prod(grids[i])
            self.stages.append(
                nn.Sequential(
                    *(TransformerBlock(dim, tokens, width, sizes[i], heads[i], options) for _ in range(blocks[i]))
                )
            )
        for module in self.modules():  # of the encoder only, as published
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> list[Tensor]:
        """x: (B, C, *patch); returns the features of every stage, full resolution first."""
        features = [self.stem(x)]
        for down, stage in zip(self.downsamples, self.stages, strict=True):
            x = stage(down(x))
            features.append(x)
        return features


class UNETRPPDecoder(nn.Module):
    """The expanding path and the heads. Index 0 is the lowest resolution, as in nnU-Net's decoder."""

    def __init__(
        self,
        num_classes: int,
        features: Sequence[int],
        strides: Sequence[Sequence[int]],
        grids: Sequence[Sequence[int]],
        blocks: Sequence[int],
        heads: Sequence[int],
        sizes: Sequence[int],
        full_resolution: BlockOptions,
        options: BlockOptions,
        deep_supervision: bool,
    ) -> None:
        super().__init__()
        self.deep_supervision = deep_supervision
        dim = len(strides[0])
        self.transpconvs, self.stages, self.seg_layers = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for j, level in enumerate(range(len(features) - 2, -1, -1)):
            width = features[level]
            self.transpconvs.append(PatchExpansion(features[level + 1], width, strides[level + 1]))
            self.seg_layers.append(convolution(dim, width, num_classes, 1, bias=True))
            if level == 0:
                self.stages.append(_full_resolution_block(dim, width, width, full_resolution))
                continue
            tokens = math.prod(grids[level - 1])
            self.stages.append(
                nn.Sequential(
                    *(TransformerBlock(dim, tokens, width, sizes[j], heads[j], options) for _ in range(blocks[j]))
                )
            )

    def forward(self, skips: list[Tensor]) -> list[Tensor]:
        """Logits, full resolution first, of all decoder stages, or of the last alone; empties `skips`."""
        x = skips.pop()
        outputs: list[Tensor] = []
        for j, (up, stage, head) in enumerate(zip(self.transpconvs, self.stages, self.seg_layers, strict=True)):
            x = stage(up(x, skips.pop()))
            if self.deep_supervision or j == len(self.stages) - 1:
                outputs.insert(0, head(x))
        return outputs


class UNETRPP(nn.Module):
    """UNETR++ for patches (B, C, D, H, W) or (B, C, H, W) of one size, built from nnU-Net plans.

    Args:
        input_channels: C.
        n_stages: resolutions: the full one, and at least two of tokens (published: four).
        features_per_stage: feature maps, full resolution first; published: 16, 32, 64, 128, 256.
        conv_op: `torch.nn.Conv3d` or `torch.nn.Conv2d`.
        strides: (D, H, W) or (H, W) per stage, as nnU-Net writes them: the first all ones, the second the patch
            embedding's (its kernel, too).
        patch_size: voxels, same order; divisible by the product of the strides. Weights depend on it.
        num_classes: K, number of segmentation heads.
        n_blocks_per_stage: transformer blocks of each stage but the first.
        n_blocks_per_stage_decoder: the same in the decoder, lowest resolution first; the full resolution has none.
        num_heads, num_heads_decoder: attention heads, in the same orders; they divide the widths.
        proj_size, proj_size_decoder: tokens that keys and values are projected to, in the same orders.
        projections: "tied", "separate" or "no_bias"; see `PairedAttention`.
        fusion: of the attention's branches, "concat" or "sum".
        n_res_blocks: residual blocks a transformer block, published: 1 or 2.
        sa_layout: "fixed", or "legacy" for published weights.
        attention_dropout: rates of the encoder and of the decoder.
        block_dropout: rate at which whole channels are dropped before a block's last convolution.
        stem_groups: groups of the patch embedding's norm; None: C, or 1 where C does not divide the width.
        norm_op, norm_op_kwargs: in the transformer blocks: batch norm, as published, or instance norm.
        nonlin, nonlin_kwargs: leaky ReLU; "negative_slope".
        float32: no mixed precision: autocast does not reach the network.
        deep_supervision: see `forward`.

    Raises:
        ValueError: anything impossible; the text says what is allowed.
    """

    key_to_encoder = "encoder"
    key_to_stem = "encoder.stem"
    keys_to_in_proj = ("encoder.stem.conv1", "encoder.stem.shortcut", "encoder.downsamples.0.conv")

    patch_size_key = "patch_size_else_adapt_patch"  # nnU-Net shows it to who loads weights for another patch

    def __init__(
        self,
        input_channels: int,
        n_stages: int,
        features_per_stage: Sequence[int],
        conv_op: type[nn.Module],
        strides: Sequence[Sequence[int]],
        patch_size: Sequence[int],
        num_classes: int,
        n_blocks_per_stage: Sequence[int],
        n_blocks_per_stage_decoder: Sequence[int],
        num_heads: Sequence[int],
        num_heads_decoder: Sequence[int],
        proj_size: Sequence[int],
        proj_size_decoder: Sequence[int],
        projections: str = "tied",
        fusion: str = "concat",
        n_res_blocks: int = 1,
        sa_layout: str = "fixed",
        attention_dropout: Sequence[float] = (0.15, 0.15),
        block_dropout: float = 0.1,
        stem_groups: int | None = None,
        norm_op: type[nn.Module] | None = None,
        norm_op_kwargs: dict[str, Any] | None = None,
        nonlin: type[nn.Module] = nn.LeakyReLU,
        nonlin_kwargs: dict[str, Any] | None = None,
        float32: bool = False,
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        dim = 3 if conv_op is nn.Conv3d else 2
        norm_op = norm_op or (nn.BatchNorm3d if dim == 3 else nn.BatchNorm2d)
        slope = (nonlin_kwargs or {}).get("negative_slope", 0.01)
        check_arguments(
            n_stages=n_stages,
            conv_op=conv_op,
            norm_op=norm_op,
            nonlin=nonlin,
            features_per_stage=features_per_stage,
            strides=strides,
            encoder=(n_blocks_per_stage, num_heads, proj_size),
            decoder=(n_blocks_per_stage_decoder, num_heads_decoder, proj_size_decoder),
            choices={"projections": projections, "fusion": fusion, "sa_layout": sa_layout},
            n_res_blocks=n_res_blocks,
            dropouts=(*attention_dropout, block_dropout),
            slope=slope,
        )
        check_patch_size(patch_size, strides)
        self.input_channels, self.num_classes, self.float32 = input_channels, num_classes, float32
        self.patch_size = tuple(int(edge) for edge in patch_size)
        # Nothing but a shape: (0, layout, *patch). It is in checkpoints, so that loading weights for another patch or
        # spatial layout is an error that shows both, in nnU-Net's own commands, too.
        self.register_buffer(self.patch_size_key, torch.empty(0, LAYOUTS.index(sa_layout), *self.patch_size))
        self.register_load_state_dict_pre_hook(_refuse_other_patch)
        full_resolution = BlockOptions(nn.InstanceNorm3d if dim == 3 else nn.InstanceNorm2d, slope=slope)
        options = BlockOptions(
            norm_op,
            norm_op_kwargs or {},
            slope,
            projections,
            fusion,
            sa_layout,
            n_res_blocks,
            attention_dropout[0],
            block_dropout,
        )
        grids = token_grids(patch_size, strides)
        self.encoder = UNETRPPEncoder(
            input_channels,
            features_per_stage,
            strides,
            grids,
            n_blocks_per_stage,
            num_heads,
            proj_size,
            stem_groups,
            full_resolution,
            options,
        )
        self.decoder = UNETRPPDecoder(
            num_classes,
            features_per_stage,
            strides,
            grids,
            n_blocks_per_stage_decoder,
            num_heads_decoder,
            proj_size_decoder,
            full_resolution,
            replace(options, attention_dropout=attention_dropout[1]),
            deep_supervision,
        )

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Logits of a batch.

        Args:
            x: (B, C, *patch_size), floating.

        Returns:
            (B, K, *patch_size). With `decoder.deep_supervision`, in training and eval mode alike, a list of
            `n_stages` - 1 tensors, full resolution first, each at its decoder stage's own size.

        Raises:
            ValueError: another patch size than the network's.
        """
        self.check_patch_size(x.shape[2:])
        if self.float32:
            with without_autocast(x):
                outputs = self._logits(x.float())
        else:
            outputs = self._logits(x)
        return outputs if self.decoder.deep_supervision else outputs[0]

    def _logits(self, x: Tensor) -> list[Tensor]:
        if x.device.type in CPU_LIKE and not torch.compiler.is_compiling():
            x = to_channels_last(x)
        outputs: list[Tensor] = self.decoder(self.encoder(x))
        return outputs

    def kd_points(self) -> KDPoints:
        """Where self-regularisation takes its features: every stage of tokens; the full-resolution decoder teaches."""
        last = len(self.decoder.stages) - 1
        return KDPoints(
            tuple((KDPoint(f"encoder.stages.{i}"),) for i in range(len(self.encoder.stages))),
            tuple((KDPoint(f"decoder.stages.{j}"),) for j in range(last)),
            KDPoint(f"decoder.stages.{last}"),
        )

    def check_patch_size(self, patch_size: Sequence[int]) -> None:
        """Raise a ValueError that names both sizes and the way out if the network is not for such patches."""
        if tuple(patch_size) != self.patch_size:
            raise ValueError(other_patch(self.patch_size, patch_size))

    def compute_conv_feature_map_size(self, input_size: Sequence[int]) -> int:
        """Memory of a training step in nnU-Net's units, one sample of `input_size`; see blocks/memory.py.

        Raises:
            ValueError: another patch size than the network's.
        """
        self.check_patch_size(input_size)
        return conv_feature_map_units(self, input_size)


def _full_resolution_block(dim: int, inputs: int, outputs: int, options: BlockOptions) -> ResidualBlock:
    return ResidualBlock(dim, inputs, outputs, options.norm_op, options.norm_op_kwargs, options.slope)


def _refuse_other_patch(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: object) -> None:
    """Raise a ValueError for weights of another patch size or layout, before a page of mismatching shapes."""
    given = state_dict.get(prefix + UNETRPP.patch_size_key)
    if isinstance(given, Tensor) and isinstance(module, UNETRPP):
        own = module.get_buffer(UNETRPP.patch_size_key).shape
        if given.shape[2:] != own[2:]:
            raise ValueError(other_patch(given.shape[2:], own[2:]))
        if given.shape[1] != own[1]:
            raise ValueError(other_layout(LAYOUTS[given.shape[1]], LAYOUTS[own[1]]))
