"""Planner classes made on look-up from their names: `Base[M|L|XL][_Recipe][_W<n>]`."""

from __future__ import annotations

import threading
from collections.abc import Callable
from importlib import import_module
from typing import Any

from nnunet_ext.names import UnknownNameError, parse_planner

#: GPU memory targets in GB, nnU-Net's.
PRESETS_GB: dict[str, float] = {"M": 8, "L": 24, "XL": 40}

_classes: dict[str, type] = {}
_lock = threading.RLock()


def planner_class(name: str) -> type:
    """The planner class of a name, the same object at every call.

    The class belongs to its base class' module, so that it can be imported and pickled from there. A recipe is a class
    of that module, `<Base>_<Recipe>`; presets and widths are class attributes.

    Raises:
        UnknownNameError: (an AttributeError) `name` does not belong to any registered planner.
    """
    with _lock:
        if name not in _classes:
            _classes[name] = _make(name)
        return _classes[name]


def _make(name: str) -> type:
    parsed = parse_planner(name)
    if parsed is None:
        raise UnknownNameError(f"{name!r} is not a planner of nnunet_ext; `nnunet-ext list` shows those that are.")
    module_name, _, attribute = parsed.entry.target.partition(":")
    base_name = attribute if parsed.recipe is None else f"{attribute}_{parsed.recipe}"
    base: type = getattr(import_module(module_name), base_name)
    attributes: dict[str, Any] = {}
    if parsed.preset is not None:
        attributes["default_gpu_memory_gb"] = PRESETS_GB[parsed.preset]
    if parsed.width is not None:
        attributes["base_width"] = parsed.width
    if not attributes:
        return base
    documentation = f"`{base_name}` for {name!r}."
    special = {"__module__": base.__module__, "__qualname__": name, "__doc__": documentation}
    return type(name, (base,), {**attributes, **special})


def variant_attribute(module_name: str) -> Callable[[str], type]:
    """A module-level `__getattr__` that makes the variants of the planners that are defined in that module.

    Args:
        module_name: The module's `__name__`.
    """

    def variant(name: str) -> type:
        parsed = parse_planner(name)
        if (
            parsed is None
            or (parsed.preset is None and parsed.width is None)  # then it would be defined in the module
            or parsed.entry.target.partition(":")[0] != module_name
        ):
            raise AttributeError(f"module {module_name!r} has no attribute {name!r}")
        return planner_class(name)

    return variant
