"""What Swin-Unet accepts, with errors that say the way out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from nnunet_ext.architectures.swinunet_plans import swinunet_strides


def check_arguments(
    *,
    n_stages: int,
    conv_op: Any,
    features_per_stage: Sequence[int],
    strides: Sequence[Sequence[int]],
    patch_size: Sequence[int],
    blocks: Sequence[int],
    heads: Sequence[int],
    window_size: int,
    drop_path_rate: float,
) -> None:
    """Raise for arguments of `SwinUNet` that do not fit each other; `blocks` and `heads` are those of each stage.

    Raises:
        NotImplementedError: another dimension than 2.
        ValueError: anything else that is impossible.
    """
    if conv_op is not nn.Conv2d:
        raise NotImplementedError(
            f"Swin-Unet is a 2D network: conv_op must be torch.nn.Conv2d, got {conv_op}. Plan and train the "
            "configuration 2d, or another network in 3D."
        )
    check_image_axes(len(patch_size))
    stages = n_stages - 1
    if stages < 2 or len(blocks) != stages or len(heads) != stages or min(blocks) < 1:
        raise ValueError(
            f"Swin-Unet: n_blocks_per_stage and num_heads need one entry for each of n_stages - 1 >= 2 stages of "
            f"blocks; got n_stages {n_stages}, {list(blocks)} and {list(heads)}."
        )
    if [list(stride) for stride in strides] != swinunet_strides(stages):
        raise ValueError(f"Swin-Unet: strides must be {swinunet_strides(stages)}; got {list(strides)}.")
    width = features_per_stage[0]
    expected = [width, *(width * 2**stage for stage in range(stages))]
    if list(features_per_stage) != expected:
        raise ValueError(
            f"Swin-Unet: features_per_stage must double from the second stage on, here {expected}; got "
            f"{list(features_per_stage)}."
        )
    if any(number < 1 or features % number for features, number in zip(expected[1:], heads, strict=True)):
        raise ValueError(f"Swin-Unet: the heads {list(heads)} must divide the widths {expected[1:]}.")
    if window_size < 2 or not 0 <= drop_path_rate < 1:
        raise ValueError(
            "Swin-Unet: window_size must be at least 2 and drop_path_rate at least 0 and below 1; got "
            f"{window_size} and {drop_path_rate}."
        )


def check_image_axes(axes: int) -> None:
    """Raise a ValueError unless there are two spatial axes."""
    if axes != 2:
        raise ValueError(f"Swin-Unet is a 2D network and needs 2 spatial axes; got {axes}. Use the configuration 2d.")
