"""Trainer classes made from their names: ``SSHUNetTrainer_GSM_AdamW_250epochs``.

A class is made when it is first asked for, cached, and belongs to the module of its base class; with

    __getattr__ = variant_attribute(__name__)

in that module it can be imported and pickled by its name, in spawned workers too.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from nnunet_ext.names import UnknownNameError, parse_trainer
from nnunet_ext.registry import load
from nnunet_ext.trainers.options import variant_attributes

KD = "KD"
MIXINS = {"FineTune": "nnunet_ext.trainers.fine_tuning:FineTuneMixin", KD: "nnunet_ext.trainers.kd:KDMixin"}
"""Suffixes that are classes put before the trainer, in this order, instead of class attributes."""

_variants: dict[tuple[type, tuple[str, ...]], type] = {}
_lock = threading.RLock()


def trainer_class(name: str) -> type:
    """The trainer class of that name; the same object at every call.

    Args:
        name: a registered base class' name with any suffixes in canonical order, such as ``SSHUNetTrainer_GSF_Seed1``.

    Returns:
        The class; with suffixes, a subclass of the base with their class attributes.

    Raises:
        UnknownNameError: (an AttributeError) the name begins with none of our bases, or has wrong suffixes.
    """
    parsed = parse_trainer(name)
    if parsed is None:
        raise UnknownNameError(f"{name!r} is not a trainer of nnunet_ext; `nnunet-ext list` shows those that are.")
    base: type = load(parsed.entry.target)
    if not parsed.suffixes:
        return base
    with _lock:
        key = (base, parsed.suffixes)
        if key not in _variants:
            _variants[key] = _derive(base, parsed.suffixes)
        return _variants[key]


def _derive(base: type, suffixes: tuple[str, ...]) -> type:
    """A subclass with the suffixes' class attributes, in the base class' module."""
    name = "_".join((base.__name__, *suffixes))
    bases = (*(load(target) for suffix, target in MIXINS.items() if suffix in suffixes), base)
    attributes = variant_attributes(base, (suffix for suffix in suffixes if suffix not in MIXINS))
    if {KD, "Published"} <= set(suffixes):
        attributes |= load("nnunet_ext.trainers.kd:PUBLISHED")
    documentation = f"``{base.__name__}`` with the suffixes {', '.join(suffixes)}."
    special = {"__module__": base.__module__, "__qualname__": name, "__doc__": documentation}
    return type(name, bases, {**attributes, **special})


def variant_attribute(module_name: str) -> Callable[[str], type]:
    """A module-level ``__getattr__`` that makes the variants of the trainers defined in that module.

    Args:
        module_name: the module's ``__name__``.

    Returns:
        A function of an attribute's name; it returns the class or raises AttributeError.
    """

    def variant(name: str) -> type:
        parsed = parse_trainer(name)
        if parsed is None or not parsed.suffixes or parsed.entry.target.partition(":")[0] != module_name:
            raise AttributeError(f"module {module_name!r} has no attribute {name!r}")
        return trainer_class(name)

    return variant
