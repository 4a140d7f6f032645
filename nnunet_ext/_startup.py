"""The start-up hook: nnU-Net's stock commands look our names up, with no environment variable set.

Python calls ``register()`` at every interpreter start, through ``nnunet_ext.pth`` (``nnunet_ext.start`` from Python
3.15 on). It puts one finder on ``sys.meta_path``, which waits for the single module
``nnunetv2.utilities.find_class_by_name``, lets Python's own finders find it, removes itself, and has
``nnunet_ext.lookup`` wrap that module's look-up function. Nothing else happens: standard library only, no network, no
change of the environment, no import of torch or nnunetv2, no exception. ``NNUNET_EXT_DISABLE_STARTUP=1`` switches it
off; the manual way is then ``export nnUNet_extTrainer="$(nnunet-ext env)"`` for trainers and ``nnunet-ext plan`` for
planners.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:  # never at run time: these imports would cost more than all the rest
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

MODULE = "nnunetv2.utilities.find_class_by_name"


class _Finder:
    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name == MODULE:
            for finder in [finder for finder in sys.meta_path if finder is not self]:
                spec = finder.find_spec(name, path, target)
                if spec is not None and spec.loader is not None:
                    sys.meta_path.remove(self)
                    self.loader, spec.loader = spec.loader, self  # type: ignore[assignment]
                    return spec
        return None

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self.loader
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader  # the module looks as if it had been loaded without us
        self.loader.exec_module(module)
        _wrap(module)


def _wrap(module: ModuleType) -> None:
    try:
        from nnunet_ext.lookup import wrap

        wrap(module)
    except Exception as error:  # nnU-Net must go on working without us
        sys.stderr.write(f"nnunet_ext could not add its names to nnU-Net: {error!r}\n")


_FINDER = _Finder()


def register(force: bool = False) -> None:
    """Have nnU-Net find our names, whether it is imported later or has been already; calling again does nothing.

    Args:
        force: also where ``NNUNET_EXT_DISABLE_STARTUP`` is set (``nnunet_ext.lookup.install`` and ``nnunet-ext plan``).
    """
    if not force and os.environ.get("NNUNET_EXT_DISABLE_STARTUP", "0") not in ("", "0"):
        return
    if MODULE in sys.modules:
        _wrap(sys.modules[MODULE])
    elif _FINDER not in sys.meta_path:
        sys.meta_path.insert(0, _FINDER)


def is_waiting() -> bool:
    """Whether the hook is in place and nnunetv2's look-up has not been imported yet."""
    return _FINDER in sys.meta_path
