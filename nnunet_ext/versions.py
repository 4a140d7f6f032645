"""Which nnunetv2 this package is tested with, and the sentence for any other."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, version

from nnunet_ext.errors import UnsupportedNnunetError

TESTED = ((2, 8, 1), (2, 9, 0))
"""First tested version of nnunetv2, and the first that is not tested any more; also stated in pyproject.toml."""

WANTED = f"nnunetv2>={'.'.join(map(str, TESTED[0]))},<{TESTED[1][0]}.{TESTED[1][1]}"
"""The tested range as pip takes it."""


def installed_nnunet() -> str | None:
    """Version of the installed nnunetv2 by its metadata; None where there is none, as for a folder on PYTHONPATH."""
    try:
        return version("nnunetv2")
    except PackageNotFoundError:
        return None


def problem(nnunet_version: str | None) -> str | None:
    """One sentence if this version is outside the tested range, else None; an unknown version is taken as it is."""
    number = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", nnunet_version or "")
    if number is None or TESTED[0] <= tuple(int(n or 0) for n in number.groups()) < TESTED[1]:
        return None
    from nnunet_ext import __version__

    return (
        f"nnunet_ext {__version__} is made for {WANTED}, but nnunetv2 {nnunet_version} is installed: "
        f"install a tested one with pip install '{WANTED}', or look for a newer nnunet-ext."
    )


def require_tested_nnunet() -> None:
    """Raise UnsupportedNnunetError, with one sentence, where the installed nnunetv2 is outside the tested range."""
    sentence = problem(installed_nnunet())
    if sentence is not None:
        raise UnsupportedNnunetError(sentence)
