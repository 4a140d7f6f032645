"""Which file ``nnUNetv2_train -pretrained_weights`` gave a network; nnU-Net does not tell its trainers."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from nnunetv2.run import load_pretrained_weights as nnunet
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from nnunet_ext.pretraining import leakage

if TYPE_CHECKING:
    from nnunet_ext.trainers.base import BaseTrainer

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


def warn_of_leakage(trainer: BaseTrainer, validation: Sequence[str]) -> None:
    """Say in the log and on stderr which validation cases the loaded weights were pre-trained on, where a file says so.

    Args:
        trainer: initialised; its weights loaded.
        validation: the fold's cases.
    """
    file = file_of(trainer.network)
    if file is None or trainer.fold == "all":
        return
    origin = leakage.origin_of(file)
    if origin is None:
        return
    dataset = trainer.plans_manager.dataset_name
    found = leakage.overlap(origin.cases, Path(os.environ.get("nnUNet_raw", ".")) / dataset, validation)
    if not found:
        return
    if origin.transductive:
        trainer.print_to_log_file(
            f"Transductive: {len(found)} of {len(validation)} validation cases were pre-trained on, as was meant."
        )
        return
    text = f"WARNING: {leakage.warning(found, len(validation), dataset, trainer.fold)}"
    trainer.print_to_log_file(text)
    sys.stderr.write(f"{text}\n")


def _watched(original: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(original)
    def load_pretrained_weights(network: nn.Module, fname: Any, *args: Any, **kwargs: Any) -> None:
        original(network, fname, *args, **kwargs)
        _files[bare(network)] = str(fname)

    setattr(load_pretrained_weights, _MARK, True)
    return load_pretrained_weights
