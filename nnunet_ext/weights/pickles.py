"""Read pickles from elsewhere through an allow-list: plain data comes out of them, and nothing in them is executed."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

from nnunet_ext.weights.file_kind import file_kind
from nnunet_ext.weights.loading import CheckpointError
from nnunet_ext.weights.plain_numpy import STAND_INS, StandIn


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """What Python 2's pickle protocol needs for bytes."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"text encoded as {encoding!r}")
    return text.encode("latin1")


_CALLED: dict[str, Any] = {
    "collections.OrderedDict": OrderedDict,
    "builtins.set": set,
    "builtins.frozenset": frozenset,
    "builtins.complex": complex,
    "_codecs.encode": _encode,
    **STAND_INS,
}
_ALLOWED = {name: called if isinstance(called, StandIn) else StandIn(called) for name, called in _CALLED.items()}
"""Names that a pickle asks for -> what it gets, which it can call and nothing else."""


class _ForeignObjectError(pickle.UnpicklingError):
    """The pickle asks for something that is not plain data."""


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        module = "builtins" if module == "__builtin__" else module  # as it was called in Python 2
        full_name = f"{module}.{name}"
        if full_name not in _ALLOWED:
            raise _ForeignObjectError(full_name)
        return _ALLOWED[full_name]


def read_pickle(path: str | Path) -> Any:
    """Read a pickle that holds numbers, text, numpy's numbers and arrays of them, and containers of these.

    Raises:
        CheckpointError: the file is missing, damaged or not a pickle, or asks for any other object, which is named.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such file")
    kind = file_kind(path)
    if kind == "torch":
        raise CheckpointError(
            f"{path.name}: this is a PyTorch checkpoint, not a pickle of plans; give it as the checkpoint, and the "
            ".pkl file beside it as the plans"
        )
    if kind == "other":
        raise CheckpointError(f"{path.name}: not a Python pickle; expected nnU-Net v1's plans (.pkl)")
    try:
        with path.open("rb") as file:
            return _PlainUnpickler(file).load()
    except _ForeignObjectError as error:
        raise CheckpointError(
            f"{path.name}: the file asks for Python objects ({error}); only numbers, text, arrays and containers of "
            "them are read, and nothing was executed"
        ) from error
    except Exception as error:  # a damaged pickle can raise anything
        reason = (str(error) or type(error).__name__).splitlines()[0][:160]
        raise CheckpointError(f"{path.name}: not a readable pickle, perhaps cut off or damaged ({reason})") from error
