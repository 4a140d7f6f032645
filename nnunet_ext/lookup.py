"""Finding our classes by name, and answering nnU-Net's own look-ups where it finds nothing itself.

nnU-Net looks everything up with one function, ``nnunetv2.utilities.find_class_by_name.recursive_find_python_class``.
The start-up hook has ``wrap`` put a wrapper around it: nnU-Net's own answer always comes first, ours only where it has
none, so built-in names are never shadowed and other people's trainers in ``nnUNet_extTrainer`` are still found.

Where Python does not read start-up files, or this package was installed while a notebook was already running, call
``install()``::

    from nnunet_ext.lookup import install

    install()
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

from nnunet_ext import _startup, names, registry
from nnunet_ext.errors import NameNotFoundError
from nnunet_ext.versions import require_tested_nnunet

TRAINERS_MODULE = "nnunetv2.training.nnUNetTrainer"
PLANNERS_MODULE = "nnunetv2.experiment_planning"
_MARK = "_nnunet_ext_wrapped"


def find(kind: registry.Kind, name: str) -> type | None:
    """Find one of our classes by its name, variants included; it is imported only then.

    Returns:
        The class, the same object every time; None if the name does not belong to us.

    Raises:
        UnknownNameError: if the name begins with one of ours but does not follow the grammar.
        UnsupportedNnunetError: if it is ours but the installed nnunetv2 is outside the tested range.
    """
    if kind == "network":
        entry = registry.NETWORKS.get(name)
        return None if entry is None else registry.load(entry.target)
    parse = names.parse_trainer if kind == "trainer" else names.parse_planner
    if parse(name) is None:
        return None
    require_tested_nnunet()
    if kind == "trainer":
        from nnunet_ext.trainers.variants import trainer_class

        return trainer_class(name)
    from nnunet_ext.planners.variants import planner_class

    return planner_class(name)


def install() -> None:
    """Have nnU-Net find our names in this process: before or after nnunetv2 is imported, start-up file or not."""
    _startup.register(force=True)


def is_installed() -> bool:
    """Whether nnU-Net's look-ups in this process find (or, before nnunetv2 is imported, will find) our names."""
    module = sys.modules.get(_startup.MODULE)
    if module is None:
        return _startup.is_waiting()
    return hasattr(module.recursive_find_python_class, _MARK)


def wrap(module: ModuleType) -> None:
    """Wrap the look-up function of ``find_class_by_name``, also in every module that has bound it by now."""
    original = module.recursive_find_python_class
    if hasattr(original, _MARK):
        return
    wrapper = _wrapper(original)
    for other in list(sys.modules.values()):
        for attribute, value in list(getattr(other, "__dict__", {}).items()):
            if value is original:
                setattr(other, attribute, wrapper)


def _wrapper(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def recursive_find_python_class(
        folder: str, class_name: str, current_module: str | None, *args: Any, **kwargs: Any
    ) -> Any:
        found = original(folder, class_name, current_module, *args, **kwargs)
        return found if found is not None else _fallback(folder, class_name, current_module)

    setattr(recursive_find_python_class, _MARK, True)
    return recursive_find_python_class


def _fallback(folder: str, class_name: str, current_module: str | None) -> Any:
    """Our answer where nnU-Net found nothing; a sentence (NameNotFoundError) where no other place is left to look."""
    if current_module == PLANNERS_MODULE:
        return _find_or_explain("planner", class_name, last=True)
    if current_module == TRAINERS_MODULE:
        return _find_or_explain("trainer", class_name, last=not external_folders())
    if current_module is None and is_last_external_folder(folder):
        return _find_or_explain("trainer", class_name, last=True)
    return None


def _find_or_explain(kind: registry.Kind, name: str, last: bool) -> Any:
    try:
        found = find(kind, name)
        sentence = names.suggestion(kind, name) if found is None else None
    except names.UnknownNameError as error:
        found, sentence = None, str(error)
    if sentence is not None and last:
        raise NameNotFoundError(sentence) from None
    return found


def external_folders() -> list[str]:
    """The existing folders of ``nnUNet_extTrainer``, in nnU-Net's order of search."""
    folders = os.environ.get("nnUNet_extTrainer", "").split(os.pathsep)
    return [folder for folder in folders if folder.strip() and os.path.exists(folder)]


def is_last_external_folder(folder: str) -> bool:
    """Whether nnU-Net looks in no other folder of ``nnUNet_extTrainer`` after this one."""
    folders = external_folders()
    return bool(folders) and os.path.abspath(folders[-1]) == os.path.abspath(folder)
