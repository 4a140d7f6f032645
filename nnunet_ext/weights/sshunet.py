"""Published SSH-UNet weights into our network: aliases, names, and a complete state dict with a report.

Source of the format: specification sshunet section 2 (`cugwu/ssh-unet` be4de766).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from nnunet_ext.weights import transfer
from nnunet_ext.weights.loading import CheckpointError, shorten
from nnunet_ext.weights.report import Report
from nnunet_ext.weights.sshunet_configuration import Configuration

_ALIAS = "skip_layers."
_DEEPER = "next_layer."
_GATE_NAMES = {"conv3D": "conv", "channel_conv1": "fuse1", "channel_conv2": "fuse2"}
_VFN_DOWN = {"conv1": "down1", "conv2": "down2", "bottleneck": "bottleneck"}
_VFN_UP = {"up2": "up2", "up1": "up1", "up": "up0"}


def canonical_state(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Resolve the second names under which the original registers every trunk weight.

    Args:
        state: weights by the names in the file.

    Returns:
        The weights by canonical names, and the `skip_layers.*` names that were dropped. A weight that the file holds
        only under its second name is kept under the canonical one.

    Raises:
        CheckpointError: a weight differs between its two names (the original would silently take the second).
    """
    canonical = {key: value for key, value in state.items() if not key.startswith(_ALIAS)}
    aliases = [key for key in state if key.startswith(_ALIAS)]
    levels = 1 + max((_depth(key.removeprefix(_ALIAS)) for key in aliases), default=0)
    different = []
    for alias in aliases:
        key = _alias_target(alias.removeprefix(_ALIAS), levels)
        if key not in canonical:
            canonical[key] = state[alias]
        elif not torch.equal(canonical[key], state[alias]):
            different.append(key)
    if different:
        group = sorted(different)[0].split(".")[0]
        raise CheckpointError(
            f"checkpoint keys skip_layers.* disagree with {group}.*: {shorten(different, 3)} differ between their two "
            "names; save the network's state dict again from the original code"
        )
    return canonical, tuple(aliases)


def _depth(rest: str) -> int:
    depth = 0
    while rest.startswith(_DEEPER):
        rest, depth = rest.removeprefix(_DEEPER), depth + 1
    return depth


def _alias_target(rest: str, levels: int) -> str:
    """The canonical name of `skip_layers.<rest>` in a network of `levels` levels."""
    level = _depth(rest)
    part = rest[len(_DEEPER) * level :]
    if level == levels - 1:
        return f"bottleneck.{part}"
    kind, _, name = part.partition(".")
    if kind == "downsample":
        return f"input_block.{name}" if level == 0 else f"downsamples.{level - 1}.{name}"
    if kind == "upsample":
        return f"upsamples.{levels - 2 - level}.{name}"
    if kind == "super_head" and level > 0:
        return f"deep_supervision_heads.{level - 1}.{name}"
    return _ALIAS + rest  # unknown: reported as an unexpected entry


def gate_key_map(gate: str, theirs: str = "", ours: str = "") -> dict[str, str]:
    """Names of one gate module's parameters: the original's -> ours.

    Args:
        gate: "tsm", "gsm", "gsf" or "none"; the first and last have no parameters.
        theirs: prefix of the original's names, with its dot.
        ours: prefix of our names, with its dot.
    """
    modules = {"gsm": ["conv3D"], "gsf": list(_GATE_NAMES)}.get(gate, [])
    return {f"{theirs}{name}.{p}": f"{ours}{_GATE_NAMES[name]}.{p}" for name in modules for p in ("weight", "bias")}


