"""nnFormer: a 3D encoder-decoder of shifted-window transformer blocks; Alice's backbone.

H.-Y. Zhou, J. Guo, Y. Zhang, X. Han, L. Yu, L. Wang, Y. Yu, nnFormer: Volumetric Medical Image Segmentation via a 3D
Transformer, IEEE TIP 2023, arXiv 2109.03201; as modified by Alice: Y. Jiang et al., Anatomical Invariance Modeling and
Semantic Alignment for Self-supervised Learning in 3D Medical Image Analysis, ICCV 2023, arXiv 2302.05615 (both authors'
codes: Apache-2.0). Written from the specification `alice` 1.5, 2.

Differences from the published networks:
    * Any patch that the strides divide; windows fit the grid an axis at a time.
    * Every offset within a window has its own bias (`relative_index="legacy"` restores the published mix-up).
    * The position table is a buffer of sines and cosines, saved with the weights. Alice's is random and in no file.
    * A fourth head, on the deepest stage, so that nnU-Net's list of targets fits; its weight in nnU-Net's loss is zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from nnunet_ext.architectures.blocks.memory import conv_feature_map_units
from nnunet_ext.architectures.blocks.patch_convolutions import channels_first
from nnunet_ext.architectures.blocks.shifted_windows import ALIGNED
from nnunet_ext.architectures.blocks.window_attention import WindowBlock, WindowOptions
from nnunet_ext.architectures.grids import token_grids
from nnunet_ext.architectures.nnformer_checks import check_arguments, check_patch_size
from nnunet_ext.architectures.nnformer_parts import NNFormerDecoder, NNFormerEncoder
from nnunet_ext.losses.points import KDPoint, KDPoints


class Features(NamedTuple):
    """What pre-training looks at.

    Attributes:
        neck: (B, 8 C, *grid): the deepest stage's output after its norm.
        context: (B, 4 C, *finer grid): the first decoder stage's output.
        output: (B, K, *patch): what the head at full resolution makes of the last decoder stage.
    """

    neck: Tensor
    context: Tensor
    output: Tensor


class NNFormer(nn.Module):
    """nnFormer for patches (B, C, D, H, W), built from nnU-Net plans.

    Args:
        input_channels: C.
        n_stages: resolutions: the full one, and at least two of tokens (published: four).
        features_per_stage: feature maps; the first are those of the patch embedding's inner convolutions, then they
            double. Alice: 24, 48, 96, 192, 384; the original: 96, 192, 384, 768, 1536.
        conv_op: `torch.nn.Conv3d`.
        strides: (D, H, W) per stage, as nnU-Net writes them: the first all ones, the second the patch embedding's.
        patch_size: voxels, same order; divisible by the product of the strides. Windows and the position table are
            made for it; the forward pass takes other sizes, too.
        num_classes: K, number of segmentation heads.
        n_blocks_per_stage: transformer blocks of each stage of tokens, every second one with shifted windows.
        n_blocks_per_stage_decoder: the same, low resolution first; the first block attends to the skip.
        num_heads: attention heads of each stage of tokens, high resolution first; they divide the widths.
        window_size: edges of the attention windows, same order.
        mlp_ratio: width of the MLPs by that of their stage.
        drop_path_rate: largest rate at which branches of a block are dropped; rises linearly over the encoder's blocks,
            and over the decoder's.
        relative_index: "aligned", or "legacy" for weights that were trained with the published index.
        deep_supervision: see `forward`.

    Raises:
        NotImplementedError: another `conv_op`.
        ValueError: anything impossible; the text says what is allowed.
    """

    key_to_encoder = "encoder"
    key_to_stem = "encoder.patch_embed"
    keys_to_in_proj = ("encoder.patch_embed.proj1.conv1",)
    key_to_lpe = "encoder.absolute_pos_embed"

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
        window_size: Sequence[int],
        mlp_ratio: float = 4.0,
        drop_path_rate: float = 0.2,
        relative_index: str = ALIGNED,
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        check_arguments(
            n_stages=n_stages,
            conv_op=conv_op,
            features_per_stage=features_per_stage,
            strides=strides,
            blocks=n_blocks_per_stage,
            blocks_decoder=n_blocks_per_stage_decoder,
            heads=num_heads,
            windows=window_size,
            rates=(mlp_ratio, drop_path_rate),
            relative_index=relative_index,
        )
        check_patch_size(patch_size, strides)
        self.input_channels, self.num_classes = input_channels, num_classes
        self.strides = [tuple(stride) for stride in strides]
        self.patch_size = tuple(int(edge) for edge in patch_size)
        grids, options = token_grids(patch_size, strides), WindowOptions(relative_index, mlp_ratio)
        stages = (grids, num_heads, window_size, drop_path_rate, options)
        self.encoder = NNFormerEncoder(input_channels, features_per_stage, strides, n_blocks_per_stage, *stages)
        self.decoder = NNFormerDecoder(
            num_classes, features_per_stage, strides, n_blocks_per_stage_decoder, *stages, deep_supervision
        )
        self.apply(_initialise_linear)
        _share_position_indices(self)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Logits of a batch.

        Args:
            x: (B, C, D, H, W), floating, of a size that the strides divide.

        Returns:
            (B, K, D, H, W). With `decoder.deep_supervision`, in training and eval mode alike, a list of `n_stages` - 1
            tensors, full resolution first, at nnU-Net's scales.

        Raises:
            ValueError: the strides do not divide the size.
        """
        outputs = self.decoder.logits(self._maps(x))
        return outputs if self.decoder.deep_supervision else outputs[0]

    def features(self, x: Tensor) -> Features:
        """One forward pass for pre-training; deep supervision does not matter here.

        Args:
            x: as of `forward`.

        Raises:
            ValueError: the strides do not divide the size.
        """
        maps = self._maps(x)
        return Features(maps[0], maps[1], self.decoder.seg_layers[-1](maps[-1]))

    def _maps(self, x: Tensor) -> list[Tensor]:
        self.check_patch_size(x.shape[2:])
        maps: list[Tensor] = self.decoder(self.encoder(x))
        return maps

    def check_patch_size(self, patch_size: Sequence[int]) -> None:
        """Raise a ValueError that names what is allowed if the strides do not divide a patch."""
        check_patch_size(patch_size, self.strides)

    def compute_conv_feature_map_size(self, input_size: Sequence[int]) -> int:
        """Memory of a training step in nnU-Net's units, one sample of `input_size`; see blocks/memory.py."""
        return conv_feature_map_units(self, input_size)

    def kd_points(self) -> KDPoints:
        """Every stage's normed tokens, every decoder stage; the last of them teaches (specification selfreg 4.2)."""
        encoder = tuple((KDPoint(f"encoder.norms.{i}", channels_first),) for i in range(len(self.encoder.norms)))
        *decoder, teacher = (KDPoint(f"decoder.stages.{j}", channels_first) for j in range(len(self.decoder.stages)))
        return KDPoints(encoder, tuple((point,) for point in decoder), teacher)


def _initialise_linear(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)


def _share_position_indices(network: nn.Module) -> None:
    """One table of pairs of positions for all blocks with the same window: their backward passes keep it."""
    indices: dict[tuple[int, ...], Tensor] = {}
    for block in network.modules():
        if isinstance(block, WindowBlock):
            block.attn.relative_position_index = indices.setdefault(block.window, block.attn.relative_position_index)
