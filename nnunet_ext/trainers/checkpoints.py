"""Checkpoint files that are either whole or not there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

_MEBIBYTE = 2**20


def write_atomically(path: str | os.PathLike[str], write: Callable[[str], None], advice: str) -> None:
    """Let ``write`` make a temporary file beside ``path``, then put it in the place of ``path`` in one step.

    Whatever goes wrong, a file that was at ``path`` before stays as it was, and no temporary file is left.

    Args:
        path: the file to write.
        write: called with the temporary file's name; it may write nothing (then nothing is changed).
        advice: a sentence for the error text: what the user should do.

    Raises:
        RuntimeError: the file could not be written; names the file, the free space and ``advice``.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        write(str(temporary))
        if temporary.exists():
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary, target)
    except (OSError, RuntimeError) as error:  # torch's zip writer reports a full disk as a RuntimeError
        raise RuntimeError(_failure(target, error, advice)) from error
    finally:
        temporary.unlink(missing_ok=True)


def _failure(target: Path, error: Exception, advice: str) -> str:
    """The sentences that say what was not written, where, why, and what to do."""
    try:
        free = f"{shutil.disk_usage(target.parent).free / _MEBIBYTE:.0f} MiB are free there"
    except OSError:
        free = "the free space there is unknown"
    if target.exists():
        kept = f"the earlier file of that name ({target.stat().st_size / _MEBIBYTE:.0f} MiB) is unchanged"
    else:
        kept = "nothing was written"
    return f"Could not write {target}: {error}. {free}; {kept}. {advice}"
