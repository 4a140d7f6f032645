"""Embeds whole cases: with published weights from the raw CT, with our own from the preprocessed image.

Sources: specification alice 3.1 (published), 3.2 (ours).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nnunet_ext.architectures.anatomical_embedding import Embedding
from nnunet_ext.errors import UserError
from nnunet_ext.pretraining.cases import Case, Pool
from nnunet_ext.pretraining.embedding_file import is_ours, read_embedding_file
from nnunet_ext.pretraining.embedding_grids import canonical_grid, minima, sample, strided
from nnunet_ext.pretraining.frames import Frame, image_matrix
from nnunet_ext.pretraining.matching import Maps
from nnunet_ext.pretraining.raw_images import checksum
from nnunet_ext.weights.anatomical_embedding import read_embedding
from nnunet_ext.weights.loading import safe_load

CT_SPACING = 2.0
CT_WINDOW = (-1024.0, 3071.0)
_LEAST = (16, 64, 64)  # voxels of the smallest volume that the published network is of use for
_MARGIN = 32  # slices that tiles overlap by on each side
MOST_VOXELS = 8_000_000


@dataclass(frozen=True)
class Embedder:
    """A network that embeds cases.

    Attributes:
        network: an `EmbeddingNetwork`, in eval mode, on `device`.
        spacing: mm of the voxels that it sees.
        published: whether it is SAM's, which sees raw CT; else it is ours and sees preprocessed images.
        device: where it computes; maps are returned on the CPU.
        channels: of the images that it sees.
        definition: JSON values that say which file it is.
        most_voxels: larger volumes are embedded in tiles along z. Batch norm of the published network does not notice;
            instance norm of ours does a little, so give it the memory that there is (about 0.5 kB a voxel, 0.7 kB
            for the published network).
    """

    network: Any
    spacing: float
    published: bool
    device: torch.device
    channels: int = 1
    definition: dict[str, Any] = field(default_factory=dict)
    most_voxels: int = MOST_VOXELS

    def embed(self, case: Case, pool: Pool) -> Maps:
        """A case's maps, float16 on the CPU, and the frame of their fine grid in LPS mm.

        Raises:
            UserError: the case does not fit the network: its channels, or a raw file that is gone or no CT.
        """
        if self.published:
            image, frame = raw_ct(case, pool)
            return self.embed_image(image, frame, torch.tensor([CT_WINDOW[0]]))
        image, frame = case.image(), case.frame
        if image.shape[0] != self.channels:
            raise UserError(
                f"{case.name} has {image.shape[0]} channel(s), but the embedding was trained with {self.channels}; "
                "train one with this data set"
            )
        return self.embed_image(image, frame, minima(image))

    def embed_image(self, image: Any, frame: Frame, outside: Tensor) -> Maps:
        """An image's maps: sampled along the patient's axes, padded at the ends, and embedded.

        Args:
            image: (C, *frame.shape), HU for the published network, else preprocessed.
            frame: of the image.
            outside: (C,) value of each channel outside of it.
        """
        grid = canonical_grid(frame, self.spacing)
        volume = sample(image, frame, grid, outside, smooth=not self.published)
        if self.published:
            volume, outside = _ct_grey_values(volume), _ct_grey_values(outside)
        volume = _padded(volume, outside, self.network.coarse_stride, _LEAST if self.published else (1, 1, 1))
        return Maps(
            embed_volume(self.network, volume, self.device, self.most_voxels), strided(grid, self.network.fine_stride)
        )


def load_embedder(path: str | Path, device: torch.device, most_voxels: int = MOST_VOXELS) -> Embedder:
    """The network of a file: of `embedding_training.train`, or published (`SAM.pth` and its successors).

    Raises:
        UserError: the file is missing, damaged, or holds something else.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(
            f"{path}: there is no such file; give SAM.pth, or a file that nnunet-ext correspond --train-embedding wrote"
        )
    definition: dict[str, Any] = {"file": path.name, "sha256": checksum(path)}
    if is_ours(safe_load(path)):
        trained = read_embedding_file(path)
        network: nn.Module = trained.network().eval().requires_grad_(False).to(device)
        settings = trained.settings
        definition |= {"kind": "own", "step": trained.step, "settings": settings.as_dict(), "quality": trained.quality}
        return Embedder(network, settings.spacing, False, device, settings.input_channels, definition, most_voxels)
    published, _ = read_embedding(path)
    definition |= {"kind": "published", "semantic": published.semantic_head is not None}
    return Embedder(published.to(device), CT_SPACING, True, device, 1, definition, most_voxels)


