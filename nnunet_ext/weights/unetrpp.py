"""Published UNETR++ weights into our network: tied projections, names, and a complete state dict with a report.

Source of the format: specification unetrpp section 2 (`Amshaker/unetr_plus_plus` dcba1c6e).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from nnunet_ext.architectures.unetrpp import UNETRPP
from nnunet_ext.weights import transfer
from nnunet_ext.weights.loading import CheckpointError, shorten
from nnunet_ext.weights.report import Report
from nnunet_ext.weights.unetrpp_configuration import ENCODER, Configuration, decoder_stages, encoder_stages

_NORM = ("weight", "bias")
_BATCH_NORM = (*_NORM, "running_mean", "running_var", "num_batches_tracked")
_LINEAR = ("weight", "bias")
_COUNTER = ".num_batches_tracked"


def canonical_state(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Resolve the second names of tied projections, and turn `EF` (N, p) into the weight (p, N) of a linear map.

    Where blocks have one residual block, E and F are one module that the file lists twice (the Synapse network); where
    they have two, they are two modules (ACDC, Lung).

    Args:
        state: weights by the names in the file.

    Returns:
        The weights by canonical names, and the `epa_block.F.*` names that were dropped.

    Raises:
        CheckpointError: tied projections differ between their two names.
    """
    separate = any(".conv52." in f".{key}" for key in state)
    aliases = [] if separate else [key for key in state if ".epa_block.F." in f".{key}"]
    different = []
    for alias in aliases:
        key = alias.replace("epa_block.F.", "epa_block.E.")
        if key not in state or not torch.equal(state[key], state[alias]):
            different.append(alias.split(".epa_block")[0])
    if different:
        blocks = sorted(set(different))
        raise CheckpointError(
            f"checkpoint is damaged or edited: epa_block.E and epa_block.F are one module in networks with one "
            f"residual block (no conv52), but differ in {shorten(blocks, 3)}; save the network's state dict again "
            "from the original code"
        )
    canonical = {
        key: value.mT.contiguous() if key.endswith("EF") and value.dim() == 2 else value
        for key, value in state.items()
        if key not in aliases
    }
    return canonical, tuple(aliases)


def attention_key_map(projections: str, fusion: str, theirs: str = "", ours: str = "") -> dict[str, str]:
    """Names of one paired attention's parameters: the original's -> ours.

    Args:
        projections: "tied", "separate" or "no_bias".
        fusion: "concat" or "sum".
        theirs: prefix of the original's names, with its dot.
        ours: prefix of our names, with its dot.
    """
    names = {"temperature": "channel_temperature", "temperature2": "spatial_temperature", "qkvv.weight": "qkvv.weight"}
    if projections == "no_bias":
        names["EF"] = "key_projection.weight"
    else:
        names |= _module("E", "key_projection", _LINEAR)
    if projections == "separate":
        names |= _module("F", "value_projection", _LINEAR)
    if fusion == "concat":
        names |= _module("out_proj", "spatial_out", _LINEAR) | _module("out_proj2", "channel_out", _LINEAR)
    return {f"{theirs}{key}": f"{ours}{name}" for key, name in names.items()}


def block_key_map(
    projections: str, fusion: str, residual_blocks: int, theirs: str = "", ours: str = ""
) -> dict[str, str]:
    """Names of one transformer block's weights: the original's -> ours; arguments as of `attention_key_map`."""
    names = {"gamma": "gamma", "pos_embed": "pos_embed"} | _module("norm", "norm", _NORM)
    names |= attention_key_map(projections, fusion, "epa_block.", "attention.")
    for r in range(residual_blocks):
        for n in (1, 2):
            names[f"conv5{r + 1}.conv{n}.conv.weight"] = f"residual.{r}.conv{n}.weight"
            names |= _module(f"conv5{r + 1}.norm{n}", f"residual.{r}.norm{n}", _BATCH_NORM)
    names |= _module("conv8.1", "mix", _LINEAR)
    return {f"{theirs}{key}": f"{ours}{name}" for key, name in names.items()}


def _module(theirs: str, ours: str, parameters: Sequence[str]) -> dict[str, str]:
    return {f"{theirs}.{p}": f"{ours}.{p}" for p in parameters}


def key_map(configuration: Configuration) -> dict[str, str]:
    """Every canonical name of a published network's weights -> our name."""
    c = configuration
    names = {
        "encoder1.conv1.conv.weight": "encoder.stem.conv1.weight",
        "encoder1.conv2.conv.weight": "encoder.stem.conv2.weight",
        "encoder1.conv3.conv.weight": "encoder.stem.shortcut.weight",
    }
    if c.input_channels == c.features[0]:
        del names["encoder1.conv3.conv.weight"]
    for i, stage in enumerate(encoder_stages()):
        down = f"{ENCODER}.downsample_layers.{i}"
        names[f"{down}.0.conv.weight"] = f"encoder.downsamples.{i}.conv.weight"
        names |= _module(f"{down}.1", f"encoder.downsamples.{i}.norm", _NORM)
        names |= _blocks(c, stage, f"encoder.stages.{i}", c.blocks[i])
    for m, stage in enumerate(decoder_stages()):
        names |= _blocks(c, stage, f"decoder.stages.{m}", c.blocks_decoder[m])
    for m in range(len(decoder_stages()) + 1):
        names[f"decoder{5 - m}.transp_conv.conv.weight"] = f"decoder.transpconvs.{m}.conv.weight"
    for n in (1, 2):
        names[f"decoder2.decoder_block.0.conv{n}.conv.weight"] = f"decoder.stages.3.conv{n}.weight"
    for head in (1, 2, 3) if c.supervised else (1,):
        names |= _module(f"out{head}.conv.conv", f"decoder.seg_layers.{4 - head}", _LINEAR)
    return names


def _blocks(configuration: Configuration, theirs: str, ours: str, number: int) -> dict[str, str]:
    c = configuration
    names: dict[str, str] = {}
    for j in range(number):
        names |= block_key_map(c.projections, c.fusion, c.residual_blocks, f"{theirs}.{j}.", f"{ours}.{j}.")
    return names


def build_network(configuration: Configuration, patch_size: Sequence[int]) -> nn.Module:
    """Build our network for `configuration` and patches of (z, y, x) voxels.

    Raises:
        UserError: the weights are not for such patches.
    """
    configuration.check_patch_size(patch_size)
    return transfer.build_network(
        configuration.architecture(patch_size), configuration.input_channels, configuration.num_classes
    )


def load_weights(network: nn.Module, state: Mapping[str, Tensor], configuration: Configuration) -> Report:
    """Load canonical weights into our network; heads that the published network lacks become zero.

    Args:
        network: made by `build_network` for the same configuration.
        state: canonical names and weights.
        configuration: the published network.

    Returns:
        What was loaded and zeroed; second names are the caller's to add.

    Raises:
        CheckpointError: missing or unexpected names, or shapes that do not fit.
    """
    names = key_map(configuration)
    heads = (0,) if configuration.supervised else (0, 1, 2)
    return transfer.load_weights(
        network,
        state,
        names,
        optional=[key for key in names if key.endswith(_COUNTER)],
        zeroed=[f"decoder.seg_layers.{head}.{p}" for head in heads for p in _LINEAR],
        own=(UNETRPP.patch_size_key, *(name for name in names.values() if name.endswith(_COUNTER))),
    )
