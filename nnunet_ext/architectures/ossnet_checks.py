"""What the faithful OSS-Net accepts, with errors that say the way out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from nnunet_ext.architectures.ossnet_plans import latent_grid

POOLINGS = ("average", "max")
_DIMENSIONS = {nn.Conv2d: 2, nn.Conv3d: 3}


def check_arguments(
    *,
    n_stages: int,
    features_per_stage: Sequence[int],
    conv_op: Any,
    strides: Sequence[Sequence[int]],
    patch_size: Sequence[int],
    latent_shape: Sequence[int],
    patches: bool,
    large_patches: bool,
    skip: bool,
    head: bool,
    large_pooling: str,
    sizes: Sequence[int],
) -> int:
    """Raise for arguments of `OSSNet` that do not fit each other; return the dimension.

    `sizes` are those that must be at least 1: input channels, classes, width and blocks of the decoder, points.

    Raises:
        NotImplementedError: another dimension than 2 or 3.
        ValueError: anything else that is impossible.
    """
    dim = _DIMENSIONS.get(conv_op)
    if dim is None:
        raise NotImplementedError(f"OSS-Net: conv_op must be torch.nn.Conv2d or torch.nn.Conv3d, got {conv_op}.")
    if n_stages < 2 or len(features_per_stage) != n_stages or len(strides) != n_stages:
        raise ValueError(
            "OSS-Net: features_per_stage and strides need one entry for each of n_stages >= 2, the full resolution and "
            f"one for each block; got n_stages {n_stages}, {list(features_per_stage)} and {list(strides)}."
        )
    if min(sizes) < 1 or min(features_per_stage) < 1:
        raise ValueError(
            "OSS-Net: channels, classes, features, width and blocks of the decoder and points must be at least 1; got "
            f"{[*sizes, *features_per_stage]}."
        )
    _check_axes(dim, strides, patch_size, latent_shape)
    _check_options(patches, large_patches, skip, head, large_pooling)
    cells = latent_grid(patch_size, strides)
    if min(cells) < 1 or (not skip and cells != list(latent_shape)):
        raise ValueError(
            f"OSS-Net: patch_size {list(patch_size)} and strides {[list(s) for s in strides]} leave {cells} cells; "
            f"at least 1 of each axis is needed, and without skip exactly latent_shape, {list(latent_shape)}."
        )
    return dim


def _check_axes(
    dim: int, strides: Sequence[Sequence[int]], patch_size: Sequence[int], latent_shape: Sequence[int]
) -> None:
    if len(patch_size) != dim or len(latent_shape) != dim or any(len(stride) != dim for stride in strides):
        raise ValueError(
            f"OSS-Net: patch_size, latent_shape and every stride need {dim} entries for this conv_op; got "
            f"{list(patch_size)}, {list(latent_shape)} and {[list(s) for s in strides]}."
        )
    if any(step != 1 for step in strides[0]) or any(step < 1 for stride in strides for step in stride):
        raise ValueError(
            "OSS-Net: the first stage is the image itself, its strides must be 1, and no stride may be below 1; got "
            f"{[list(s) for s in strides]}."
        )
    if min(latent_shape) < 1:
        raise ValueError(f"OSS-Net: latent_shape must be at least 1 along each axis; got {list(latent_shape)}.")


def _check_options(patches: bool, large_patches: bool, skip: bool, head: bool, large_pooling: str) -> None:
    if large_patches and not patches:
        raise ValueError("OSS-Net: large_patches come beside patches; set patches, or unset large_patches.")
    if head and not skip:
        raise ValueError("OSS-Net: only skip encoders have a coarse head; set skip, or unset head.")
    if large_pooling not in POOLINGS:
        raise ValueError(f"OSS-Net: large_pooling must be one of {', '.join(POOLINGS)}; got {large_pooling!r}.")


def check_image_size(size: Sequence[int], patch_size: Sequence[int]) -> None:
    """Raise if an image is not of the size that the network is for.

    Raises:
        ValueError: the text names both sizes.
    """
    if tuple(size) != tuple(patch_size):
        given, made = (tuple(int(edge) for edge in edges) for edges in (size, patch_size))
        raise ValueError(
            f"OSS-Net: this network was made for images of {made} voxels, whose positions and flattened features its "
            f"weights know; got {given}. Plan for that patch size, or use OSSNetLocal, which takes any."
        )
