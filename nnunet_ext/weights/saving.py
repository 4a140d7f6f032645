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
    """Write beside `output` and rename.

    Raises:
        UserError: it cannot be written; an earlier file is as it was.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    unfinished = output.with_name(f".{output.name}.{uuid.uuid4().hex[:8]}")
    try:
        torch.save(dict(content), unfinished)
        os.replace(unfinished, output)
    except (OSError, RuntimeError) as error:  # torch says so when a disk is full
        raise UserError(f"cannot write {output}: {str(error).splitlines()[0]}") from error
    finally:
        unfinished.unlink(missing_ok=True)
