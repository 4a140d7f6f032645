"""Whole cases through a published OSS-Net as its authors prepared them (``specs/ossnet.md`` 2.1, 2.2, 6.11).

The network knows positions in one grid, so nnU-Net's cropping, padding and sliding windows are not for it. BraTS: the
whole image is normalised, padded to 256 x 256 x 160 and cropped back. LiTS: it is normalised and resized to 512^3
whatever its spacing, and asked at the centres of its own voxels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from nnunet_ext.architectures.blocks import adaptive_decoding
from nnunet_ext.architectures.blocks.point_grid import PointGrid
from nnunet_ext.architectures.ossnet import OSSNet, OSSNetContext
from nnunet_ext.inference.published_decoding import expedited_labels, standard_labels

Adapter = Literal["brats2020", "lits"]
ADAPTERS: tuple[Adapter, ...] = ("brats2020", "lits")
REFERENCE = "reference"
MODES = (*adaptive_decoding.MODES, REFERENCE)
SLAB_VOXELS = 2**25  # decoded at once; logits of two classes and their bookkeeping take about 16 bytes each


def predict_published(
    network: OSSNet, image: np.ndarray | Tensor, adapter: str, mode: str | None = None, slab_voxels: int = SLAB_VOXELS
) -> np.ndarray:
    """Labels of a whole case.

    Args:
        network: with imported weights, on any device; is put into eval mode.
        image: (C, X, Y, Z) float32, as read, axes in the order of the network's grid.
        adapter: "brats2020" or "lits".
        mode: "adaptive", "dense" or "budget", or "reference" for the original's coarse-to-fine procedure, with the
            coarse head where there is one; None for the network's own.
        slab_voxels: so many voxels are decoded at once; not with "reference".

    Returns:
        (X, Y, Z) uint8: 0, or the class.

    Raises:
        ValueError: another adapter or mode, or an image that does not fit.
    """
    mode = network.decode_mode if mode is None else mode
    if adapter not in ADAPTERS or mode not in MODES:
        raise ValueError(
            f"adapter must be one of {', '.join(ADAPTERS)} and mode one of {', '.join(MODES)}; got {adapter!r} and "
            f"{mode!r}."
        )
    tensor = torch.as_tensor(image).float()
    _check(network, tensor)
    network.eval()
    device = next(network.parameters()).device
    prepare = _padded_case if adapter == "brats2020" else _resized_case
    with torch.no_grad():
        x, grid = prepare(normalise(tensor).to(device), network.patch_size)
        context = network.encode(x)
        if mode == REFERENCE:
            labels = _at(reference_labels(network, context, x), grid)
        else:
            labels = _labels(network, context, x, grid, mode, slab_voxels)
    return labels.cpu().numpy()


def normalise(image: Tensor) -> Tensor:
    """Each channel of (C, *spatial) minus its mean, by its standard deviation, over all voxels, air included."""
    normal = image.float().clone()
    for channel in normal:
        deviation, mean = torch.std_mean(channel.double(), correction=1)
        channel.sub_(mean).div_(deviation if deviation > 0 else 1)  # the original divides by zero
    return normal


def padding(shape: Sequence[int], size: Sequence[int]) -> list[tuple[int, int]]:
    """Voxels before and after each axis of an image of `shape` that make it `size` voxels; the odd one before.

    Raises:
        ValueError: the image is larger.
    """
    if any(edge > whole for edge, whole in zip(shape, size, strict=True)):
        raise ValueError(
            f"the image has {' x '.join(map(str, shape))} voxels, more than the {' x '.join(map(str, size))} that this "
            "network was made for; crop it, or use a model that takes any size."
        )
    missing = [whole - edge for edge, whole in zip(shape, size, strict=True)]
    return [(math.ceil(number / 2), number // 2) for number in missing]


def pad(image: Tensor, size: Sequence[int]) -> Tensor:
    """(C, *spatial) with zeros around it, as `padding` says."""
    pads = [number for pair in reversed(padding(image.shape[1:], size)) for number in pair]
    return functional.pad(image, pads)


def reference_labels(network: OSSNet, context: OSSNetContext, x: Tensor) -> Tensor:
    """The original's labels (*spatial) of one encoded image x (1, C, *spatial), with the coarse head if there is one.

    A voxel is foreground where the probability of the background is below a half; its label is the likeliest other
    class.
    """
    field = network.field(context, x)
    classes = torch.zeros(x.shape[2:], dtype=torch.uint8, device=x.device)

    def probability(index: Tensor) -> Tensor:
        probabilities = field(index.float()).softmax(0)
        classes[tuple(index.mT)] = (probabilities[1:].argmax(0) + 1).to(torch.uint8)
        return 1 - probabilities[0]

    resolution = tuple(x.shape[2:])
    if context.head is None:
        foreground = standard_labels(probability, resolution, device=x.device)
    else:
        foreground = expedited_labels(probability, resolution, context.head.float().sigmoid(), device=x.device)
    return classes * foreground


def _check(network: OSSNet, image: Tensor) -> None:
    if image.dim() != 4 or image.shape[0] != network.input_channels or 0 in image.shape:
        raise ValueError(
            f"this network takes images (C, X, Y, Z) with {network.input_channels} channels; got {tuple(image.shape)}."
        )
    if network.regions:
        raise ValueError("this network has regions instead of classes; published OSS-Nets have two classes.")
    if not torch.isfinite(image).all():
        raise ValueError("the image has voxels that are not numbers or infinite; it cannot be normalised.")


def _padded_case(image: Tensor, size: Sequence[int]) -> tuple[Tensor, PointGrid]:
    before = [pair[0] for pair in padding(image.shape[1:], size)]
    return pad(image, size)[None], PointGrid.of_voxels(size).brick(before, image.shape[1:])


def _resized_case(image: Tensor, size: Sequence[int]) -> tuple[Tensor, PointGrid]:
    resized = functional.interpolate(image[None], tuple(size), mode="trilinear", align_corners=False)
    return resized, PointGrid.resized(size, image.shape[1:])


def _labels(network: OSSNet, context: OSSNetContext, x: Tensor, grid: PointGrid, mode: Any, slab_voxels: int) -> Tensor:
    """Labels of a grid, in slabs across the first axis."""
    labels = torch.zeros(grid.shape, dtype=torch.uint8, device=x.device)
    for start, stop in _slabs(grid.shape, slab_voxels, network.first_stride[0]):
        slab = grid.brick((start, *(0 for _ in grid.shape[1:])), (stop - start, *grid.shape[1:]))
        logits = network.decode_points(context, x, slab, mode).logits
        labels[start:stop] = logits.argmax(0)
    return labels


def _slabs(shape: Sequence[int], voxels: int, stride: int) -> Iterator[tuple[int, int]]:
    """Ranges of the first axis with at most `voxels` voxels each, as whole steps of the adaptive decoding."""
    layers = max(1, voxels // math.prod(shape[1:]))
    layers = max(stride, layers // stride * stride)
    for start in range(0, shape[0], layers):
        yield start, min(start + layers, shape[0])


def _at(labels: Tensor, grid: PointGrid) -> Tensor:
    """The labels of the voxels nearest to a grid's points."""
    for axis, (edge, scale, offset) in enumerate(zip(grid.shape, grid.scale, grid.offset, strict=True)):
        points = torch.arange(edge, dtype=torch.float64) * scale + offset
        nearest = (points + 0.5).floor().long().clamp(0, labels.shape[axis] - 1)
        labels = labels.index_select(axis, nearest.to(labels.device))
    return labels
