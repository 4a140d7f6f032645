"""Read a checkpoint from elsewhere: tensors come out of it, and nothing in it is executed."""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nnunet_ext.errors import UserError
from nnunet_ext.weights.file_kind import file_kind
from nnunet_ext.weights.plain_arguments import ARGUMENTS
from nnunet_ext.weights.plain_numpy import STAND_INS

_PREFIXES = ("module.", "backbone.", "_orig_mod.")
_CAN_ALLOW = tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 6)
"""Whether torch's restricted unpickler can be told under which names something is allowed."""


class CheckpointError(UserError, ValueError):
    """A checkpoint that cannot be used: the message says what was found and what to do."""


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file holds.

    Attributes:
        state: CPU tensors by their names in the file, wrapper prefixes removed; float32, but counters stay integers.
        numbers: the scalar entries beside the weights: `epoch`, `best_acc`, and of nnU-Net v1's `best_stuff` the
            `best_validation_criterion`.
        file_name: the file's name without its folder.
        sha256: hexadecimal digest of the file.
    """

    state: dict[str, torch.Tensor]
    numbers: dict[str, float]
    file_name: str
    sha256: str


def shorten(names: Iterable[str], most: int = 5) -> str:
    """The first `most` of `names`, sorted, and how many more there are."""
    listed = sorted(names)
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more


Find = Callable[[Any, str], Mapping[str, Any]]
"""Takes a file's content and name and gives its weights by their names."""


def read_checkpoint(path: str | Path, find: Find | None = None) -> Checkpoint:
    """Read the weights of a checkpoint file without executing anything that is in it.

    Accepted are a dict with the entry `state_dict` (what SSH-UNet's scripts write, specification sshunet 2.1, and
    nnU-Net v1 and its forks, specification unetrpp 2.2) or `model` (Swin's, specification selfreg 2.2), a bare state
    dict, and a `.safetensors` file. Only tensors, plain containers, numbers
    and strings are constructed, and numpy numbers and numeric arrays, because published checkpoints hold their
    accuracies as such. The optimizer's state is left alone.

    Args:
        path: of the file.
        find: for other layouts than these.

    Raises:
        CheckpointError: the file is missing, damaged, needs other objects, or holds no usable state dict.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such file")
    if file_kind(path) == "pickle":
        raise CheckpointError(
            f"{path.name}: this is a plain Python pickle, as nnU-Net v1 writes its plans and the .model.pkl beside a "
            "checkpoint, not a checkpoint; give the .model file as the checkpoint, and this one to --plans where the "
            "method has that option"
        )
    content = safe_load(path)
    weights = (find or find_state_dict)(content, path.name)
    return Checkpoint(_clean(weights, path.name), _numbers(content), path.name, _sha256(path))


def safe_load(path: Path) -> Any:
    """The content of a file of torch.save or safetensors; only tensors, plain data and numpy numbers are constructed.

    Raises:
        CheckpointError: the file is damaged, or needs other objects.
    """
    if path.suffix == ".safetensors":
        return _load_safetensors(path)
    try:
        with _plain_data_allowed():
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises half a dozen unrelated types for files that it cannot read
        foreign = re.search(r"(?:GLOBAL|global) ([\w.]+)", str(error))
        if foreign is not None and foreign.group(1) in STAND_INS | ARGUMENTS:
            held = "a command's arguments" if foreign.group(1) in ARGUMENTS else "numpy numbers"
            raise CheckpointError(
                f"{path.name}: the file holds {held}, which torch {torch.__version__} cannot be told to read "
                "safely; install torch 2.6 or newer"
            ) from error
        if foreign is not None:
            raise CheckpointError(
                f"{path.name}: the file asks for Python objects ({foreign.group(1)}); only tensors, numbers and text "
                "are read, and nothing was executed. Where you trust the file, save its weights alone: "
                "torch.save({'state_dict': model.state_dict()}, 'weights.pt')"
            ) from error
        reason = (str(error) or type(error).__name__).splitlines()[0].split(". ")[0][:160]
        raise CheckpointError(
            f"{path.name}: not a readable PyTorch checkpoint, perhaps cut off or damaged ({reason})"
        ) from error


def _load_safetensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError  # comes with timm
    from safetensors.torch import load_file

    try:
        tensors: dict[str, torch.Tensor] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path.name}: not a readable safetensors file, perhaps cut off ({error})") from error
    return tensors


def _plain_data_allowed() -> contextlib.AbstractContextManager[Any]:
    """Let numpy's numbers and arrays and a command's arguments through torch's restricted unpickler, for one load."""
    if not _CAN_ALLOW:
        return contextlib.nullcontext()  # such files are refused with an explanation
    allowed: list[Any] = [(stand_in, name) for name, stand_in in (STAND_INS | ARGUMENTS).items()]
    context: contextlib.AbstractContextManager[Any] = torch.serialization.safe_globals(allowed)
    return context


