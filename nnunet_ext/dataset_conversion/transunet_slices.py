"""TransUNet's copy of Synapse: slices for training (.npz) and volumes for the test (.npy.h5), put together to volumes.

Its intensities are clipped to -125 to 275 HU and scaled to 0 to 1, its spacings are lost, and it holds 8 organs. It is
for those who have no access to BTCV itself.
"""

from __future__ import annotations

import importlib
import io
import json
import zipfile
import zlib
from dataclasses import dataclass
from functools import lru_cache
from typing import IO, Any

import nibabel
import numpy as np

from nnunet_ext.dataset_conversion.cases import SPLIT_FILES, Case, Fault
from nnunet_ext.dataset_conversion.one_channel import one_channel_cases
from nnunet_ext.dataset_conversion.sources import Download, SourceFile
from nnunet_ext.errors import UserError

LOOKS_LIKE = "train_npz/case0005_slice000.npz ... and test_vol_h5/case0001.npy.h5 ..., of TransUNet's data for Synapse."
_SLICE = r"case(?P<number>\d{4})_slice(?P<slice>\d+)\.npz"
_VOLUME = r"case(?P<number>\d{4})\.npy\.h5"
_HEADER = 352
_UNREADABLE = (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class Stack(SourceFile):
    """A volume that is read as though it were an uncompressed NIfTI file, of float32.

    Attributes:
        key: "image" or "label".
        parts: one .npz a slice, in order; or a single .h5 of all slices.
    """

    key: str = "image"
    parts: tuple[SourceFile, ...] = ()

    def open(self) -> IO[bytes]:
        """The NIfTI file, with unit spacing.

        Raises:
            UserError: a slice can't be read or has another shape than the first.
        """
        return io.BytesIO(_nifti(self))


def find_slices(download: Download) -> tuple[tuple[Case, ...], tuple[Fault, ...]]:
    """Find the cases; their ids are BTCV's, so that its published splits fit.

    Raises:
        UserError: there are volumes but no h5py to read them.
    """
    slices: dict[str, list[tuple[int, SourceFile]]] = {}
    for file, match in download.matching(_SLICE):
        slices.setdefault(f"img{match['number']}", []).append((int(match["slice"]), file))
    volumes = [(f"img{match['number']}", file) for file, match in download.matching(_VOLUME)]
    if volumes:
        _h5py()
    faults = {case: Fault(case, reason) for case, numbered in slices.items() if (reason := _incomplete(case, numbered))}
    parts = [(case, tuple(file for _, file in sorted(numbered, key=_first))) for case, numbered in slices.items()]
    claims: dict[str, list[tuple[str, SourceFile]]] = {"image": [], "label": []}
    for case, files in (*parts, *((case, (file,)) for case, file in volumes)):
        if case in faults:
            continue
        try:
            shape = _read(files[0], "image").shape
        except UserError as error:
            faults[case] = Fault(case, str(error))
            continue
        for key, made in claims.items():
            made.append((case, _stack(case, files, key, shape)))
    cases, more = one_channel_cases(
        claims["image"],
        claims["label"],
        part_of=lambda case: "training",
        label_name=str,
        details=lambda case: {"number": int(case.removeprefix("img"))},
    )
    return cases, (*faults.values(), *more)


def _first(pair: tuple[int, SourceFile]) -> int:
    return pair[0]


@lru_cache
def _published_counts() -> dict[str, int]:
    content = json.loads((SPLIT_FILES / "synapse_transunet.json").read_text())
    counts: dict[str, int] = content["transunet_train_slices_per_case"]
    return counts


def _incomplete(case: str, numbered: list[tuple[int, SourceFile]]) -> str | None:
    """What is wrong with the numbers of a case's slices."""
    expected = _published_counts().get(case, len(numbered))
    numbers = {number for number, _ in numbered}
    missing = sorted(set(range(expected)) - numbers)
    if missing:
        return (
            f"{len(missing)} of its {expected} slices are missing (number {missing[0]:03d}, beside "
            f"{numbered[0][1].where}): the download is incomplete."
        )
    if len(numbered) != expected:
        return f"{len(numbered)} slices, but TransUNet's list has {expected}: two copies in one download?"
    return None


def _stack(case: str, files: tuple[SourceFile, ...], key: str, shape: tuple[int, ...]) -> Stack:
    voxels = int(np.prod(shape)) * (len(files) if len(shape) == 2 else 1)
    first = files[0]
    return Stack(
        name=f"{first.name} ({key})",
        container=first.container,
        member=f"{first.member or first.base}: {key} of {len(files)} file{'s' if len(files) > 1 else ''}",
        size=_HEADER + 4 * voxels,
        mtime_ns=max(file.mtime_ns for file in files),
        key=key,
        parts=files,
    )


@lru_cache(maxsize=2)
def _nifti(stack: Stack) -> bytes:
    """The file's bytes. Image and label of one case are kept: headers, voxels and checksums are read one by one."""
    arrays = [_read(part, stack.key) for part in stack.parts]
    if arrays[0].ndim == 3:  # (slice, x, y)
        array = arrays[0].transpose(1, 2, 0)
    else:
        shapes = [one.shape for one in arrays]
        odd = next((part for part, one in zip(stack.parts, shapes, strict=True) if one != shapes[0]), None)
        if odd is not None:
            raise UserError(f"{odd.where}: its shape is not {shapes[0]}, that of the first slice.")
        array = np.stack(arrays, axis=-1)
    image = nibabel.Nifti1Image(array.astype(np.float32), np.eye(4))
    image.header.set_xyzt_units("mm")
    content: bytes = image.to_bytes()
    return content


def _read(file: SourceFile, key: str) -> np.ndarray:
    """One array of a file: (x, y) of a slice, (slice, x, y) of a volume.

    Raises:
        UserError: it can't be read, or has no such array.
    """
    try:
        with file.open() as stream:
            if file.base.lower().endswith(".npz"):
                with np.load(stream, allow_pickle=False) as arrays:
                    array = np.asarray(arrays[key])
                wanted = 2
            else:
                with _h5py().File(stream, "r") as content:
                    array = np.asarray(content[key])
                wanted = 3
    except _UNREADABLE as error:
        raise UserError(f"{file.where}: no {key!r} can be read ({error}): download it again.") from error
    if array.ndim != wanted:
        raise UserError(f"{file.where}: {key!r} has {array.ndim} axes, shape {array.shape}; expected {wanted}.")
    return array


def _h5py() -> Any:
    try:
        return importlib.import_module("h5py")
    except ImportError as error:
        raise UserError(
            "TransUNet's test volumes (.npy.h5) are HDF5 files, which need h5py: pip install h5py. Or take the "
            "train_npz folder alone."
        ) from error
