"""Harmless stand-ins for the numpy functions that pickles of numbers and arrays call.

numpy's own can be abused: a `dtype` restored from a hostile pickle may declare raw bytes to be pointers. These accept
numbers and text only, and take nothing but the byte order from a stored dtype's state.
"""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np

_KINDS = "biufSU"
"""Truth values, integers, floats, bytes and text."""


class PlainDtype:
    """Stands for `numpy.dtype` while a pickle is read."""

    def __init__(self, code: Any, align: bool = False, copy: bool = False) -> None:
        """Take a simple type's code such as "f8".

        Raises:
            pickle.UnpicklingError: not a number's or text's type.
        """
        dtype = np.dtype(code) if isinstance(code, str) else None
        if dtype is None or dtype.kind not in _KINDS:
            raise pickle.UnpicklingError(f"arrays of type {code!r} are not read, only numbers and text")
        self.dtype = dtype

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """Take the byte order from (version, byte order, subtype, names, fields, size, alignment, flags, ...)."""
        self.dtype = self.dtype.newbyteorder(state[1])


class PlainArray(np.ndarray):
    """Stands for `numpy.ndarray` while a pickle is read."""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """Take (version, shape, dtype, Fortran order, bytes)."""
        _, shape, dtype, fortran, data = state
        if not isinstance(dtype, PlainDtype) or not isinstance(data, bytes):
            raise pickle.UnpicklingError("an array's contents are not plain bytes")
        super().__setstate__((1, shape, dtype.dtype, fortran, data))


def _reconstruct(subtype: Any, shape: Any, code: Any) -> PlainArray:
    """An empty array that `__setstate__` fills."""
    return PlainArray((0,), np.int8)


def _scalar(dtype: Any, data: Any = None) -> Any:
    if not isinstance(dtype, PlainDtype) or not isinstance(data, bytes) or len(data) != dtype.dtype.itemsize:
        raise pickle.UnpicklingError("a number's contents are not plain bytes")
    return np.frombuffer(data, dtype.dtype)[0]


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any, axes: Any = None) -> np.ndarray:
    if not isinstance(dtype, PlainDtype) or not isinstance(data, bytes | bytearray):
        raise pickle.UnpicklingError("an array's contents are not plain bytes")
    return np.frombuffer(data, dtype.dtype).reshape(shape, order=order)


STAND_INS: dict[str, Any] = {"numpy.dtype": PlainDtype, "numpy.ndarray": PlainArray}
"""Names that a pickle asks for -> what it gets; numpy 1 and 2 call the modules differently."""
for _core in ("numpy.core", "numpy._core"):
    STAND_INS[f"{_core}.multiarray._reconstruct"] = _reconstruct
    STAND_INS[f"{_core}.multiarray.scalar"] = _scalar
    STAND_INS[f"{_core}.numeric._frombuffer"] = _from_buffer
