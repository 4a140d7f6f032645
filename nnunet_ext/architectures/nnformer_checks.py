"""What nnFormer accepts, with errors that say the way out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from nnunet_ext.architectures.blocks.shifted_windows import INDEX_STYLES
from nnunet_ext.architectures.grids import total_stride
from nnunet_ext.architectures.nnformer_plans import EMBEDDING_STRIDES


def check_arguments(
    *,
    n_stages: int,
    conv_op: Any,
    features_per_stage: Sequence[int],
    strides: Sequence[Sequence[int]],
    blocks: Sequence[int],
    blocks_decoder: Sequence[int],
    heads: Sequence[int],
    windows: Sequence[int],
    rates: tuple[float, float],
    relative_index: str,
) -> None:
    """Raise for arguments of `NNFormer` that do not fit each other; `rates` are MLP ratio and drop path rate.

    Raises:
        NotImplementedError: another dimension than 3.
        ValueError: anything else that is impossible.
    """
    if conv_op is not nn.Conv3d:
        raise NotImplementedError(
            f"nnFormer is a 3D network: conv_op must be torch.nn.Conv3d, got {conv_op}. Plan and train a 3d "
            "configuration, or another network in 2D."
        )
    stages = n_stages - 1
    if stages < 2:
        raise ValueError(f"nnFormer: at least 3 stages are needed; got n_stages {n_stages}.")
    wanted: dict[str, tuple[Sequence[Any], int]] = {
        "features_per_stage": (features_per_stage, n_stages),
        "n_blocks_per_stage": (blocks, stages),
        "n_blocks_per_stage_decoder": (blocks_decoder, stages - 1),
        "num_heads": (heads, stages),
        "window_size": (windows, stages),
    }
    for name, (values, count) in wanted.items():
        if len(values) != count or min(values) < 1:
            raise ValueError(
                f"nnFormer: {name} needs {count} positive entries for {n_stages} stages; got {list(values)}."
            )
    _check_strides(strides, n_stages)
    expected = [features_per_stage[1] * 2**stage for stage in range(stages)]
    if list(features_per_stage[1:]) != expected:
        raise ValueError(
            f"nnFormer: features_per_stage must double from the second stage on, here to {expected}; got "
            f"{list(features_per_stage)}."
        )
    if any(width % number for width, number in zip(expected, heads, strict=True)):
        raise ValueError(f"nnFormer: the heads {list(heads)} must divide the widths {expected}.")
    if rates[0] <= 0 or not 0 <= rates[1] < 1:
        raise ValueError(
            "nnFormer: mlp_ratio must be positive and drop_path_rate at least 0 and below 1; got "
            f"{rates[0]} and {rates[1]}."
        )
    if relative_index not in INDEX_STYLES:
        raise ValueError(f"nnFormer: relative_index {relative_index!r} unknown; choose {' or '.join(INDEX_STYLES)}.")


def _check_strides(strides: Sequence[Sequence[int]], n_stages: int) -> None:
    if len(strides) != n_stages or any(isinstance(s, int) or len(s) != 3 or min(s) < 1 for s in strides):
        raise ValueError(f"nnFormer: strides needs 3 positive numbers for each of {n_stages} stages; got {strides}.")
    if max(strides[0]) > 1:
        raise ValueError(f"nnFormer: strides must start with a stage of ones; got {list(strides)}.")
    if not set(strides[1]) <= set(EMBEDDING_STRIDES):
        raise ValueError(
            f"nnFormer: the patch embedding's strides, the second, must be of {EMBEDDING_STRIDES}; got {strides[1]}."
        )
    if any(step > 2 for stride in strides[2:] for step in stride):
        raise ValueError(f"nnFormer: from the third stage on strides must be 1 or 2; got {list(strides[2:])}.")


def check_patch_size(patch_size: Sequence[int], strides: Sequence[Sequence[int]]) -> None:
    """Raise a ValueError if a patch cannot be divided into tokens at every stage."""
    shape, total = tuple(int(edge) for edge in patch_size), total_stride(strides)
    if len(shape) != len(total):
        raise ValueError(f"nnFormer is a 3D network and needs 3 spatial axes; got patch size {shape}.")
    if any(edge < 1 or edge % step for edge, step in zip(shape, total, strict=True)):
        fitting = tuple(max(1, -(-edge // step)) * step for edge, step in zip(shape, total, strict=True))
        raise ValueError(
            f"nnFormer: patch size {shape} is not divisible by the total stride {total}; use e.g. {fitting}."
        )
