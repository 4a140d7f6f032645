"""nnU-Net's files of probabilities, read and written as streams: no more of them than one piece is in memory."""

from __future__ import annotations

import math
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from nnunet_ext.errors import UserError

_KEY = "probabilities"
_ROUNDING = 1e-3  # of probabilities, which may be stored as 16 bits


class ProbabilityStream:
    """The values of CASE.npz, class after class, each in the order (z, y, x)."""

    def __init__(self, path: Path) -> None:
        """Open the file and read its header.

        Raises:
            UserError: it is missing, damaged, or holds something else.
        """
        self.path = path
        with self._told():
            self._zip = zipfile.ZipFile(path)
            try:
                self._member: IO[bytes] = self._zip.open(f"{_KEY}.npy")
                self.shape, fortran, self.dtype = _header(self._member)
            except BaseException:
                self._zip.close()
                raise
        if self.dtype.kind != "f" or len(self.shape) != 4 or not math.prod(self.shape):
            self._zip.close()
            raise UserError(
                f"{path} holds values of type {self.dtype} and shape {self.shape}; expected probabilities (classes, z, "
                "y, x), as nnUNetv2_predict --save_probabilities writes them"
            )
        self._unpacked: np.ndarray | None = self._unpack() if fortran and not self._same_in_both_orders() else None
        self._place = 0

    def read(self, count: int) -> np.ndarray:
        """The next values, read-only, of the file's own floating type.

        Raises:
            UserError: the file is damaged, or values are no probabilities.
        """
        if self._unpacked is not None:
            values = np.asarray(self._unpacked.flat[self._place : self._place + count])
        else:
            with self._told():
                data = self._member.read(count * self.dtype.itemsize)
                if len(data) < count * self.dtype.itemsize:
                    raise EOFError("it ends too early")
                values = np.frombuffer(data, self.dtype)
        self._place += count
        low, high = float(values.min()), float(values.max())  # NaN if any is
        if not (low >= -_ROUNDING and high <= 1 + _ROUNDING):
            raise UserError(
                f"{self.path} has values from {low:g} to {high:g}; probabilities are between 0 and 1 (logits are not "
                "taken)"
            )
        return values

    def close(self) -> None:
        """Close the file."""
        self._zip.close()

    def check_end(self) -> None:
        """See that the file ends here and that its checksum is right.

        Raises:
            UserError: otherwise.
        """
        with self._told():
            if self._member.read(1):
                raise ValueError("it goes on after its last value")

    def _same_in_both_orders(self) -> bool:
        return sum(edge > 1 for edge in self.shape) < 2

    def _unpack(self) -> np.ndarray:
        """Values that are stored the other way round, as nnU-Net's are if axes were swapped and there is one channel.

        They go to a temporary file, which is gone when it is no longer used; memory holds what is looked at.
        """
        with tempfile.TemporaryFile() as file, self._told():
            shutil.copyfileobj(self._member, file, 1 << 20)
            file.flush()
            if file.tell() < math.prod(self.shape) * self.dtype.itemsize:
                raise EOFError("it ends too early")
            return np.memmap(file, self.dtype, "r", shape=self.shape, order="F")

    @contextmanager
    def _told(self) -> Iterator[None]:
        """What can be wrong with a file, as an error that names it."""
        try:
            yield
        except FileNotFoundError as error:
            raise UserError(f"{self.path}: there is no such file") from error
        except KeyError as error:
            raise UserError(
                f'{self.path} has no "{_KEY}", which nnUNetv2_predict --save_probabilities writes'
            ) from error
        except (OSError, ValueError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
            raise UserError(f"{self.path} is cut off or damaged ({error}): predict this case again") from error


def _header(member: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(member)
    if version == (1, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(member)
    else:
        shape, fortran, dtype = np.lib.format.read_array_header_2_0(member)
    return tuple(int(edge) for edge in shape), bool(fortran), dtype


@contextmanager
def opened(paths: Sequence[Path]) -> Iterator[list[ProbabilityStream]]:
    """The files of one case, all of the same shape; closed at the end.

    Raises:
        UserError: a file can't be read, or shapes differ.
    """
    streams: list[ProbabilityStream] = []
    try:
        for path in paths:
            streams.append(ProbabilityStream(path))
            if streams[-1].shape != streams[0].shape:
                raise UserError(
                    f"{path} has the shape {streams[-1].shape}, and {streams[0].path} {streams[0].shape} (classes, z, "
                    "y, x): not the same image or labels"
                )
        yield streams
    finally:
        for stream in streams:
            stream.close()


class ProbabilityWriter:
    """Writes CASE.npz, as np.savez_compressed does, piece by piece."""

    def __init__(self, path: Path, shape: Sequence[int]) -> None:
        """Start a file of float32 values (classes, z, y, x)."""
        self._zip = zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED)
        self._member = self._zip.open(f"{_KEY}.npy", "w", force_zip64=True)
        header = {"descr": "<f4", "fortran_order": False, "shape": tuple(shape)}
        np.lib.format.write_array_header_1_0(self._member, header)

    def write(self, values: np.ndarray) -> None:
        """The next values, float32."""
        self._member.write(values.astype("<f4", copy=False).data)

    def close(self) -> None:
        """Finish the file."""
        self._member.close()
        self._zip.close()
