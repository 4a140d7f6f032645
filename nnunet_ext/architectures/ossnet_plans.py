"""OSS-Net in nnU-Net plans: its published variants and the architecture block of any grid.

No torch here: planners and command-line verbs read it without paying for the import of the network.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

NETWORK_CLASS = "nnunet_ext.architectures.ossnet.OSSNet"
DEEPEST_WIDTH = 128  # features of the last block, as published
FEWEST_CELLS = 4  # of an axis that is pooled on: nnU-Net's smallest edge of a feature map
LATENT_EDGE = 8  # cells of the longest axis that are flattened to a latent vector, as published
DECODER_WIDTH = 512
DECODER_BLOCKS = 5
N_POINTS = {2: 2**13, 3: 2**14}  # points a sample in training, at most, by dimension


@dataclass(frozen=True)
class Variant:
    """A published configuration.

    Attributes:
        patches: the decoder sees 7^3 windows of the image.
        large_patches: beside them 14^3 windows, pooled to 7^3.
        skip: all blocks of the encoder make latents, and the last one a coarse segmentation.
    """

    patches: bool
    large_patches: bool
    skip: bool


VARIANTS = {
    "ONet": Variant(False, False, False),
    "A": Variant(True, False, False),
    "B": Variant(True, True, False),
    "C": Variant(True, False, True),
    "D": Variant(True, True, True),
}
"""Name in the paper's table -> what it has. C and D are `full` and `full2` of the original's code."""

PUBLISHED_PATCHES = {"brats2020": (256, 256, 160), "lits": (512, 512, 512)}
"""Data set -> voxels of the grid that its published networks are for, (x, y, z)."""


def latent_halvings(edge: int) -> int:
    """How often an axis of so many voxels is halved to about 8 cells."""
    return round(math.log2(max(edge, LATENT_EDGE) / LATENT_EDGE))


def ossnet_strides(patch_size: Sequence[int]) -> list[list[int]]:
    """Strides of all stages: the full resolution, then each block's; the first holds the encoder's halving.

    The longest axis ends with about 8 cells, as published; shorter ones are pooled by the last blocks alone.
    """
    longest = max(patch_size)
    deepest = latent_halvings(longest)
    if longest % 2**deepest:
        deepest = math.floor(math.log2(max(longest, LATENT_EDGE) / LATENT_EDGE))
    blocks = max(1, deepest - 1)
    halvings = [min(blocks + 1, max(0, math.floor(math.log2(edge / FEWEST_CELLS)))) for edge in patch_size]
    steps = [[2 if number > blocks - i else 1 for number in halvings] for i in range(blocks + 1)]
    first = [a * b for a, b in zip(steps[0], steps[1], strict=True)]
    return [[1] * len(halvings), first, *steps[2:]]


def pooling_strides(strides: Sequence[Sequence[int]]) -> tuple[list[int], list[list[int]]]:
    """The encoder's averaging of the image, and the pooling of each block, of the plans' `strides`.

    Returns:
        2, or 1 for axes that the first block does not pool, of each axis; and strides of each block.
    """
    halving = [2 if step % 2 == 0 else 1 for step in strides[1]]
    first = [step // half for step, half in zip(strides[1], halving, strict=True)]
    return halving, [first, *(list(stride) for stride in strides[2:])]


def latent_grid(patch_size: Sequence[int], strides: Sequence[Sequence[int]]) -> list[int]:
    """Cells of each axis that the last block leaves."""
    cells = [int(edge) for edge in patch_size]
    halving, poolings = pooling_strides(strides)
    for stride in [halving, *poolings]:
        cells = [edge // step for edge, step in zip(cells, stride, strict=True)]
    return cells


def ossnet_architecture(
    patch_size: Sequence[int],
    variant: str = "C",
    *,
    strides: Sequence[Sequence[int]] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """The `architecture` block of a plans file for the faithful OSS-Net.

    Args:
        patch_size: voxels of the image, (D, H, W) or (H, W); the network is for this size alone.
        variant: a name of `VARIANTS`.
        strides: of all stages; None for `ossnet_strides`.
        **options: further keyword arguments of `OSSNet`, JSON values only; they overrule what is chosen here.

    Returns:
        `network_class_name`, `arch_kwargs` and `_kw_requires_import`, JSON values only.

    Raises:
        ValueError: a variant that does not exist.
    """
    if variant not in VARIANTS:
        raise ValueError(f"OSS-Net: variant must be one of {', '.join(VARIANTS)}; got {variant!r}.")
    patch, chosen = [int(edge) for edge in patch_size], VARIANTS[variant]
    steps = [[int(step) for step in stride] for stride in (ossnet_strides(patch) if strides is None else strides)]
    widths = [max(1, DEEPEST_WIDTH >> (len(steps) - 1 - i)) for i in range(1, len(steps))]
    arch_kwargs: dict[str, Any] = {
        "n_stages": len(steps),
        "features_per_stage": [widths[0], *widths],
        "conv_op": f"torch.nn.modules.conv.Conv{len(patch)}d",
        "strides": steps,
        "patch_size": patch,
        "latent_shape": latent_grid(patch, steps),
        "decoder_width": DECODER_WIDTH,
        "decoder_blocks": DECODER_BLOCKS,
        "patches": chosen.patches,
        "large_patches": chosen.large_patches,
        "skip": chosen.skip,
        "n_points": N_POINTS.get(len(patch), N_POINTS[3]),
    }
    arch_kwargs.update(options)
    return {"network_class_name": NETWORK_CLASS, "arch_kwargs": arch_kwargs, "_kw_requires_import": ["conv_op"]}
