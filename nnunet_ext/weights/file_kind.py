"""Which kind of file something is, from its first bytes."""

from __future__ import annotations

import itertools
import pickletools
from pathlib import Path

_ZIP = b"PK\x03\x04"
_PICKLE = b"\x80"
_OLD_TORCH = b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"
"""The number that torch wrote before everything else until version 1.5."""


def file_kind(path: Path) -> str:
    """Return "torch" (a file of `torch.save`, or another zip), "pickle" (a bare Python pickle) or "other"."""
    with path.open("rb") as file:
        start = file.read(256)
    if start.startswith(_ZIP) or _OLD_TORCH in start[:16]:
        return "torch"
    is_pickle = start.startswith(_PICKLE) and len(start) > 2
    return "pickle" if is_pickle or _starts_old_pickle(start) else "other"


def _starts_old_pickle(start: bytes) -> bool:
    """Whether the bytes begin with three instructions of a pickle, or a whole one: protocols 0 and 1 have no marker."""
    try:
        instructions = list(itertools.islice(pickletools.genops(start), 3))
    except ValueError:
        return False
    return len(instructions) == 3 or instructions[-1][0].name == "STOP"
