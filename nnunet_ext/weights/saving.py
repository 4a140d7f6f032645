"""Write a checkpoint as a whole or not at all."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from nnunet_ext.errors import UserError


def save_atomically(content: Mapping[str, Any], output: Path) -> None:
    """Write beside `output`, wait for the disk, and rename.

    Raises:
        UserError: it cannot be written; an earlier file is as it was.
    """
    unfinished = output.with_name(f".{output.name}.{uuid.uuid4().hex[:8]}")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        torch.save(dict(content), unfinished)
        with unfinished.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(unfinished, output)
    except (OSError, RuntimeError) as error:  # torch says so when a disk is full
        raise UserError(f"cannot write {output}: {str(error).splitlines()[0]}") from error
    finally:
        if unfinished.parent.is_dir():
            unfinished.unlink(missing_ok=True)
