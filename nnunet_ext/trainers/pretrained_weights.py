"""Which file ``nnUNetv2_train -pretrained_weights`` gave a network; nnU-Net does not tell its trainers."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

from nnunetv2.run import load_pretrained_weights as nnunet
from torch import nn
from torch.nn.parallel import DistributedDataParallel

_MARK = "_nnunet_ext_watched"
_files: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()


def bare(network: nn.Module) -> nn.Module:
    """A network without the wrappers of DDP and torch.compile."""
    inner: Any = network.module if isinstance(network, DistributedDataParallel) else network
    module: nn.Module = getattr(inner, "_orig_mod", inner)
    return module


def watch() -> None:
    """From now on nnU-Net's loader notes which file a network got; everything that has bound it gets that loader."""
    original = nnunet.load_pretrained_weights
    if hasattr(original, _MARK):
        return
    watched = _watched(original)
    for module in list(sys.modules.values()):
        for name, value in list(getattr(module, "__dict__", {}).items()):
            if value is original:
                setattr(module, name, watched)


def file_of(network: nn.Module) -> str | None:
    """The file whose weights nnU-Net's loader put into a network since `watch`; None: it did not."""
    return _files.get(bare(network))


def _watched(original: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(original)
    def load_pretrained_weights(network: nn.Module, fname: Any, *args: Any, **kwargs: Any) -> None:
        original(network, fname, *args, **kwargs)
        _files[bare(network)] = str(fname)

    setattr(load_pretrained_weights, _MARK, True)
    return load_pretrained_weights
