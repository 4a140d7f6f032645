"""UNETR++ in nnU-Net plans: the architecture block, strides for a patch, and the four published networks.

No torch here: planners and command-line verbs read it without paying for the import of the network.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nnunet_ext.architectures.grids import token_grids, total_stride

NETWORK_CLASS = "nnunet_ext.architectures.unetrpp.UNETRPP"
BASE_WIDTH = 16
N_STAGES = 5  # full resolution, and four of tokens
BLOCKS = 3  # transformer blocks a stage
HEADS = 4
PROJECTED = 64  # tokens that keys and values are projected to
EMBEDDING_STRIDES = (4, 2, 1)
LEAST_TOKENS = 32  # an axis, at the embedding's resolution
LEAST_POSITIONS = 2  # an axis, below
HEAD_WIDTH = 8  # fused attention kernels want multiples of it
THIN = 8  # voxels
MOST_GROWTH = 1.2  # of an axis of the patch when it is rounded up
MAX_TOKENS = 75_000  # of the embedding
MAX_PATCH_PARAMETERS = 30_000_000
ATTENTION_DROPOUT = (0.15, 0.15)  # encoder, decoder
BLOCK_DROPOUT = 0.1


@dataclass(frozen=True)
class Preset:
    """One of the published networks and the patches it was trained on (specification unetrpp, first table, 4.2).

    Attributes:
        patch_size: (D, H, W) in voxels.
        embedding: (D, H, W), kernel and stride of the patch embedding.
        batch_size: samples a step (nnU-Net's 2 where the authors left it to the plans).
        input_channels: of the published weights.
        classes: of the published weights, with the background.
        options: of `UNETRPP`.
    """

    patch_size: tuple[int, int, int]
    embedding: tuple[int, int, int]
    batch_size: int
    input_channels: int
    classes: int
    options: dict[str, Any]

    @property
    def strides(self) -> list[list[int]]:
        """One a stage, full resolution first."""
        return [[1, 1, 1], list(self.embedding), *([2, 2, 2] for _ in range(N_STAGES - 2))]


_TIED = {"projections": "tied", "fusion": "concat", "n_res_blocks": 1, "attention_dropout": [0.15, 0.15]}
_SEPARATE = {"projections": "separate", "fusion": "concat", "n_res_blocks": 2, "attention_dropout": [0.1, 0.1]}
_SUMMED = {"projections": "no_bias", "fusion": "sum", "n_res_blocks": 1, "attention_dropout": [0.1, 0.1]}

PRESETS: dict[str, Preset] = {
    "synapse": Preset((64, 128, 128), (2, 4, 4), 2, 1, 14, _TIED),
    "acdc": Preset((16, 160, 160), (1, 4, 4), 4, 1, 4, _SEPARATE),
    "lung": Preset((32, 192, 192), (1, 4, 4), 2, 1, 2, _SEPARATE),
    "brats": Preset((128, 128, 128), (4, 4, 4), 2, 4, 4, _SUMMED),
}


def embedding_stride(patch_size: Sequence[int], *, exact: bool = False) -> tuple[int, ...]:
    """The patch embedding's stride: an axis the largest of 4, 2, 1 that leaves at least 32 tokens, else 1.

    Args:
        patch_size: (D, H, W) or (H, W) in voxels.
        exact: only strides that divide the patch.
    """
    return tuple(
        next((s for s in EMBEDDING_STRIDES if edge // s >= LEAST_TOKENS and not (exact and edge % s)), 1)
        for edge in patch_size
    )


def unetrpp_strides(patch_size: Sequence[int], embedding: Sequence[int], *, exact: bool = False) -> list[list[int]]:
    """Strides of all stages: ones, the embedding's, then 2 along each axis while at least 2 positions are left.

    Args:
        patch_size: (D, H, W) or (H, W) in voxels.
        embedding: the patch embedding's stride.
        exact: the patch is not to be rounded up, so only halve axes that can be halved.
    """
    grid = [edge / step for edge, step in zip(patch_size, embedding, strict=True)]
    strides = [[1] * len(grid), [int(step) for step in embedding]]
    for _ in range(N_STAGES - 2):
        halved = [math.ceil(n / 2) >= LEAST_POSITIONS and not (exact and n % 2) for n in grid]
        strides.append([2 if half else 1 for half in halved])
        grid = [n / 2 if half else n for n, half in zip(grid, halved, strict=True)]
    return strides


def heads_for(width: int) -> int:
    """Four heads, as published; fewer where a head would have less than 8 channels."""
    fitting = (h for h in (HEADS, 2, 1) if width % (h * HEAD_WIDTH) == 0)
    return next(fitting, next(h for h in (HEADS, 2, 1) if width % h == 0))


def patch_parameters(
    patch_size: Sequence[int], strides: Sequence[Sequence[int]], base_width: int = BASE_WIDTH, projections: int = 1
) -> int:
    """Parameters that depend on the patch: position embeddings and projections (specification unetrpp 3).

    Args:
        patch_size: voxels.
        strides: one a stage.
        base_width: features at full resolution.
        projections: 1 for tied ones, 2 for separate ones.
    """
    total = 0
    grids = token_grids(patch_size, strides)
    for stage, grid in enumerate(grids):
        tokens, last = math.prod(grid), stage == len(grids) - 1
        blocks = BLOCKS if last else 2 * BLOCKS  # the decoder has none at the lowest resolution
        total += blocks * tokens * (base_width * 2 ** (stage + 1) + projections * _projected(stage, tokens))
    return total


def _projected(stage: int, tokens: int) -> int:
    published = PROJECTED // 2 if stage == N_STAGES - 2 else PROJECTED
    return min(published, tokens)


def fitting_topology(
    patch_size: Sequence[int], base_width: int = BASE_WIDTH, *, exact: bool = False, raises: int = 0
) -> tuple[tuple[int, ...], list[list[int]]]:
    """A patch that UNETR++ can take, and its strides.

    The embedding's stride is `embedding_stride`'s; while the embedding has more than 75 000 tokens, or position
    embeddings and projections more than 30 million parameters, the axis with the most tokens gets twice the stride.

    Args:
        patch_size: wished, in voxels, (D, H, W) or (H, W).
        base_width: features at full resolution.
        exact: keep the patch: only strides that divide it.
        raises: further doublings of the stride, each of the axis with the most tokens.

    Returns:
        The patch, rounded to multiples of the total stride, and the strides, one a stage.
    """
    embedding = embedding_stride(patch_size, exact=exact)
    for raised in itertools.count():
        strides = unetrpp_strides(patch_size, embedding, exact=exact)
        fitted = tuple(_multiple(n, step) for n, step in zip(patch_size, total_stride(strides), strict=True))
        if raised == 0 and not exact and embedding_stride(fitted) != embedding:
            return fitting_topology(fitted, base_width, raises=raises)
        grid = token_grids(fitted, strides)[0]
        small = within_caps(fitted, strides, base_width)
        axes = [axis for axis, n in enumerate(grid) if n > 1 and not (exact and n % 2)]
        if not axes or (small and raises == 0):
            break
        raises -= small
        longest = max(axes, key=lambda axis: (grid[axis], axis))
        embedding = tuple(step * 2 if axis == longest else step for axis, step in enumerate(embedding))
    return fitted, strides


def _multiple(edge: int, step: int) -> int:
    """The next larger multiple, or, but for thin patches, the next smaller one where it would add more than a fifth."""
    larger = -(-edge // step) * step
    smaller = larger - step
    return smaller if larger > MOST_GROWTH * edge and smaller >= THIN else larger


def within_caps(patch_size: Sequence[int], strides: Sequence[Sequence[int]], base_width: int = BASE_WIDTH) -> bool:
    """Whether tokens of the embedding and weights that depend on the patch stay below their limits."""
    tokens = math.prod(token_grids(patch_size, strides)[0])
    return tokens <= MAX_TOKENS and patch_parameters(patch_size, strides, base_width) <= MAX_PATCH_PARAMETERS


def unetrpp_architecture(
    patch_size: Sequence[int], strides: Sequence[Sequence[int]], *, base_width: int = BASE_WIDTH, **options: Any
) -> dict[str, Any]:
    """The `architecture` block of a plans file for UNETR++.

    Args:
        patch_size: (D, H, W) or (H, W) in voxels, divisible by the strides; the network is for patches of this size.
        strides: one a stage, the first all ones, the second the patch embedding's.
        base_width: features of the first stage; they double from stage to stage.
        **options: further keyword arguments of `UNETRPP`, JSON values only; they overrule what is chosen here.

    Returns:
        `network_class_name`, `arch_kwargs` and `_kw_requires_import`, JSON values only.
    """
    dim, n_stages = len(patch_size), len(strides)
    features = [base_width * 2**stage for stage in range(n_stages)]
    widths = features[1:]
    sizes = [_projected(stage, math.prod(grid)) for stage, grid in enumerate(token_grids(patch_size, strides))]
    decoder_sizes = [min(PROJECTED, math.prod(grid)) for grid in token_grids(patch_size, strides)[-2::-1]]
    arch_kwargs: dict[str, Any] = {
        "n_stages": n_stages,
        "features_per_stage": features,
        "conv_op": f"torch.nn.modules.conv.Conv{dim}d",
        "strides": [[int(s) for s in stride] for stride in strides],
        "patch_size": [int(edge) for edge in patch_size],
        "n_blocks_per_stage": [BLOCKS] * (n_stages - 1),
        "n_blocks_per_stage_decoder": [BLOCKS] * (n_stages - 2),
        "num_heads": [heads_for(width) for width in widths],
        "num_heads_decoder": [heads_for(width) for width in widths[-2::-1]],
        "proj_size": sizes,
        "proj_size_decoder": decoder_sizes,
        "projections": "tied",
        "fusion": "concat",
        "n_res_blocks": 1,
        "sa_layout": "fixed",
        "attention_dropout": list(ATTENTION_DROPOUT),
        "block_dropout": BLOCK_DROPOUT,
        "norm_op": f"torch.nn.modules.batchnorm.BatchNorm{dim}d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    arch_kwargs.update(options)
    return {
        "network_class_name": NETWORK_CLASS,
        "arch_kwargs": arch_kwargs,
        "_kw_requires_import": ["conv_op", "norm_op", "nonlin"],
    }


def preset_architecture(name: str, **changes: Any) -> dict[str, Any]:
    """The `architecture` block of a published network, with its spatial layout (`sa_layout` "legacy").

    Args:
        name: "synapse", "acdc", "lung" or "brats".
        **changes: of `UNETRPP`'s keyword arguments.
    """
    preset = PRESETS[name]
    options = {**preset.options, "sa_layout": "legacy", **changes}
    return unetrpp_architecture(preset.patch_size, preset.strides, **options)
