"""Files that are whole or as they were."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

from nnunet_ext.errors import UserError


def write_whole(path: Path, content: bytes | str) -> None:
    """Write beside `path` and rename; its folder is made.

    Args:
        path: the file.
        content: text is written as UTF-8 with its line ends as they are.

    Raises:
        UserError: it cannot be written.
    """
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(unfinished, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if unfinished.parent.is_dir():
            unfinished.unlink(missing_ok=True)
