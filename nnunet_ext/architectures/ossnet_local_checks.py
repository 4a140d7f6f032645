"""What `OSSNetLocal` cannot be built with, or work on, said before anything fails."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn


def check_arguments(
    *,
    n_stages: int,
    conv_op: type[nn.Module],
    features_per_stage: Sequence[int],
    kernel_sizes: Sequence[Sequence[int]],
    strides: Sequence[Sequence[int]],
    n_points: int,
    decoder_blocks: int,
) -> None:
    """Raise a NotImplementedError or ValueError for what is impossible."""
    if not issubclass(conv_op, (nn.Conv2d, nn.Conv3d)):
        raise NotImplementedError(f"OSSNetLocal: conv_op is {conv_op.__name__}; allowed are Conv2d and Conv3d.")
    dim = 3 if issubclass(conv_op, nn.Conv3d) else 2
    if n_stages < 2:
        raise ValueError(f"OSSNetLocal needs at least 2 stages (the full resolution is one); got {n_stages}.")
    given: dict[str, Sequence[Any]] = {
        "features_per_stage": features_per_stage,
        "kernel_sizes": kernel_sizes,
        "strides": strides,
    }
    for name, values in given.items():
        if len(values) != n_stages:
            raise ValueError(f"OSSNetLocal: {name} has {len(values)} entries for {n_stages} stages: {list(values)}.")
    if any(width < 1 for width in features_per_stage):
        raise ValueError(f"OSSNetLocal: features_per_stage must be positive; got {list(features_per_stage)}.")
    if any(len(kernel) != dim or any(k not in (1, 3) for k in kernel) for kernel in kernel_sizes):
        raise ValueError(f"OSSNetLocal: kernel_sizes are 1 or 3 along each of {dim} axes; got {list(kernel_sizes)}.")
    if any(len(stride) != dim or any(s not in (1, 2, 4) for s in stride) for stride in strides):
        raise ValueError(f"OSSNetLocal: strides are 1, 2 or 4 along each of {dim} axes; got {list(strides)}.")
    if any(s != 1 for s in strides[0]):
        raise ValueError(f"OSSNetLocal: the first stride must be 1 along each axis; got {list(strides[0])}.")
    if n_points < 1 or decoder_blocks < 1:
        raise ValueError(
            f"OSSNetLocal: n_points and decoder_blocks must be positive; got {n_points} and {decoder_blocks}."
        )


def check_image_size(size: Sequence[int], total_stride: Sequence[int]) -> None:
    """Raise a ValueError for an image whose axes or size do not fit."""
    size = tuple(int(edge) for edge in size)
    if len(size) != len(total_stride):
        raise ValueError(f"OSSNetLocal is built for {len(total_stride)} spatial axes; got an image of size {size}.")
    if any(edge < 1 or edge % step for edge, step in zip(size, total_stride, strict=True)):
        fitting = tuple(max(step, -(-edge // step) * step) for edge, step in zip(size, total_stride, strict=True))
        raise ValueError(
            f"OSSNetLocal: the patch size {size} is not divisible by the total stride {tuple(total_stride)}: plan "
            f"again, or use e.g. {fitting}."
        )
