"""Swin-Unet in nnU-Net plans: the architecture block and the published network.

No torch here: planners and command-line verbs read it without paying for the import of the network.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

NETWORK_CLASS = "nnunet_ext.architectures.swinunet.SwinUNet"
BASE_WIDTH = 96  # features of the patch embedding, Swin-T's
EMBEDDING_STRIDE = 4
BLOCKS = (2, 2, 2, 2)
WINDOW = 7
MLP_RATIO = 4.0
DROP_PATH_RATE = 0.2
HEAD_WIDTH = 32  # channels of an attention head, as published
PUBLISHED_PATCH = (224, 224)


def swinunet_strides(stages: int = len(BLOCKS)) -> list[list[int]]:
    """Strides of all stages: full resolution, the patch embedding's 4, then 2 for each patch merging.

    Args:
        stages: stages of Swin blocks.
    """
    return [[1, 1], [EMBEDDING_STRIDE] * 2, *([2, 2] for _ in range(stages - 1))]


def total_stride(stages: int = len(BLOCKS)) -> int:
    """What images are padded to a multiple of, inside the network; 32 with the published four stages."""
    return int(EMBEDDING_STRIDE * 2 ** (stages - 1))


def heads_for(width: int) -> int:
    """Attention heads of at least 32 channels each, as many as divide the width; the published 3, 6, 12, 24."""
    return next(heads for heads in range(max(1, width // HEAD_WIDTH), 0, -1) if width % heads == 0)


def swinunet_architecture(
    patch_size: Sequence[int],
    *,
    base_width: int = BASE_WIDTH,
    blocks: Sequence[int] = BLOCKS,
    **options: Any,
) -> dict[str, Any]:
    """The `architecture` block of a plans file for Swin-Unet.

    Args:
        patch_size: (H, W) in pixels; attention masks are prepared for it, other sizes work as well.
        base_width: features of the patch embedding; they double from stage to stage.
        blocks: Swin blocks of each stage, high resolution first.
        **options: further keyword arguments of `SwinUNet`, JSON values only; they overrule what is chosen here.

    Returns:
        `network_class_name`, `arch_kwargs` and `_kw_requires_import`, JSON values only.
    """
    widths = [base_width * 2**stage for stage in range(len(blocks))]
    arch_kwargs: dict[str, Any] = {
        "n_stages": len(blocks) + 1,
        "features_per_stage": [base_width, *widths],
        "conv_op": "torch.nn.modules.conv.Conv2d",
        "strides": swinunet_strides(len(blocks)),
        "patch_size": [int(edge) for edge in patch_size],
        "n_blocks_per_stage": [int(number) for number in blocks],
        "num_heads": [heads_for(width) for width in widths],
        "window_size": WINDOW,
        "mlp_ratio": MLP_RATIO,
        "drop_path_rate": DROP_PATH_RATE,
    }
    arch_kwargs.update(options)
    return {
        "network_class_name": NETWORK_CLASS,
        "arch_kwargs": arch_kwargs,
        "_kw_requires_import": ["conv_op"],
    }
