"""OSSNetLocal in nnU-Net plans: the architecture block.

No torch here: planners and command-line verbs read it without paying for the import of the network.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from nnunet_ext.architectures.ossnet_plans import N_POINTS

NETWORK_CLASS = "nnunet_ext.architectures.ossnet_local.OSSNetLocal"
BASE_WIDTH = 32
WIDEST = 10  # times the base width
DENSEST = 4  # voxels a point, at least


def number_of_points(patch_size: Sequence[int]) -> int:
    """Points that a training step draws from a patch: 2^14 (2D: 2^13), or one of four voxels of a small patch."""
    return max(1, min(N_POINTS[len(patch_size)], math.prod(patch_size) // DENSEST))


def ossnet_local_architecture(
    patch_size: Sequence[int],
    strides: Sequence[Sequence[int]],
    kernel_sizes: Sequence[Sequence[int]],
    *,
    base_width: int = BASE_WIDTH,
    regions: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """The `architecture` block of a plans file for `OSSNetLocal`.

    Args:
        patch_size: voxels; decides about the number of points only.
        strides: of each stage, as nnU-Net plans them, the first all ones.
        kernel_sizes: of each stage.
        base_width: features of the first two stages; they double from there to ten times.
        regions: whether the labels are regions.
        **options: further keyword arguments of `OSSNetLocal`, JSON values only.

    Returns:
        `network_class_name`, `arch_kwargs` and `_kw_requires_import`, JSON values only.
    """
    dim, stages = len(patch_size), len(strides)
    features = [min(WIDEST * base_width, base_width * 2**i) for i in range(stages - 1)]
    arch_kwargs: dict[str, Any] = {
        "n_stages": stages,
        "features_per_stage": [base_width, *features],
        "conv_op": f"torch.nn.modules.conv.Conv{dim}d",
        "kernel_sizes": [[int(k) for k in kernel] for kernel in kernel_sizes],
        "strides": [[int(s) for s in stride] for stride in strides],
        "regions": regions,
        "n_points": number_of_points(patch_size),
        "decoder_blocks": 3,
        "activation": "leaky_relu",
    }
    arch_kwargs.update(options)
    return {
        "network_class_name": NETWORK_CLASS,
        "arch_kwargs": arch_kwargs,
        "_kw_requires_import": ["conv_op"],
    }
