"""Weights of Swin-Unet and of its ImageNet backbone into our network (specification selfreg 2.2, 2.4, 4.8)."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from nnunet_ext.architectures.swinunet_plans import swinunet_architecture
from nnunet_ext.weights import transfer
from nnunet_ext.weights.loading import CheckpointError, shorten
from nnunet_ext.weights.recognise import looks_like
from nnunet_ext.weights.report import Report
from nnunet_ext.weights.shapes import count, shape
from nnunet_ext.weights.starts import HEADS

PUBLISHED_HEAD, HEAD = "output.weight", "decoder.seg_layers.0.weight"
COLOURS = "patch_embed.proj.weight"
TABLE = "relative_position_bias_table"
_CONSTANTS = ("attn_mask", "relative_position_index")
_TORCHVISION = {"features.0.0.weight", "features.1.0.attn.qkv.weight"}
"""Names in torchvision's Swin-T; its ConvNeXt has the first, too."""
_TORCHVISION_MLP = {"mlp.0.": "mlp.fc1.", "mlp.3.": "mlp.fc2."}


@dataclass(frozen=True)
class Configuration:
    """A Swin-Unet as its weights show it.

    Attributes:
        input_channels: of the first convolution in the file.
        num_classes: outputs, with the background.
        width: features of the patch embedding.
        blocks: of each stage, high resolution first.
        heads: of each stage's attention.
        window: positions along each axis of an attention window.
        mlp_ratio: width of the MLPs by that of their stage.
    """

    input_channels: int
    num_classes: int
    width: int
    blocks: tuple[int, ...]
    heads: tuple[int, ...]
    window: int
    mlp_ratio: float

    def architecture(self, patch_size: tuple[int, ...]) -> dict[str, Any]:
        """The plans' block for patches of (H, W) pixels."""
        made: dict[str, Any] = swinunet_architecture(
            patch_size,
            base_width=self.width,
            blocks=self.blocks,
            num_heads=list(self.heads),
            window_size=self.window,
            mlp_ratio=self.mlp_ratio,
        )
        return made


def layout(state: Mapping[str, Tensor]) -> str:
    """Whose file this is: "published" (a whole Swin-Unet), or "official", "timm" or "torchvision" (Swin-T alone).

    Raises:
        CheckpointError: none of these.
    """
    names = {key.removeprefix("swin_unet.") for key in state}
    if names >= _TORCHVISION:
        return "torchvision"
    if COLOURS not in names or "layers.0.blocks.0.attn.qkv.weight" not in names:
        found = shorten(state, 3)
        raise CheckpointError(
            f"neither a Swin-Unet nor Swin-T's weights: found {found}{looks_like(state)}. Give a trained Swin-Unet, or "
            "Swin-T as the official repository, timm (swin_tiny_patch4_window7_224) or torchvision (swin_t) have it"
        )
    if any(key.startswith(("layers_up.", "concat_back_dim.")) for key in names):
        return "published"
    return "official" if "layers.0.downsample.reduction.weight" in names else "timm"


