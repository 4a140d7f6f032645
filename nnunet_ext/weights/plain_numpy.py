"""Harmless stand-ins for the numpy functions that pickles of numbers and arrays call.

numpy's own can be abused: a `dtype` restored from a hostile pickle may declare raw bytes to be pointers. These accept
numbers and text only, and take nothing but the byte order from a stored dtype's state. A pickle may set the state of
whatever it can name, so the names stand for objects that refuse any: nothing in this process changes.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np

_KINDS = "biufSU"
"""Truth values, integers, floats, bytes and text."""


class StandIn:
    """Calls a function for a pickle; the function itself, whose attributes could be set, stays out of its reach."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        """Call the function."""
        return self._function(*arguments)

    def __setstate__(self, state: Any) -> None:
        """Refuse the state that a hostile pickle has for this object."""
        raise pickle.UnpicklingError("the file tries to change a function")


class PlainDtype:
    """Stands for `numpy.dtype` while a pickle is read."""

    __slots__ = ("dtype",)

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
    """Stands for `numpy.ndarray` while a pickle is read; only `_reconstruct` makes one."""

    def __new__(cls, *arguments: Any, **options: Any) -> PlainArray:
        """Refuse what numpy's pickles never do: an array of any type, or of memory that nobody has filled.

        Raises:
            pickle.UnpicklingError: always.
        """
        raise pickle.UnpicklingError("the file makes an array in a way that numpy does not write")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """Take (version, shape, dtype, Fortran order, bytes)."""
        _, shape, dtype, fortran, data = state
        if not isinstance(dtype, PlainDtype) or not isinstance(data, bytes):
            raise pickle.UnpicklingError("an array's contents are not plain bytes")
        super().__setstate__((1, shape, dtype.dtype, fortran, data))


def _reconstruct(subtype: Any, shape: Any, code: Any) -> PlainArray:
    """An empty array that `__setstate__` fills."""
    return np.ndarray.__new__(PlainArray, (0,), np.int8)


def _scalar(dtype: Any, data: Any = None) -> Any:
    if not isinstance(dtype, PlainDtype) or not isinstance(data, bytes) or len(data) != dtype.dtype.itemsize:
        raise pickle.UnpicklingError("a number's contents are not plain bytes")
    return np.frombuffer(data, dtype.dtype)[0]


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any, axes: Any = None) -> np.ndarray:
    if not isinstance(dtype, PlainDtype) or not isinstance(data, bytes | bytearray):
        raise pickle.UnpicklingError("an array's contents are not plain bytes")
    return np.frombuffer(data, dtype.dtype).reshape(shape, order=order)


STAND_INS: dict[str, Any] = {"numpy.dtype": PlainDtype, "numpy.ndarray": PlainArray}
"""Names that a pickle asks for -> what it gets; numpy 1 and 2 call the modules differently.

The two classes are their own stand-ins, because torch's unpickler fills objects of classes that it finds here only.
"""
for _core in ("numpy.core", "numpy._core"):
    STAND_INS[f"{_core}.multiarray._reconstruct"] = StandIn(_reconstruct)
    STAND_INS[f"{_core}.multiarray.scalar"] = StandIn(_scalar)
    STAND_INS[f"{_core}.numeric._frombuffer"] = StandIn(_from_buffer)