def key_map(configuration: Configuration) -> dict[str, str]:
    """Every canonical name of a published network's weights -> our name (specification sshunet 2.5)."""
    c = configuration
    names: dict[str, str] = {}
    encoder = ["input_block", *(f"downsamples.{i}" for i in range(c.levels - 2)), "bottleneck"]
    for level, block in enumerate(encoder):
        gate = c.gate if c.gate_stages[level] else "none"
        names |= _block(block, f"encoder.stages.{level}", gate, c.has_shortcut(level), c.affine)
    for j in range(c.levels - 1):
        names[f"upsamples.{j}.transp_conv.conv.weight"] = f"decoder.transpconvs.{j}.weight"
        if c.transpconv_bias:
            names[f"upsamples.{j}.transp_conv.conv.bias"] = f"decoder.transpconvs.{j}.bias"
        gate = c.gate if c.gate_decoder[j] else "none"
        names |= _block(f"upsamples.{j}.conv_block", f"decoder.stages.{j}", gate, not c.basic_decoder, c.affine)
    full = c.levels - 2
    if c.vfn:
        names |= _vfn("output_block", f"decoder.seg_layers.{full}")
        for i in range(c.heads):
            names |= _vfn(f"deep_supervision_heads.{i}", f"decoder.seg_layers.{full - 1 - i}")
        return names
    names |= _sum_head("output_block", full)
    for i in range(c.heads):
        names |= _sum_head(f"deep_supervision_heads.{i}", full - 1 - i)
    return names


def _block(theirs: str, ours: str, gate: str, shortcut: bool, affine: bool) -> dict[str, str]:
    names = {f"{theirs}.conv{n}.conv.weight": f"{ours}.conv{n}.weight" for n in (1, 2)}
    if shortcut:
        names[f"{theirs}.conv3.conv.weight"] = f"{ours}.shortcut.weight"
    if affine:
        norms = (1, 2, 3) if shortcut else (1, 2)
        names |= {f"{theirs}.norm{n}.{p}": f"{ours}.norm{n}.{p}" for n in norms for p in ("weight", "bias")}
    return names | gate_key_map(gate, f"{theirs}.shift.", f"{ours}.gate.")


def _sum_head(theirs: str, j: int) -> dict[str, str]:
    names = {}
    for p in ("weight", "bias"):
        names[f"{theirs}.conv1.conv.{p}"] = f"decoder.fusion.{j}.{p}"
        names[f"{theirs}.conv.conv.{p}"] = f"decoder.seg_layers.{j}.{p}"
    return names


def _vfn(theirs: str, ours: str) -> dict[str, str]:
    names = {}
    for p in ("weight", "bias"):
        names[f"{theirs}.conv.conv.{p}"] = f"{ours}.project.{p}"
        names[f"{theirs}.out.conv.{p}"] = f"{ours}.out.{p}"
    for part, here in _VFN_DOWN.items():
        names |= {f"{theirs}.{part}.conv{n}.conv.weight": f"{ours}.{here}.conv{n}.weight" for n in (1, 2)}
    for part, here in _VFN_UP.items():
        names[f"{theirs}.{part}.transp_conv.conv.weight"] = f"{ours}.{here}.transpconv.weight"
        names |= {f"{theirs}.{part}.conv_block.conv{n}.conv.weight": f"{ours}.{here}.conv{n}.weight" for n in (1, 2)}
    return names


def build_network(
    configuration: Configuration, axes: str = "xyz", stacked_supervision: int = 0, seed: int = 0
) -> nn.Module:
    """Build our network for `configuration` with a fresh initialisation that depends on `seed` alone.

    Args:
        configuration: the published network.
        axes: see `Configuration.architecture`.
        stacked_supervision: see `Configuration.architecture`.
        seed: of the initialisation; torch's global random state is left as it was.
    """
    architecture = configuration.architecture(axes, stacked_supervision)
    return transfer.build_network(architecture, configuration.input_channels, configuration.num_classes, seed)


def load_weights(network: nn.Module, state: Mapping[str, Tensor], configuration: Configuration) -> Report:
    """Load canonical weights into our network; weights that the file has none for stay as they are.

    Args:
        network: made by `build_network` for the same configuration.
        state: canonical names and weights.
        configuration: the published network.

    Returns:
        What was loaded and left to the initialisation; aliases are the caller's to add.

    Raises:
        CheckpointError: missing or unexpected names, or shapes that do not fit.
    """
    return transfer.load_weights(network, state, key_map(configuration))
