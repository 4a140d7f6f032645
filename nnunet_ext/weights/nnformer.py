"""Published weights of nnFormer and of Alice's backbone into our network (specification alice 1.9, 2)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from nnunet_ext.architectures.blocks.shifted_windows import triple
from nnunet_ext.architectures.nnformer_plans import nnformer_architecture, nnformer_strides
from nnunet_ext.weights import transfer
from nnunet_ext.weights.loading import CheckpointError, shorten
from nnunet_ext.weights.nnformer_tables import INDEX, TABLE, convert_table, file_style, window_edge
from nnunet_ext.weights.recognise import looks_like
from nnunet_ext.weights.report import Report
from nnunet_ext.weights.shapes import count, shape
from nnunet_ext.weights.starts import HEADS

POSITIONS = "encoder.absolute_pos_embed"
FIRST = "model_down.patch_embed.proj1.conv1.weight"
_LEFT = ("model_down.mask_token", "final.")
"""What a start of a training has no place for: an unused token and the reconstruction's or another data set's heads."""
_IGNORED = ("head.", "casa.")


@dataclass(frozen=True)
class Configuration:
    """An nnFormer as its weights show it.

    Attributes:
        input_channels: of the first convolution.
        outputs: of the head at full resolution; None where the file has none.
        widths: features of the patch embedding's inner convolutions, and of each stage of tokens.
        blocks: of each stage of the encoder.
        blocks_decoder: of each stage of the decoder, low resolution first.
        heads: of each stage's attention.
        windows: edges of each stage's windows.
    """

    input_channels: int
    outputs: int | None
    widths: tuple[int, ...]
    blocks: tuple[int, ...]
    blocks_decoder: tuple[int, ...]
    heads: tuple[int, ...]
    windows: tuple[int, ...]

    def architecture(self, patch_size: tuple[int, ...], **options: Any) -> dict[str, Any]:
        """The plans' block of this network as published, for patches of (D, H, W) voxels and strides of 2."""
        made: dict[str, Any] = nnformer_architecture(
            patch_size,
            nnformer_strides(patch_size, stages=len(self.blocks)),
            base_width=self.widths[1],
            **{
                "features_per_stage": list(self.widths),
                "n_blocks_per_stage": list(self.blocks),
                "n_blocks_per_stage_decoder": list(self.blocks_decoder),
                "num_heads": list(self.heads),
                "window_size": list(self.windows),
                "relative_index": "legacy",
                **options,
            },
        )
        return made


