"""How a published OSS-Net is built, inferred from the names and shapes of its weights (specification ossnet 4)."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from nnunet_ext.architectures.ossnet_plans import (
    PUBLISHED_PATCHES,
    VARIANTS,
    Variant,
    latent_grid,
    ossnet_architecture,
)
from nnunet_ext.errors import UserError
from nnunet_ext.weights.loading import CheckpointError, shorten
from nnunet_ext.weights.recognise import looks_like

HEAD = "decoder.final_mapping.0.weight"
COARSE_HEAD = "encoder.segmentation_mapping.0.weight"
FREQUENCIES = "decoder.b"
_FIRST = "encoder.blocks.0.main_mapping.0.weight"
_GAMMA = "decoder.blocks.0.cnb_1.linear_gamma.weight"
_WINDOWS = "decoder.patch_mapping.mapping.0.weight"
_REQUIRED = {_FIRST: 5, HEAD: 2, _GAMMA: 2}
"""Name -> number of axes."""
_PUBLISHED = {(4, 4, 320): "brats2020", (1, 5, 512): "lits"}
"""(channels, blocks of the encoder, numbers of a latent vector) -> data set."""


@dataclass(frozen=True)
class Configuration:
    """A published network, as far as its weights show it.

    Attributes:
        input_channels: of the images.
        features: of each block of the encoder.
        latent_features: numbers of a latent vector: the product of its grid, which the weights do not show.
        decoder_width: features of a point.
        decoder_blocks: residual blocks of the decoder.
        patches, large_patches, skip, head, fourier: as of `OSSNet`.
    """

    input_channels: int
    features: tuple[int, ...]
    latent_features: int
    decoder_width: int
    decoder_blocks: int
    patches: bool
    large_patches: bool
    skip: bool
    head: bool
    fourier: bool

    @property
    def variant(self) -> str | None:
        """The name in the paper's table, whatever the widths; None: none of them."""
        if self.fourier or self.head != self.skip:
            return None
        mine = Variant(self.patches, self.large_patches, self.skip)
        return next((name for name, variant in VARIANTS.items() if variant == mine), None)

    @property
    def data_set(self) -> str | None:
        """The data set of the published network with these channels, blocks and latent vectors: "brats2020", "lits"."""
        return _PUBLISHED.get((self.input_channels, len(self.features), self.latent_features))

    def strides(self) -> list[list[int]]:
        """Of all stages: every block halves, the first one the encoder's halved image."""
        return [[1] * 3, [4] * 3, *([2] * 3 for _ in self.features[1:])]

    def patch(self, given: Sequence[int] | None) -> tuple[int, ...]:
        """Voxels (x, y, z) of the network's grid: the given ones, or the published ones.

        Raises:
            UserError: neither, sizes below 1, or another number of cells than the weights have.
        """
        if given is None:
            if self.data_set is None:
                raise UserError(
                    f"the weights are none of the published ones ({self.input_channels} channels, {len(self.features)} "
                    f"blocks, latent vectors of {self.latent_features}), and do not say which grid they are for; give "
                    "it in voxels: --patch-size X Y Z"
                )
            return PUBLISHED_PATCHES[self.data_set]
        if min(given) < 1:
            raise UserError(f"--patch-size takes numbers of voxels above 0; got {' '.join(map(str, given))}")
        cells = latent_grid(given, self.strides())
        if math.prod(cells) != self.latent_features:
            size, grid = " x ".join(map(str, given)), " x ".join(map(str, cells))
            raise UserError(
                f"images of {size} voxels leave {grid} = {math.prod(cells)} cells, the weights' latent vectors have "
                f"{self.latent_features}; give the size (x, y, z) that the network was trained with"
            )
        return tuple(given)

    def architecture(self, patch_size: Sequence[int], large_pooling: str = "average") -> dict[str, Any]:
        """The plans' block, for images of `patch_size` voxels."""
        options: dict[str, Any] = {"large_pooling": large_pooling} if self.large_patches else {}
        if self.fourier:
            options["fourier"] = True
        if self.head != self.skip:
            options["head"] = self.head
        return ossnet_architecture(
            patch_size,
            strides=self.strides(),
            features_per_stage=[self.features[0], *self.features],
            decoder_width=self.decoder_width,
            decoder_blocks=self.decoder_blocks,
            patches=self.patches,
            large_patches=self.large_patches,
            skip=self.skip,
            **options,
        )


def infer_configuration(state: Mapping[str, Tensor]) -> Configuration:
    """Read the network off its weights.

    Raises:
        CheckpointError: no such network.
    """
    for key in _REQUIRED:
        if key not in state:
            raise CheckpointError(f"not an OSS-Net: {key} is missing, found {shorten(state, 3)}{looks_like(state)}")
    blocks = _number(state, r"encoder\.blocks\.(\d+)\.main_mapping\.0\.weight")
    weights = [f"encoder.blocks.{i}.main_mapping.0.weight" for i in range(blocks)]
    _check_shapes(state, {**dict.fromkeys(weights, 5), **_REQUIRED})
    if state[HEAD].shape[0] != 1:
        raise CheckpointError(f"{HEAD} has {state[HEAD].shape[0]} outputs; published OSS-Nets have one")
    channels = int(state[_FIRST].shape[1])
    windows = int(state[_WINDOWS].shape[1]) if _WINDOWS in state and state[_WINDOWS].dim() == 5 else 0
    if windows not in (0, channels, 2 * channels):
        raise CheckpointError(
            f"{_WINDOWS} has {windows} channels; those of the images ({channels}), or twice as many, can be read"
        )
    return Configuration(
        input_channels=channels,
        features=tuple(int(state[weight].shape[0]) for weight in weights),
        latent_features=int(state[_GAMMA].shape[1]),
        decoder_width=int(state[HEAD].shape[1]),
        decoder_blocks=_number(state, r"decoder\.blocks\.(\d+)\.linear_layer_1\.weight"),
        patches=windows > 0,
        large_patches=windows == 2 * channels,
        skip=any(key.startswith("encoder.output_mappings.") for key in state),
        head=COARSE_HEAD in state,
        fourier=FREQUENCIES in state,
    )


def _check_shapes(state: Mapping[str, Tensor], axes: Mapping[str, int]) -> None:
    """Raise unless each named weight has its number of axes, none of them empty.

    Raises:
        CheckpointError: names the first that has not.
    """
    for key, number in axes.items():
        shape = tuple(state[key].shape)
        if len(shape) != number or 0 in shape:
            raise CheckpointError(
                f"not an OSS-Net: {key} is of shape {shape}; it has {number} axes, none of them empty"
            )


def _number(state: Mapping[str, Tensor], pattern: str) -> int:
    """How many modules there are with the numbers 0, 1, ... in names that match.

    Raises:
        CheckpointError: none, or a number is missing.
    """
    found = sorted(int(match.group(1)) for key in state if (match := re.fullmatch(pattern, key)))
    if not found or found != list(range(len(found))):
        raise CheckpointError(f"not an OSS-Net, or an incomplete one: numbered names {pattern} found: {found}")
    return len(found)