def canonical_state(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Weights by the official names, without constants.

    Args:
        state: by the names in a file of any `layout`.

    Returns:
        The weights, and the names of a classifier, which are left out.
    """
    kind, canonical, left = layout(state), dict[str, Tensor](), list[str]()
    for key, value in state.items():
        name = key.removeprefix("swin_unet.")
        if kind == "torchvision":
            name = _from_torchvision(name)
        elif kind == "timm":
            name = re.sub(r"^layers\.(\d+)\.downsample\.", lambda m: f"layers.{int(m[1]) - 1}.downsample.", name)
        if name.startswith("head."):
            left.append(key)
        elif not name.endswith(_CONSTANTS):
            canonical[name] = value
    return canonical, tuple(left)


def _from_torchvision(name: str) -> str:
    """A name of torchvision's `swin_t` -> the official one."""
    name = name.replace("features.0.0.", "patch_embed.proj.").replace("features.0.2.", "patch_embed.norm.")
    match = re.match(r"features\.(\d+)\.(.*)", name)
    if match is None:
        return name
    index, rest = int(match[1]), match[2]
    if index % 2 == 0:
        return f"layers.{index // 2 - 1}.downsample.{rest}"
    for theirs, ours in _TORCHVISION_MLP.items():
        rest = rest.replace(theirs, ours)
    return f"layers.{index // 2}.blocks.{rest}"


def infer_configuration(state: Mapping[str, Tensor]) -> Configuration:
    """Read a whole Swin-Unet off its canonical weights.

    Raises:
        CheckpointError: something that tells the network's shape is missing.
    """
    stages = count(state, "layers")
    width, channels = shape(state, COLOURS, 4)[:2]
    tables = [shape(state, f"layers.{i}.blocks.0.attn.{TABLE}", 2) for i in range(stages)]
    return Configuration(
        input_channels=channels,
        num_classes=shape(state, PUBLISHED_HEAD, 4)[0],
        width=width,
        blocks=tuple(count(state, f"layers.{i}.blocks") for i in range(stages)),
        heads=tuple(heads for _, heads in tables),
        window=(math.isqrt(tables[0][0]) + 1) // 2,
        mlp_ratio=shape(state, "layers.0.blocks.0.mlp.fc1.weight", 2)[0] / width,
    )


def build_network(configuration: Configuration, patch_size: tuple[int, ...], channels: int) -> nn.Module:
    """Our network for `configuration`, patches of (H, W) pixels and images of so many channels.

    Raises:
        CheckpointError: no network has such a configuration.
    """
    try:
        return transfer.build_network(configuration.architecture(patch_size), channels, configuration.num_classes)
    except ValueError as error:
        raise CheckpointError(f"the checkpoint's network cannot be built: {error}") from error


def load_weights(network: nn.Module, state: Mapping[str, Tensor]) -> Report:
    """Load a whole Swin-Unet, strictly, into a network built for it; the first convolution is adapted.

    Args:
        network: made by `build_network`.
        state: canonical weights.

    Raises:
        CheckpointError: missing or unexpected names, or shapes that do not fit.
    """
    ours = network.state_dict()
    adapted = {**state}
    if COLOURS in adapted and adapted[COLOURS].is_floating_point():
        adapted[COLOURS] = adapt_channels(adapted[COLOURS], ours[COLOURS].shape[1])
    return transfer.load_weights(network, adapted, key_map(network))


def key_map(network: nn.Module) -> dict[str, str]:
    """Every canonical name of the published network's weights -> our name: they differ in the head."""
    return {PUBLISHED_HEAD if name == HEAD else name: name for name in network.state_dict()}


def initialise(network: nn.Module, state: Mapping[str, Tensor]) -> Report:
    """Start a network from ImageNet weights, or from another Swin-Unet: what fits is loaded, all but the head.

    Blocks of the decoder that the file has none for get those of the encoder's mirror stage.

    Args:
        network: a Swin-Unet.
        state: canonical weights.

    Returns:
        What was loaded, copied, left, and filled with the network's own initialisation.

    Raises:
        CheckpointError: weights of another width or kind, or of an encoder that lacks some; nothing was loaded.
    """
    ours = {name: value for name, value in network.state_dict().items() if HEADS not in name}
    stages = sum(1 for name in ours if re.fullmatch(r"layers\.\d+\.blocks\.0\.norm1\.weight", name))
    loaded, copied, used = dict[str, Tensor](), dict[str, Tensor](), set[str]()
    for name, own in ours.items():
        mirrored = re.sub(r"^layers_up\.(\d+)(\.blocks\.)", lambda m: f"layers.{stages - 1 - int(m[1])}{m[2]}", name)
        source = name if name in state else mirrored
        if source in state:
            (loaded if source == name else copied)[name] = _fitted(name, state[source], own)
            used.add(source)
    absent = [name for name in ours if name not in loaded and _expected(name, state)]
    if absent:
        raise CheckpointError(
            f"{len(absent)} weights of Swin-T's patch embedding, blocks and mergings are missing: found "
            f"{len(loaded)} of ours, but not {shorten(absent, 3)}. Give a whole file of Swin-T (SwinV2 is another "
            "network) or of a Swin-Unet"
        )
    network.load_state_dict({**network.state_dict(), **loaded, **copied})
    return Report(
        tuple(loaded),
        filled=tuple(name for name in ours if name not in loaded and name not in copied),
        copied=tuple(copied),
        left=tuple(name for name in state if name not in used),
    )


def _expected(name: str, state: Mapping[str, Tensor]) -> bool:
    """Whether a file as deep as `state` must have our encoder's weight `name`."""
    match = re.match(r"(layers\.\d+\.blocks\.)(\d+)\.", name)
    if match is None:
        return name.startswith(("patch_embed.", "layers."))
    stage, block = match[1], int(match[2])
    return block == 0 or any(
        int(key.removeprefix(stage).split(".")[0]) >= block
        for key in state
        if re.match(rf"{re.escape(stage)}\d+\.", key)
    )


def _fitted(name: str, value: Tensor, own: Tensor) -> Tensor:
    """A weight of the file in the shape of ours."""
    if not value.is_floating_point() or value.ndim != own.ndim or value.numel() == 0:
        raise CheckpointError(
            f"the weights cannot be used: {name} holds {value.dtype} of shape {tuple(value.shape)} in the file, where "
            f"floating-point numbers of {own.ndim} axes, none of them empty, belong; give an undamaged file of Swin-T "
            "or of a Swin-Unet"
        )
    if name == COLOURS:
        value = adapt_channels(value, own.shape[1])
    elif name.endswith(TABLE):
        value = resize_table(value, (math.isqrt(own.shape[0]) + 1) // 2)
    if value.shape != own.shape:
        raise CheckpointError(
            f"the weights do not fit the plans' network: {name} is {tuple(value.shape)} in the file and "
            f"{tuple(own.shape)} in the network. ImageNet weights of Swin-T need plans of the plain width (96 "
            "features: SwinUNetPlanner without _W<n>) and its heads"
        )
    return value


def adapt_channels(weight: Tensor, channels: int) -> Tensor:
    """The first convolution's weight (features, C, 4, 4) for images of another number of channels.

    Each channel gets the sum of all kernels divided by their number: for one channel that is exactly an image repeated
    C times.
    """
    if weight.shape[1] == channels:
        return weight
    return (weight.sum(1, keepdim=True) / channels).expand(-1, channels, -1, -1).contiguous()


def resize_table(table: Tensor, window: int) -> Tensor:
    """A position bias table (side ** 2, heads) for another window: its centre, or resized where that is larger.

    Args:
        table: of relative positions, `side` = 2 * its window - 1 along each axis.
        window: positions along each axis of the new window.
    """
    side, wished = math.isqrt(table.shape[0]), 2 * window - 1
    if side * side != table.shape[0] or side % 2 == 0:
        raise CheckpointError(
            f"a position bias table has {table.shape[0]} rows, which is no square of an odd number, as (2 * window - "
            "1) ** 2 is; give an undamaged file of Swin-T or of a Swin-Unet"
        )
    square = table.mT.reshape(1, -1, side, side)
    if wished > side:
        square = F.interpolate(square, (wished, wished), mode="bicubic", align_corners=False)
    else:
        start = (side - wished) // 2
        square = square[:, :, start : start + wished, start : start + wished]
    return square.reshape(-1, wished**2).mT.contiguous()