def _numbers(content: Any) -> dict[str, float]:
    if not isinstance(content, Mapping):
        return {}
    entries = {key: content.get(key) for key in ("epoch", "best_acc")}
    best = content.get("best_stuff")
    if isinstance(best, tuple) and len(best) == 3:
        entries["best_validation_criterion"] = best[2]
    return {key: number for key, value in entries.items() if (number := _as_number(value)) is not None}


def _as_number(value: Any) -> float | None:
    if isinstance(value, torch.Tensor | np.ndarray | np.generic):
        array = np.asarray(value)
        return float(array.reshape(())) if array.size == 1 else None
    return float(value) if isinstance(value, int | float) else None


def find_state_dict(content: Any, name: str) -> Mapping[str, Any]:
    """The state dict in a file's content: itself, or its `state_dict` or `model`.

    Raises:
        CheckpointError: there is none.
    """
    if isinstance(content, Mapping):
        if "network_weights" in content:
            raise CheckpointError(
                f"{name}: this is an nnU-Net checkpoint already; use its model folder or give it to -pretrained_weights"
            )
        weights = content.get("state_dict", content.get("model", content))
        if isinstance(weights, Mapping) and weights:
            if all(isinstance(value, torch.Tensor) for value in weights.values()):
                return weights
            if weights is not content:
                entry = "state_dict" if "state_dict" in content else "model"
                raise CheckpointError(f"{name}: its {entry} holds entries that are not tensors")
        found = f"a dict with the entries {shorten(map(str, content))}" if content else "an empty dict"
    else:
        found = f"an object of type {type(content).__name__}"
    raise CheckpointError(f"{name}: no weights found; expected a state dict, or a dict with 'state_dict', got {found}")


def _strip(key: str) -> str:
    while key.startswith(_PREFIXES):
        key = key.split(".", 1)[1]
    return key


def _clean(weights: Mapping[str, Any], name: str) -> dict[str, torch.Tensor]:
    """Float32 tensors, and integer ones as they are, under names without wrapper prefixes."""
    state: dict[str, torch.Tensor] = {}
    for key, value in weights.items():
        stripped = _strip(str(key))
        if stripped in state:
            raise CheckpointError(
                f"{name}: two entries are called {stripped} once the prefixes of wrappers are removed"
            )
        if value.layout != torch.strided or value.is_quantized or value.is_complex():
            raise CheckpointError(
                f"{name}: {key} is not a dense tensor of real numbers but {value.dtype}, {value.layout}"
            )
        if value.is_meta or value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise CheckpointError(
                f"{name}: {key} claims the shape {tuple(value.shape)}, but the file holds fewer numbers for it; save "
                "every weight in full, as value.contiguous()"
            )
        value = value.detach()
        state[stripped] = (value.float() if value.is_floating_point() else value).contiguous()
    broken = [key for key, value in state.items() if not bool(torch.isfinite(value).all())]
    if broken:
        raise CheckpointError(f"{name}: NaN or infinite weights in {shorten(broken)}")
    return state


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
