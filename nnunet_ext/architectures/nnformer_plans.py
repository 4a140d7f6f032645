"""nnFormer in nnU-Net plans: the architecture block, strides for a patch, and the published networks.

No torch here: planners and command-line verbs read it without paying for the import of the network.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from nnunet_ext.architectures.grids import total_stride

NETWORK_CLASS = "nnunet_ext.architectures.nnformer.NNFormer"
BASE_WIDTH = 48  # features of the tokens' first stage, Alice's; the original nnFormer has 192
BLOCKS = (2, 2, 2, 2)
WINDOWS = (4, 4, 8, 4)
HEADS = 6  # of the first stage of tokens, Alice's and the original's
HEAD_WIDTH = 8  # channels of an attention head, at least
LEAST_HIDDEN = 8  # features of the patch embedding's inner convolutions; layer norm over fewer keeps little but signs
MLP_RATIO = 4.0
DROP_PATH_RATE = 0.2
EMBEDDING_STRIDES = (1, 2, 4)
LEAST_POSITIONS = 2  # an axis
ALICE_PATCH = (64, 64, 64)


def nnformer_strides(
    patch_size: Sequence[int],
    spacing: Sequence[float] | None = None,
    *,
    stages: int = len(BLOCKS),
    exact: bool = False,
) -> list[list[int]]:
    """Strides of all stages: ones, the patch embedding's, then one for each patch merging.

    An axis is halved at every step while at least 2 positions are left along it and, as in nnU-Net, while its voxels
    are less than twice as long as the shortest that can still be halved.

    Args:
        patch_size: (D, H, W) in voxels.
        spacing: (D, H, W) of a voxel in mm; None: voxels are cubes.
        stages: of tokens.
        exact: the patch is not to be rounded up, so only halve axes that can be halved.
    """
    grid, lengths = [float(edge) for edge in patch_size], [float(mm) for mm in spacing or (1.0,) * len(patch_size)]
    strides = [[1] * len(grid)]
    for _ in range(stages):
        able = [math.ceil(n / 2) >= LEAST_POSITIONS and not (exact and n % 2) for n in grid]
        shortest = min((mm for mm, can in zip(lengths, able, strict=True) if can), default=0.0)
        step = [2 if can and mm < 2 * shortest else 1 for mm, can in zip(lengths, able, strict=True)]
        strides.append(step)
        grid = [n / s for n, s in zip(grid, step, strict=True)]
        lengths = [mm * s for mm, s in zip(lengths, step, strict=True)]
    return strides


def lengths_of(strides: Sequence[Sequence[int]]) -> list[float]:
    """Lengths of a voxel that would make nnU-Net choose such strides: an axis doubles for each stage it comes later."""
    starts = [next((i for i, stride in enumerate(strides) if stride[axis] > 1), 0) for axis in range(len(strides[0]))]
    earliest = min((start for start in starts if start), default=0)
    return [2.0 ** max(0, start - earliest) for start in starts]


def fitting_topology(
    patch_size: Sequence[int], spacing: Sequence[float] | None = None
) -> tuple[tuple[int, ...], list[list[int]]]:
    """The wished patch rounded up to what nnFormer can take, and the strides; arguments as of `nnformer_strides`."""
    wished = [max(LEAST_POSITIONS, int(edge)) for edge in patch_size]
    strides = nnformer_strides(wished, spacing)
    patch = tuple(-(-edge // step) * step for edge, step in zip(wished, total_stride(strides), strict=True))
    return patch, strides


def translated_architecture(strides: Sequence[Sequence[int]], patch_size: Sequence[int]) -> dict[str, Any]:
    """Alice's nnFormer for another network's patch, halving first the axes that the other network halves first.

    Args:
        strides: the other network's.
        patch_size: (D, H, W) in voxels; it stays.

    Raises:
        ValueError: no axis of the patch can be halved.
    """
    own = nnformer_strides(patch_size, lengths_of(strides), exact=True)
    if max(own[1]) == 1:
        raise ValueError(
            f"nnFormer: no axis of the plans' patch {tuple(patch_size)} can be halved: plan with NNFormerPlanner."
        )
    return nnformer_architecture(patch_size, own)


def heads_for(base_width: int) -> int:
    """Attention heads of the first stage of tokens: 6, as published, or fewer, of at least 8 channels each."""
    return next(
        heads for heads in range(min(HEADS, max(1, base_width // HEAD_WIDTH)), 0, -1) if base_width % heads == 0
    )


def nnformer_architecture(
    patch_size: Sequence[int],
    strides: Sequence[Sequence[int]],
    *,
    base_width: int = BASE_WIDTH,
    **options: Any,
) -> dict[str, Any]:
    """The `architecture` block of a plans file for nnFormer.

    Args:
        patch_size: (D, H, W) in voxels, divisible by the strides.
        strides: one a stage, the first all ones, the second the patch embedding's.
        base_width: features of the first stage of tokens; they double from stage to stage.
        **options: further keyword arguments of `NNFormer`, JSON values only; they overrule what is chosen here.

    Returns:
        `network_class_name`, `arch_kwargs` and `_kw_requires_import`, JSON values only.
    """
    stages = len(strides) - 1
    widths = [base_width * 2**stage for stage in range(stages)]
    arch_kwargs: dict[str, Any] = {
        "n_stages": stages + 1,
        "features_per_stage": [max(LEAST_HIDDEN, base_width // 2), *widths],
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "strides": [[int(s) for s in stride] for stride in strides],
        "patch_size": [int(edge) for edge in patch_size],
        "n_blocks_per_stage": list(BLOCKS[:stages]),
        "n_blocks_per_stage_decoder": list(BLOCKS[: stages - 1]),
        "num_heads": [heads_for(base_width) * 2**stage for stage in range(stages)],
        "window_size": list(WINDOWS[:stages]),
        "mlp_ratio": MLP_RATIO,
        "drop_path_rate": DROP_PATH_RATE,
        "relative_index": "aligned",
    }
    arch_kwargs.update(options)
    return {
        "network_class_name": NETWORK_CLASS,
        "arch_kwargs": arch_kwargs,
        "_kw_requires_import": ["conv_op"],
    }
