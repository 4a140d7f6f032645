"""How a published UNETR++ is built, inferred from the names and shapes of its weights (specification unetrpp 2.1)."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from nnunet_ext.architectures.grids import token_grids, total_stride
from nnunet_ext.architectures.unetrpp_plans import PRESETS, Preset, unetrpp_architecture
from nnunet_ext.errors import UserError
from nnunet_ext.weights.loading import CheckpointError, shorten
from nnunet_ext.weights.recognise import looks_like

ENCODER = "unetr_pp_encoder"
STAGES = 4  # of transformer blocks: the published names allow no other number
_STEM = f"{ENCODER}.downsample_layers.0.0.conv.weight"
_REQUIRED = (_STEM, "encoder1.conv1.conv.weight", "out1.conv.conv.weight")


@dataclass(frozen=True)
class Configuration:
    """One published network, as far as its weights show it.

    Attributes:
        input_channels: channels of the image.
        num_classes: output channels, background included.
        features: width of each resolution, the full one first.
        strides: (z, y, x) of each resolution, the first all ones, the second the patch embedding's.
        tokens: N of each transformer stage, highest resolution first. Only the products of the token grids: the grids
            are the patch size's to say.
        blocks, blocks_decoder: transformer blocks a stage, the decoder's LOWEST resolution first.
        heads, heads_decoder: attention heads, in the same orders.
        proj_size, proj_size_decoder: projected tokens, in the same orders.
        projections: "tied", "separate" or "no_bias".
        fusion: "concat" or "sum".
        residual_blocks: residual blocks a transformer block.
        supervised: the file has the heads of deep supervision.
    """

    input_channels: int
    num_classes: int
    features: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]
    tokens: tuple[int, ...]
    blocks: tuple[int, ...]
    blocks_decoder: tuple[int, ...]
    heads: tuple[int, ...]
    heads_decoder: tuple[int, ...]
    proj_size: tuple[int, ...]
    proj_size_decoder: tuple[int, ...]
    projections: str
    fusion: str
    residual_blocks: int
    supervised: bool

    @property
    def variant(self) -> str | None:
        """The published network that this one has the tokens and the blocks of, whatever its widths; None: none."""
        name = self.same_tokens
        options = {"projections": self.projections, "fusion": self.fusion, "n_res_blocks": self.residual_blocks}
        is_it = name is not None and all(PRESETS[name].options[key] == value for key, value in options.items())
        return name if is_it else None

    @property
    def same_tokens(self) -> str | None:
        """The published network with the strides and the numbers of tokens of this one, whatever its blocks."""
        return next((name for name, preset in PRESETS.items() if self._has_tokens_of(preset)), None)

    @property
    def published_patch(self) -> tuple[int, ...] | None:
        """The patch (z, y, x) of the published network with the same tokens; None: there is none."""
        return None if self.same_tokens is None else PRESETS[self.same_tokens].patch_size

    def _has_tokens_of(self, preset: Preset) -> bool:
        strides = tuple(tuple(stride) for stride in preset.strides)
        return self.strides == strides and self.tokens == _tokens(preset.patch_size, preset.strides)

    def check_published_patch(self, patch_size: Sequence[int]) -> None:
        """Check that weights with a published network's tokens are used on its patch: others have as many tokens.

        Raises:
            UserError: they are not; the text names both. Nothing is raised for weights with tokens of their own.
        """
        published = self.published_patch
        if published is not None and tuple(patch_size) != published:
            sizes = [" x ".join(map(str, size)) for size in (patch_size, published)]
            raise UserError(
                f"patch size {sizes[0]} (z, y, x) is not that of the published {self.same_tokens} network, {sizes[1]}, "
                f"whose numbers of tokens the weights have; give --patch-size {' '.join(map(str, published))}, or for "
                "weights of your own that were trained on the other patch add --unpublished-patch"
            )

    def check_patch_size(self, patch_size: Sequence[int]) -> None:
        """Check that the tokens of such patches, (z, y, x) in voxels, are those that the weights are for.

        Raises:
            UserError: they are not; the text names both.
        """
        size = " x ".join(map(str, patch_size))
        total = total_stride(self.strides)
        if any(edge < 1 or edge % step for edge, step in zip(patch_size, total, strict=True)):
            allowed = " x ".join(map(str, total))
            raise UserError(
                f"patch size {size} is not divisible by the strides of these weights, {allowed}{self._hint}"
            )
        for stage, (grid, tokens) in enumerate(zip(token_grids(patch_size, self.strides), self.tokens, strict=True)):
            if math.prod(grid) != tokens:
                shown = " x ".join(map(str, grid))
                raise UserError(
                    f"patch size {size} makes {shown} = {math.prod(grid)} tokens in stage {stage + 1}, these weights "
                    f"are for {tokens}{self._hint}"
                )

    @property
    def _hint(self) -> str:
        """End of a sentence that tells the published patch size, where there is one."""
        if self.published_patch is None:
            return ""
        size = " ".join(map(str, self.published_patch))
        return f"; the published {self.same_tokens} network has patches of {size} (z y x)"

    def architecture(self, patch_size: Sequence[int]) -> dict[str, Any]:
        """The `architecture` block of plans that builds this network as it was published, for such patches (voxels)."""
        rate = 0.15 if self.projections == "tied" else 0.1
        return unetrpp_architecture(
            patch_size,
            self.strides,
            base_width=self.features[0],
            features_per_stage=list(self.features),
            n_blocks_per_stage=list(self.blocks),
            n_blocks_per_stage_decoder=list(self.blocks_decoder),
            num_heads=list(self.heads),
            num_heads_decoder=list(self.heads_decoder),
            proj_size=list(self.proj_size),
            proj_size_decoder=list(self.proj_size_decoder),
            projections=self.projections,
            fusion=self.fusion,
            n_res_blocks=self.residual_blocks,
            attention_dropout=[rate, rate],
            sa_layout="legacy",
        )


def encoder_stages() -> list[str]:
    """The names' starts of the encoder's chains of transformer blocks, highest resolution first."""
    return [f"{ENCODER}.stages.{i}" for i in range(STAGES)]


def decoder_stages() -> list[str]:
    """The names' starts of the decoder's chains of transformer blocks, LOWEST resolution first."""
    return [f"decoder{k}.decoder_block.0" for k in (5, 4, 3)]


def infer_configuration(state: Mapping[str, Tensor]) -> Configuration:
    """Read a network's configuration off its weights.

    Args:
        state: canonical names and weights, from `unetrpp.canonical_state`: tied projections once, `EF` as (p, N).

    Raises:
        CheckpointError: not a UNETR++, or weights that contradict each other.
    """
    _check_kind(state)
    stem = _shape(state, "encoder1.conv1.conv.weight", 5)
    downs = [_shape(state, f"{ENCODER}.downsample_layers.{i}.0.conv.weight", 5) for i in range(STAGES)]
    if downs[0][1] != stem[1]:
        raise CheckpointError(
            f"checkpoint contradicts itself: encoder1 takes {stem[1]} channels, the patch embedding {downs[0][1]}"
        )
    encoder, decoder = [_stage(state, s) for s in encoder_stages()], [_stage(state, s) for s in decoder_stages()]
    for name, inner, outer in zip(decoder_stages(), decoder, encoder[-2::-1], strict=True):
        if inner.tokens != outer.tokens:
            raise CheckpointError(
                f"checkpoint contradicts itself: {name} has {inner.tokens} tokens, the encoder's stage {outer.tokens}"
            )
    first = f"{encoder_stages()[0]}.0"
    return Configuration(
        input_channels=stem[1],
        num_classes=_shape(state, "out1.conv.conv.weight", 5)[0],
        features=(stem[0], *(shape[0] for shape in downs)),
        strides=((1, 1, 1), *(shape[2:] for shape in downs)),
        tokens=tuple(stage.tokens for stage in encoder),
        blocks=tuple(stage.blocks for stage in encoder),
        blocks_decoder=tuple(stage.blocks for stage in decoder),
        heads=tuple(stage.heads for stage in encoder),
        heads_decoder=tuple(stage.heads for stage in decoder),
        proj_size=tuple(stage.size for stage in encoder),
        proj_size_decoder=tuple(stage.size for stage in decoder),
        **block_style(state, first),
        supervised="out2.conv.conv.weight" in state,
    )


def block_style(state: Mapping[str, Tensor], block: str) -> dict[str, Any]:
    """`projections`, `fusion` and `residual_blocks` of the transformer block whose names start with `block`."""
    attention = f"{block}.epa_block" if block else "epa_block"
    return {
        **attention_style(state, attention),
        "residual_blocks": 1 + (_join(block, "conv52.conv1.conv.weight") in state),
    }


def attention_style(state: Mapping[str, Tensor], attention: str) -> dict[str, Any]:
    """`projections` and `fusion` of the paired attention whose names start with `attention`."""
    separate = "separate" if _join(attention, "F.weight") in state else "tied"
    return {
        "projections": "no_bias" if _join(attention, "EF") in state else separate,
        "fusion": "concat" if _join(attention, "out_proj.weight") in state else "sum",
    }


def _join(start: str, name: str) -> str:
    return f"{start}.{name}" if start else name


@dataclass(frozen=True)
class _Stage:
    """A chain of transformer blocks; its first block speaks for all: others of another shape are refused on loading."""

    blocks: int
    tokens: int
    heads: int
    size: int


def _stage(state: Mapping[str, Tensor], name: str) -> _Stage:
    blocks = _indices(state, name)
    attention = f"{name}.0.epa_block"
    projection = f"{attention}.EF" if f"{attention}.EF" in state else f"{attention}.E.weight"
    tokens = _shape(state, f"{name}.0.pos_embed", 3)[1]
    return _Stage(len(blocks), tokens, _shape(state, f"{attention}.temperature", 3)[0], _shape(state, projection, 2)[0])


def _tokens(patch_size: Sequence[int], strides: Sequence[Sequence[int]]) -> tuple[int, ...]:
    return tuple(math.prod(grid) for grid in token_grids(patch_size, strides))


def _check_kind(state: Mapping[str, Tensor]) -> None:
    absent = [key for key in _REQUIRED if key not in state]
    if absent:
        raise CheckpointError(
            f"not a UNETR++ checkpoint: {absent[0]} is missing, found {shorten(state, 3)}{looks_like(state)}"
        )
    stages = _indices(state, f"{ENCODER}.downsample_layers")
    if len(stages) != STAGES:
        raise CheckpointError(
            f"checkpoint is incomplete: it has {len(stages)} {ENCODER}.downsample_layers, UNETR++ has {STAGES}"
        )


def _indices(state: Mapping[str, Tensor], group: str) -> list[int]:
    """The indices of a module list, which must start at 0 without gaps."""
    pattern = re.compile(rf"{re.escape(group)}\.(\d+)\.")
    found = sorted({int(match.group(1)) for key in state if (match := pattern.match(key))})
    if not found or found != list(range(len(found))):
        raise CheckpointError(f"checkpoint is incomplete: {group} has the indices {shorten(map(str, found)) or 'none'}")
    return found


def _shape(state: Mapping[str, Tensor], key: str, axes: int) -> tuple[int, ...]:
    if key not in state:
        raise CheckpointError(f"checkpoint is incomplete: {key} is missing")
    shape = tuple(state[key].shape)
    if len(shape) != axes or min(shape) < 1:
        raise CheckpointError(f"checkpoint entry {key} must have {axes} axes, none of them empty, got shape {shape}")
    return shape