def raw_ct(case: Case, pool: Pool) -> tuple[np.ndarray, Frame]:
    """A case's CT (1, z, y, x) in HU as the plans' reader reads it, and its frame.

    Raises:
        UserError: the data set has no CT channel, or the raw file is gone.
    """
    names = list(pool.dataset_json.get("channel_names", pool.dataset_json.get("modality", {})).values())
    channel = next((i for i, name in enumerate(names) if str(name).strip().lower() == "ct"), None)
    if channel is None:
        raise UserError(
            f"published weights of the anatomical embedding are for CT, but the data set's channels are "
            f"{', '.join(map(str, names))}; train an embedding of your own (nnunet-ext correspond --train-embedding)"
        )
    if len(case.raw) <= channel or not Path(case.raw[channel]).is_file():
        raise UserError(
            f"{case.name}: published weights of the anatomical embedding need the raw CT, which is gone "
            f"({case.raw[channel] if len(case.raw) > channel else 'no file'}); train an embedding of your own, which "
            "works on preprocessed images"
        )
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    image, properties = PlansManager(pool.plans).image_reader_writer_class().read_images([case.raw[channel]])
    _, z, y, x = image.shape
    return image, Frame((z, y, x), image_matrix(properties))


def _ct_grey_values(hounsfield: Tensor) -> Tensor:
    low, high = CT_WINDOW
    return (hounsfield.clamp(low, high) - low) / (high - low) * 255 - 50


def _padded(volume: Tensor, outside: Tensor, multiple: tuple[int, ...], least: tuple[int, ...]) -> Tensor:
    """(1, C, z, y, x) at least `least` large, sizes multiples of `multiple`; filled at the ends of the axes."""
    sizes = [
        -(-max(size, small) // step) * step for size, small, step in zip(volume.shape[1:], least, multiple, strict=True)
    ]
    level = outside.reshape(-1, 1, 1, 1)
    (z, y, x), (size_z, size_y, size_x) = volume.shape[1:], sizes
    return (F.pad(volume - level, (0, size_x - x, 0, size_y - y, 0, size_z - z)) + level)[None]


def embed_volume(network: Any, volume: Tensor, device: torch.device, most_voxels: int) -> Embedding:
    """The maps of a volume (1, C, z, y, x), float16 on the CPU; in tiles along z where it has more than `most_voxels`.

    Tiles overlap by 32 slices on each side, of which nothing is kept but at the volume's ends.
    """
    kept = []
    for start, stop, lower, upper in _tiles(volume.shape[2:], network.coarse_stride[0], most_voxels):
        with torch.no_grad():
            maps: Embedding = network(volume[:, :, lower:upper].to(device))
        strides = (network.fine_stride[0], network.coarse_stride[0], network.fine_stride[0])
        kept.append(
            [
                None if each is None else each[:, :, (start - lower) // s : (stop - lower) // s].half().cpu()
                for each, s in zip(maps, strides, strict=True)
            ]
        )
    fine, coarse, semantic = ([part for part in parts if part is not None] for parts in zip(*kept, strict=True))
    return Embedding(torch.cat(fine, 2), torch.cat(coarse, 2), torch.cat(semantic, 2) if semantic else None)


def _tiles(shape: torch.Size, stride: int, most_voxels: int) -> Iterator[tuple[int, int, int, int]]:
    """First slice to keep, one past the last, first slice to embed, one past the last; all multiples of `stride`."""
    if shape.numel() <= most_voxels:
        yield 0, shape[0], 0, shape[0]
        return
    fitting = most_voxels // (shape[1] * shape[2]) - 2 * _MARGIN
    step = max(_MARGIN, fitting // stride * stride)
    for start in range(0, shape[0], step):
        stop = min(start + step, shape[0])
        yield start, stop, max(0, start - _MARGIN), min(shape[0], stop + _MARGIN)
