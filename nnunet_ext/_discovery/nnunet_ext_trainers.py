"""The manual way for trainers: this module's folder goes into ``nnUNet_extTrainer`` (``nnunet-ext env`` prints it).

nnU-Net imports this module and asks it for the trainer's name. Every name of ours is answered, variants included, with
the class of the real module under ``nnunet_ext.trainers``: nnU-Net forgets what it imported from this folder, so
classes must not live here.
"""

from __future__ import annotations

import os
import warnings

from nnunet_ext import lookup, registry
from nnunet_ext.names import UnknownNameError


def __getattr__(name: str) -> type:
    if name.startswith("__"):
        raise AttributeError(name)
    try:
        trainer = lookup.find("trainer", name)
    except UnknownNameError as error:
        # Another folder may have a class of that name; after the last one, nnU-Net's own error says little.
        if lookup.is_last_external_folder(os.path.dirname(__file__)) and not lookup.is_installed():
            warnings.warn(str(error), stacklevel=2)
        raise
    if trainer is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}: nnunet_ext has no trainer of that name")
    return trainer


def __dir__() -> list[str]:
    return sorted(registry.TRAINERS)
