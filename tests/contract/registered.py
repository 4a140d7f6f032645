"""What the suite runs over: everything in the registry, and what other packages register.

``NNUNET_EXT_CONTRACT_PLUGINS="my_module[,other.module]"`` names modules that register trainers, planners and networks
(`nnunet_ext.registry.register`) when they are imported; without it, the toy of ``toy_plugin.py`` stands for them. Their
entries are in the registry during this suite's tests only.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from nnunet_ext import registry
from nnunet_ext.names import parse_planner
from nnunet_ext.registry import NetworkEntry, PlannerEntry, TrainerEntry

VARIABLE = "NNUNET_EXT_CONTRACT_PLUGINS"
TOY = "contract.toy_plugin"
CONFIGURATIONS = {2: "2d", 3: "3d_fullres"}
Tables = tuple[dict[str, TrainerEntry], dict[str, PlannerEntry], dict[str, NetworkEntry]]


def _tables() -> list[dict[str, Any]]:
    return [registry.TRAINERS, registry.PLANNERS, registry.NETWORKS]


def _fill(contents: Any) -> None:
    for table, content in zip(_tables(), contents, strict=True):
        table.clear()
        table.update(content)


def _with_plugins(modules: list[str]) -> Any:
    """The tables with what the modules register; the registry itself stays as it was."""
    before = [dict(table) for table in _tables()]
    try:
        for module in modules:
            size = sum(map(len, _tables()))
            importlib.import_module(module)
            if sum(map(len, _tables())) == size:
                raise pytest.UsageError(f"{VARIABLE}: {module} registers nothing (nnunet_ext.registry.register).")
        return tuple(dict(table) for table in _tables())
    finally:
        _fill(before)


OWN: Tables = (dict(registry.TRAINERS), dict(registry.PLANNERS), dict(registry.NETWORKS))
PLUGINS = [module.strip() for module in os.environ.get(VARIABLE, TOY).split(",") if module.strip()]
if TOY not in PLUGINS:
    _with_plugins([TOY])  # the suite's own tests import it; its names stay out
ALL: Tables = _with_plugins(PLUGINS)
TRAINERS, PLANNERS, NETWORKS = ALL


@contextmanager
def registered() -> Iterator[None]:
    """With the other packages' entries in the registry."""
    before = [dict(table) for table in _tables()]
    _fill(ALL)
    try:
        yield
    finally:
        _fill(before)


def is_ours(entry: registry.Entry) -> bool:
    """Whether the package itself registers it."""
    return any(entry.name in table for table in OWN)


def configurations(entry: TrainerEntry | NetworkEntry) -> list[str]:
    """The configurations of which an entry claims the dimensions."""
    return [CONFIGURATIONS[dimension] for dimension in sorted(entry.dimensions, reverse=True)]


def option_suffixes(entry: TrainerEntry) -> list[str]:
    """Every method option, recipe and, where claimed, KD."""
    return [option for group in entry.options for option in group] + [*entry.recipes] + (["KD"] if entry.kd else [])


def option_names(entry: TrainerEntry) -> list[str]:
    """The trainer with each of its own suffixes once."""
    return [f"{entry.name}_{suffix}" for suffix in option_suffixes(entry)]


def planner_entry(name: str) -> PlannerEntry:
    """The registry's entry of a planner's full name."""
    parsed = parse_planner(name)
    assert parsed is not None, f"{name} is not registered"
    return parsed.entry


def small_planner(name: str) -> str:
    """A planner's name with four features in the first stage, where it has widths."""
    return f"{name}_W4" if planner_entry(name).width else name


def planner_names(entry: PlannerEntry) -> list[str]:
    """The planner with each of its presets, recipes and a width once."""
    names = [entry.name, *(entry.name + preset for preset in entry.presets)]
    names += [f"{entry.name}_{recipe}" for recipe in entry.recipes]
    return names + ([f"{entry.name}_W4"] if entry.width else [])


def planner_of(network: NetworkEntry) -> str:
    """The name of the planner that plans a network."""
    found = [network.planner] if network.planner else []
    found += [entry.name for entry in PLANNERS.values() if entry.network == network.name]
    if not found:
        raise pytest.UsageError(f"No planner is registered for the network {network.name}: it cannot be configured.")
    return found[0]


def trainers_of(network: NetworkEntry) -> list[str]:
    """The trainers of a network, and each with its options (not recipes and KD: they leave the network alone)."""
    found = [entry for entry in TRAINERS.values() if entry.network == network.name]
    return [name for entry in found for name in (entry.name, *_network_options(entry))] or ["nnUNetTrainer"]


def _network_options(entry: TrainerEntry) -> list[str]:
    """The trainer with each option that may change its network."""
    others = {f"{entry.name}_{suffix}" for suffix in (*entry.recipes, "KD")}
    return [name for name in option_names(entry) if name not in others]
