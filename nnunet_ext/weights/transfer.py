"""Weights into a network that was built for them: nothing missing, nothing left over, every shape right."""

from __future__ import annotations

import pydoc
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nnunet_ext.weights.loading import CheckpointError, shorten
from nnunet_ext.weights.report import Report


def build_network(
    architecture: Mapping[str, Any], input_channels: int, num_classes: int, seed: int = 0, **changes: Any
) -> nn.Module:
    """Build a network from the `architecture` block of plans, with a fresh initialisation that depends on `seed` alone.

    Args:
        architecture: `network_class_name`, `arch_kwargs` and `_kw_requires_import`.
        input_channels: channels of the image.
        num_classes: output channels, background included.
        seed: of the initialisation; torch's global random state is left as it was.
        **changes: arguments beside or instead of `arch_kwargs`.
    """
    kwargs: dict[str, Any] = dict(architecture["arch_kwargs"])
    for name in architecture["_kw_requires_import"]:
        kwargs[name] = None if kwargs[name] is None else pydoc.locate(kwargs[name])
    network_class: Any = pydoc.locate(architecture["network_class_name"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network: nn.Module = network_class(
            input_channels=input_channels, num_classes=num_classes, **{**kwargs, **changes}
        )
        initialize = getattr(network_class, "initialize", None)
        if initialize is not None and not any(parameter.is_meta for parameter in network.parameters()):
            network.apply(initialize)
    return network


def load_weights(
    network: nn.Module,
    state: Mapping[str, Tensor],
    names: Mapping[str, str],
    *,
    optional: Collection[str] = (),
    zeroed: Collection[str] = (),
    own: Collection[str] = (),
) -> Report:
    """Load weights under their published names; weights that the file has none for stay as they are.

    Args:
        network: ours, built for these weights.
        state: published names and weights.
        names: every published name -> our name.
        optional: published names that a file may lack.
        zeroed: our names that have no published counterpart and become zero.
        own: our names that hold no weights, and are left out of the report.

    Returns:
        What was loaded, zeroed and left to the initialisation; second names are the caller's to add.

    Raises:
        CheckpointError: missing or unexpected names, or shapes or types that do not fit; nothing was loaded.
    """
    ours = network.state_dict()
    _check(state, names, ours, optional)
    loaded = {name: state[key] for key, name in names.items() if key in state}
    zeros = {name: torch.zeros_like(ours[name]) for name in zeroed}
    network.load_state_dict({**ours, **zeros, **loaded}, strict=True)
    filled = tuple(name for name in ours if name not in loaded and name not in zeros and name not in own)
    return Report(tuple(loaded), filled, zeroed=tuple(zeros))


def load_normed_weights(network: nn.Module, state: Mapping[str, Tensor], names: Mapping[str, str]) -> Report:
    """`load_weights` for networks with batch norm, whose counters of batches hold no weights: a file may lack them.

    Raises:
        CheckpointError: as `load_weights`.
    """
    counters = [key for key in names if key.endswith("num_batches_tracked")]
    return load_weights(network, state, names, optional=counters, own=[names[key] for key in counters])


def _check(
    state: Mapping[str, Tensor], names: Mapping[str, str], ours: Mapping[str, Tensor], optional: Collection[str]
) -> None:
    missing = [key for key in names if key not in state and key not in optional]
    unexpected = [key for key in state if key not in names]
    shapes = [
        f"{key} is {tuple(state[key].shape)}, expected {tuple(ours[name].shape)}"
        for key, name in names.items()
        if key in state and state[key].shape != ours[name].shape
    ]
    kinds = [
        f"{key} is {state[key].dtype}, expected {ours[name].dtype}"
        for key, name in names.items()
        if key in state and ours[name].is_floating_point() and not state[key].is_floating_point()
    ]
    problems = []
    if missing:
        problems.append(f"{len(missing)} missing: {shorten(missing)}")
    if unexpected:
        problems.append(f"{len(unexpected)} unexpected: {shorten(unexpected)}")
    if shapes:
        problems.append(f"{len(shapes)} of another shape: {shorten(shapes, 3)}")
    if kinds:
        problems.append(f"{len(kinds)} of another type: {shorten(kinds, 3)}")
    if problems:
        raise CheckpointError("checkpoint does not fit the network inferred from it; " + "; ".join(problems))
