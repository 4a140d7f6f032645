"""What was found for one case, kept in a small file until the table is made again in another way."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nnunet_ext.pretraining.cases import Case
from nnunet_ext.whole_files import write_whole

Arrays = dict[str, npt.NDArray[Any]]


def digest(settings: Mapping[str, Any]) -> str:
    """Of JSON values; numbers enter with all digits."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def identity(case: Case) -> list[Any]:
    """JSON values that change when the case is another one, or was preprocessed again."""
    properties = case.folder / f"{case.name}.pkl"
    when = properties.stat().st_mtime_ns if properties.is_file() else 0
    return [case.name, str(case.folder), list(case.sha256), list(case.shape), case.frame.matrix.tolist(), when]


def keep(path: Path, key: str, arrays: Arrays) -> None:
    """Write a record, whole or not at all.

    Args:
        path: .npz.
        key: which work it is of.
        arrays: no objects.

    Raises:
        UserError: it cannot be written.
    """
    buffer = io.BytesIO()
    content: dict[str, Any] = {f"of_{name}": array for name, array in arrays.items()}
    np.savez_compressed(buffer, key=np.array(key), **content)
    write_whole(path, buffer.getvalue())


def kept(path: Path, key: str) -> Arrays | None:
    """The arrays of a record; None where there is none, a damaged one, or one of other work."""
    try:
        with np.load(path, allow_pickle=False) as content:
            if str(content["key"]) != key:
                return None
            return {name[3:]: content[name] for name in content.files if name.startswith("of_")}
    except (OSError, ValueError, KeyError, EOFError, AttributeError, zipfile.BadZipFile):
        return None
