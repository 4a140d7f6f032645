"""Swin-Unet: a U-shaped network of Swin transformer blocks, for 2D patches of any size.

H. Cao, Y. Wang, J. Chen, D. Jiang, X. Zhang, Q. Tian, M. Wang, Swin-Unet: Unet-like Pure Transformer for Medical Image
Segmentation, ECCV 2022 workshops, arXiv 2105.05537. Written from the specification `selfreg` (sections 2.2, 4.8); the
Swin blocks are timm's. Parameters have the names of the published inner network, but for its head: `output.weight` is
`decoder.seg_layers.0.weight` here, so that nnU-Net leaves it out of pretrained weights.

Differences from the published network:
    * Any patch size: images are padded with zeros at the end of each axis to a multiple of the total stride, logits
      are cropped. Windows that the map does not fill are filled up and masked.
    * Any number of input channels; the original repeats one channel three times.
    * One head. With deep supervision, which is off in our trainer, its logits are averaged to the lower resolutions, so
      that these plans train with any nnU-Net trainer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from timm.models.swin_transformer import PatchMerging
from torch import Tensor, nn
from torch.nn import functional as F

from nnunet_ext.architectures.blocks.memory import conv_feature_map_units
from nnunet_ext.architectures.blocks.swin import PatchExpand, SwinBlock
from nnunet_ext.architectures.swinunet_checks import check_arguments, check_image_axes
from nnunet_ext.architectures.swinunet_plans import EMBEDDING_STRIDE, total_stride
from nnunet_ext.losses.points import KDPoint, KDPoints


class PatchEmbed(nn.Module):
    """Non-overlapping patches of 4 x 4 pixels to tokens."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(inputs, outputs, EMBEDDING_STRIDE, EMBEDDING_STRIDE)
        self.norm = nn.LayerNorm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, H / 4, W / 4, outputs)."""
        tokens: Tensor = self.norm(self.proj(x).permute(0, 2, 3, 1))
        return tokens


class SwinUNet(nn.Module):
    """Swin-Unet for images (B, C, H, W), built from nnU-Net plans.

    Args:
        input_channels: C.
        n_stages: resolutions: the full one, and at least two of tokens (published: four).
        features_per_stage: feature maps, full resolution first; the first two are equal, then they double. Published:
            96, 96, 192, 384, 768.
        conv_op: `torch.nn.Conv2d`.
        strides: (H, W) per stage, as nnU-Net writes them: 1, 4, then 2.
        patch_size: pixels, (H, W). Attention masks are prepared for it; weights do not depend on it.
        num_classes: K, number of segmentation heads.
        n_blocks_per_stage: Swin blocks of each stage but the first; the decoder mirrors them.
        num_heads: attention heads, in the same order; they divide the widths.
        window_size: positions along each axis of an attention window.
        mlp_ratio: width of the MLPs by that of their stage.
        drop_path_rate: largest rate at which branches of a block are dropped; rises linearly over the encoder's blocks.
        deep_supervision: see `forward`.

    Raises:
        NotImplementedError: another `conv_op`.
        ValueError: anything impossible; the text says what is allowed.
    """

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
        num_heads: Sequence[int],
        window_size: int = 7,
        mlp_ratio: float = 4.0,
        drop_path_rate: float = 0.2,
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        check_arguments(
            n_stages=n_stages,
            conv_op=conv_op,
            features_per_stage=features_per_stage,
            strides=strides,
            patch_size=patch_size,
            blocks=n_blocks_per_stage,
            heads=num_heads,
            window_size=window_size,
            drop_path_rate=drop_path_rate,
        )
        self.input_channels, self.num_classes = input_channels, num_classes
        widths, stages = list(features_per_stage[1:]), n_stages - 1
        self.total_stride = total_stride(stages)
        padded = [-(-int(edge) // self.total_stride) * self.total_stride for edge in patch_size]
        sizes = [[edge // (EMBEDDING_STRIDE * 2**i) for edge in padded] for i in range(stages)]
        rates = _drop_path_rates(drop_path_rate, n_blocks_per_stage)

        def stage_of(i: int) -> nn.Module:
            """A module with `blocks`, to be filled with what changes the resolution after them."""
            stage = nn.Module()
            stage.blocks = nn.Sequential(
                *(
                    SwinBlock(widths[i], sizes[i], num_heads[i], window_size, j % 2 == 1, mlp_ratio, rate)
                    for j, rate in enumerate(rates[i])
                )
            )
            return stage

        self.patch_embed = PatchEmbed(input_channels, widths[0])
        self.layers = nn.ModuleList(stage_of(i) for i in range(stages))
        for i, layer in enumerate(self.layers[:-1]):
            layer.downsample = PatchMerging(widths[i])
        self.norm = nn.LayerNorm(widths[-1])
        self.layers_up = nn.ModuleList([PatchExpand(widths[-1], 2, 2)])
        self.concat_back_dim = nn.ModuleList([nn.Identity()])  # the first decoder stage has no skip
        for i in range(stages - 2, -1, -1):
            self.concat_back_dim.append(nn.Linear(2 * widths[i], widths[i]))
            layer = stage_of(i)
            if i:
                layer.upsample = PatchExpand(widths[i], 2, 2)
            self.layers_up.append(layer)
        self.norm_up = nn.LayerNorm(widths[0])
        self.up = PatchExpand(widths[0], EMBEDDING_STRIDE, 1)
        self.decoder = _Heads(widths[0], num_classes, len(strides) - 1, deep_supervision)
        self.apply(_initialise_linear)
        _share_position_index(self)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Logits of a batch.

        Args:
            x: (B, C, H, W), floating, of any size.

        Returns:
            (B, K, H, W). With `decoder.deep_supervision`, a list of `n_stages` - 1 tensors, full resolution first: the
            same logits, averaged to nnU-Net's lower scales.

        Raises:
            ValueError: not an image.
        """
        check_image_axes(x.dim() - 2)
        height, width = x.shape[2], x.shape[3]
        fill = (-height % self.total_stride, -width % self.total_stride)
        if any(fill):
            x = F.pad(x, (0, fill[1], 0, fill[0]))
        logits = self.decoder.seg_layers[0](self._features(x).permute(0, 3, 1, 2))
        if any(fill):
            logits = logits[:, :, :height, :width].contiguous()
        return self.decoder.outputs(logits)

    def _features(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the input of the head, (B, H, W, features); H and W are multiples of the total stride."""
        x = self.patch_embed(x)
        skips = []
        for layer in self.layers:
            skips.append(x)
            x = _run(layer, x)
        x = self.layers_up[0](self.norm(x))
        for layer, narrow, skip in zip(self.layers_up[1:], self.concat_back_dim[1:], skips[-2::-1], strict=True):
            x = _run(layer, narrow(torch.cat([x, skip], -1)))
        features: Tensor = self.up(self.norm_up(x))
        return features

    def compute_conv_feature_map_size(self, input_size: Sequence[int]) -> int:
        """Memory of a training step in nnU-Net's units, one sample of `input_size`; see blocks/memory.py."""
        return conv_feature_map_units(self, input_size)

    def kd_points(self) -> KDPoints:
        """First and last block of every stage; the head's input teaches (specification selfreg 1.4, 4.2)."""
        encoder = tuple(_first_and_last(f"layers.{i}", layer) for i, layer in enumerate(self.layers))
        decoder = tuple(_first_and_last(f"layers_up.{i}", layer) for i, layer in enumerate(self.layers_up) if i)
        return KDPoints(encoder, decoder, KDPoint("up", _channels_first))


class _Heads(nn.Module):
    """The segmentation head, with nnU-Net's switch."""

    def __init__(self, features: int, classes: int, scales: int, deep_supervision: bool) -> None:
        super().__init__()
        self.deep_supervision, self.scales = deep_supervision, scales
        self.seg_layers = nn.ModuleList([nn.Conv2d(features, classes, 1, bias=False)])

    def outputs(self, logits: Tensor) -> Tensor | list[Tensor]:
        """The logits, or with deep supervision also their averages at nnU-Net's lower scales: 1/4, 1/8, ..."""
        if not self.deep_supervision:
            return logits
        return [logits, *(_averaged(logits, EMBEDDING_STRIDE * 2**i) for i in range(self.scales - 1))]


def _averaged(logits: Tensor, step: int) -> Tensor:
    """Averages over `step` x `step` pixels; nearly, where the size is no multiple (nnU-Net's targets are rounded)."""
    height, width = logits.shape[2:]
    if height % step or width % step:
        return F.adaptive_avg_pool2d(logits, (max(1, round(height / step)), max(1, round(width / step))))
    return logits.unflatten(3, (-1, step)).unflatten(2, (-1, step)).mean((3, 5))  # keeps nothing for backward


def _run(stage: Any, x: Tensor) -> Tensor:
    """A stage's blocks, and what changes the resolution after them."""
    x = stage.blocks(x)
    for name in ("downsample", "upsample"):
        if hasattr(stage, name):
            x = getattr(stage, name)(x)
    return x


def _drop_path_rates(largest: float, blocks: Sequence[int]) -> list[list[float]]:
    """Rates of each stage's blocks, rising linearly from 0 over all of them."""
    total = sum(blocks)
    rates = iter(largest * i / max(1, total - 1) for i in range(total))
    return [[next(rates) for _ in range(number)] for number in blocks]


def _initialise_linear(module: nn.Module) -> None:
    """As published; norms and convolutions keep torch's, bias tables timm's initialisation."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _share_position_index(network: nn.Module) -> None:
    """One table of pairs of positions for all blocks instead of one each: their backward passes keep it."""
    attentions = [block.attn for block in network.modules() if isinstance(block, SwinBlock)]
    for attention in attentions:
        attention.relative_position_index = attentions[0].relative_position_index


def _first_and_last(name: str, layer: nn.Module) -> tuple[KDPoint, ...]:
    last = len(cast(Any, layer).blocks) - 1
    return tuple(KDPoint(f"{name}.blocks.{j}", _channels_first) for j in sorted({0, last}))


def _channels_first(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2)