def infer_configuration(state: Mapping[str, Tensor]) -> Configuration:
    """Read a network off its weights.

    Raises:
        CheckpointError: not an nnFormer, or something that tells the network's shape is missing.
    """
    if FIRST not in state:
        raise CheckpointError(
            f"no nnFormer: found {shorten(state, 3)}{looks_like(state)}. Give a checkpoint of Alice's pre-training (as "
            "it is, or as extract_backbone_weights.py writes it), or one of nnFormer"
        )
    stages = count(state, "model_down.layers")
    tables = [shape(state, f"model_down.layers.{i}.blocks.0.attn.{TABLE}", 2) for i in range(stages)]
    hidden, channels = shape(state, FIRST, 5)[:2]
    widths = [shape(state, f"model_down.norm{i}.weight", 1)[0] for i in range(stages)]
    return Configuration(
        input_channels=channels,
        outputs=shape(state, "final.0.up.weight", 5)[1] if "final.0.up.weight" in state else None,
        widths=(hidden, *widths),
        blocks=tuple(count(state, f"model_down.layers.{i}.blocks") for i in range(stages)),
        blocks_decoder=tuple(count(state, f"decoder.layers.{j}.blocks") for j in range(stages - 2, -1, -1)),
        heads=tuple(heads for _, heads in tables),
        windows=tuple((round(rows ** (1 / 3)) + 1) // 2 for rows, _ in tables),
    )


def key_map(network: nn.Module) -> dict[str, str]:
    """Every published name of the network's weights -> our name; the head of the deepest stage has no published one."""
    names = [name for name in network.state_dict() if name != POSITIONS]
    levels = sum(1 for name in names if re.fullmatch(r"decoder\.stages\.\d+\.upsample\.norm\.weight", name))
    found = {name: _published(name, levels) for name in names}
    return {theirs: name for name, theirs in found.items() if theirs is not None}


def _published(name: str, levels: int) -> str | None:
    """The published name of ours; `levels` stages of the decoder, which are numbered the other way round."""
    name = re.sub(r"^encoder\.(patch_embed\.)", r"model_down.\1", name)
    name = re.sub(r"^encoder\.stages\.", "model_down.layers.", name)
    name = re.sub(r"^encoder\.downsamples\.(\d+)", r"model_down.layers.\1.downsample", name)
    name = re.sub(r"^encoder\.norms\.(\d+)", r"model_down.norm\1", name)
    name = re.sub(r"^decoder\.stages\.(\d+)\.", lambda m: f"decoder.layers.{levels - 1 - int(m[1])}.", name)
    match = re.fullmatch(r"decoder\.seg_layers\.(\d+)\.(\w+)", name)
    if match is not None:
        return f"final.{levels - int(match[1])}.up.{match[2]}" if int(match[1]) else None
    return name.replace(".upsample.", ".Upsample.")


def load_weights(network: nn.Module, state: Mapping[str, Tensor]) -> Report:
    """Load a whole published network, heads included, into ours of the same configuration, index and windows.

    The position table and the head that the published network lacks become zero.

    Raises:
        CheckpointError: missing or unexpected names, or shapes that do not fit.
    """
    names = key_map(network)
    weights = {key: value for key, value in _weights(state).items() if key != "model_down.mask_token"}
    zeroed = [name for name in network.state_dict() if name not in names.values()]
    return transfer.load_weights(
        network, weights, names, optional=[key for key in names if key.startswith("final.")], zeroed=zeroed
    )


def initialise(network: nn.Module, state: Mapping[str, Tensor]) -> tuple[Report, list[str]]:
    """Start a network from a published one: everything but the heads, fitted to the network's plans.

    The first convolution is adapted to the channels, transposed convolutions to the strides, bias tables to windows
    and index; the position table, which no published file has, becomes zero.

    Args:
        network: an `NNFormer`.
        state: weights by their names in the file, wrapper prefixes removed.

    Returns:
        What was loaded, zeroed and left, and the heads that keep their initialisation; and what was changed on the
        way, one sentence each.

    Raises:
        CheckpointError: weights of another width, depth or kind; nothing was loaded.
    """
    ours = {name: value for name, value in network.state_dict().items() if HEADS not in name and name != POSITIONS}
    theirs = {name: key for key, name in key_map(network).items() if HEADS not in name}
    weights = _weights(state)
    missing = [theirs[name] for name in ours if theirs[name] not in weights]
    unexpected = [key for key in weights if key not in theirs.values() and not key.startswith(_LEFT)]
    if missing or unexpected:
        raise CheckpointError(
            f"the checkpoint does not fit the plans' nnFormer; {len(missing)} of its weights are missing"
            f"{f' ({shorten(missing, 3)})' if missing else ''}, {len(unexpected)} of the file have no place in it"
            f"{f' ({shorten(unexpected, 3)})' if unexpected else ''}: plan with NNFormerPlanner, whose blocks are the "
            "published ones"
        )
    changes: dict[str, str] = {}
    loaded = {name: _fitted(theirs[name], state, own, network, name, changes) for name, own in ours.items()}
    zeros = {POSITIONS: torch.zeros_like(network.get_buffer(POSITIONS))}
    network.load_state_dict({**network.state_dict(), **loaded, **zeros})
    filled = tuple(name for name in network.state_dict() if HEADS in name)
    left = tuple(key for key in weights if key.startswith(_LEFT))
    return Report(tuple(loaded), filled=filled, zeroed=tuple(zeros), left=left), list(changes.values())


def _weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The backbone's entries that are weights: no constants, and no heads and modules of the pre-training."""
    return {key: value for key, value in state.items() if not key.endswith(INDEX) and not key.startswith(_IGNORED)}


def _fitted(
    key: str, state: Mapping[str, Tensor], own: Tensor, network: nn.Module, name: str, changes: dict[str, str]
) -> Tensor:
    """A weight of the file in the shape of ours; `changes` gets a sentence for each kind of change."""
    value = state[key]
    if not value.is_floating_point() or value.ndim != own.ndim or value.numel() == 0:
        raise CheckpointError(
            f"the weights cannot be used: {key} holds {value.dtype} of shape {tuple(value.shape)} in the file, where "
            f"floating-point numbers of {own.ndim} axes, none of them empty, belong; give an undamaged file"
        )
    if key == FIRST and value.shape[1] != own.shape[1]:
        changes["channels"] = f"The first convolution's {value.shape[1]} channels were adapted to {own.shape[1]}."
        value = adapt_channels(value, own.shape[1])
    elif key.endswith(TABLE):
        block: Any = network.get_submodule(name.removesuffix(f".attn.{TABLE}"))
        style, window = file_style(state, key.removesuffix(TABLE)), window_edge(key, value)
        value = convert_table(key, value, style, block.window, block.style)
        if style != block.style:
            changes["index"] = "Position bias tables were rewritten for the corrected index, with the same effect."
        if set(block.window) != {window}:
            changes["window"] = "Position bias tables were interpolated for the windows of the plans' network."
    elif key.endswith("Upsample.up.weight") and value.shape[2:] != own.shape[2:]:
        changes["strides"] = "Transposed convolutions were averaged along the axes that the plans do not halve."
        value = functional.adaptive_avg_pool3d(value, triple(own.shape[2:]))
    if value.shape != own.shape:
        raise CheckpointError(
            f"the weights do not fit the plans' network: {key} is {tuple(value.shape)} in the file and "
            f"{tuple(own.shape)} in the network. Alice's weights need plans of the plain width (48 features: "
            "NNFormerPlanner without _W<n>), the original nnFormer's NNFormerPlanner_W192"
        )
    return value


def adapt_channels(weight: Tensor, channels: int) -> Tensor:
    """The first convolution's weight (features, C, 3, 3, 3) for images of another number of channels.

    More channels: repeated and scaled by the old number over the new one. Fewer: the mean (specification alice 4.5).
    """
    old = weight.shape[1]
    if channels < old:
        return weight.mean(1, keepdim=True).expand(-1, channels, -1, -1, -1).contiguous()
    repeated = weight.repeat(1, -(-channels // old), 1, 1, 1)[:, :channels]
    return repeated * (old / channels)
