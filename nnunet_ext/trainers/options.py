"""What the common suffixes of a trainer's name mean: class attributes of ``BaseTrainer``'s subclasses.

A suffix sets class attributes. Attributes that are mappings (``hyperparameters``, and a method's own such as
``network_options``) are merged, the others replaced; suffixes are applied from left to right, so the later one wins.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

ADAMW_LEARNING_RATE = 3e-3
ADAMW_WEIGHT_DECAY = 1e-2
ADAMW_WARMUP = 40  # iterations; without it one class of the demo's data sometimes stays empty for many epochs
VALIDATION_SHARE = 5  # nnU-Net: 250 training and 50 validation iterations an epoch

_FIXED: dict[str, dict[str, Any]] = {
    "AdamW": {
        "optimizer_name": "adamw",
        "warmup_iterations": ADAMW_WARMUP,
        "hyperparameters": {"initial_lr": ADAMW_LEARNING_RATE, "weight_decay": ADAMW_WEIGHT_DECAY},
    },
    "NoMirroring": {"mirroring": False},
}
_SEED = re.compile(r"Seed(\d+)")
_ITERATIONS = re.compile(r"(\d+)its")
_EPOCHS = re.compile(r"(\d+)epochs")


def common_attributes(suffix: str) -> dict[str, Any]:
    """Class attributes that a suffix common to all methods stands for.

    Args:
        suffix: ``AdamW``, ``NoMirroring``, ``Seed<n>``, ``<n>its`` or ``<n>epochs``.

    Returns:
        A new dict, attribute name to value.

    Raises:
        KeyError: the suffix is none of these.
    """
    if suffix in _FIXED:
        return dict(_FIXED[suffix])
    if match := _SEED.fullmatch(suffix):
        return {"seed": int(match[1])}
    if match := _ITERATIONS.fullmatch(suffix):
        iterations = int(match[1])
        validation = max(1, iterations // VALIDATION_SHARE)
        return {"hyperparameters": {"num_iterations_per_epoch": iterations, "num_val_iterations_per_epoch": validation}}
    if match := _EPOCHS.fullmatch(suffix):
        return {"hyperparameters": {"num_epochs": int(match[1])}}
    raise KeyError(suffix)


def variant_attributes(base: type, suffixes: Iterable[str]) -> dict[str, Any]:
    """Class attributes of ``base``'s variant with these suffixes.

    Args:
        base: a trainer class; its own ``OPTIONS`` (suffix to class attributes) go before the common suffixes.
        suffixes: without underscores, in the order of the name.

    Returns:
        Attribute name to value, complete (mappings already merged with those of ``base``).

    Raises:
        KeyError: a suffix is unknown to the class and to ``common_attributes``.
    """
    options: Mapping[str, Mapping[str, Any]] = getattr(base, "OPTIONS", {})
    attributes: dict[str, Any] = {}
    for suffix in suffixes:
        new = options[suffix] if suffix in options else common_attributes(suffix)
        for name, value in new.items():
            if isinstance(value, Mapping):
                value = {**attributes.get(name, getattr(base, name, {})), **value}
            attributes[name] = value
    return attributes
