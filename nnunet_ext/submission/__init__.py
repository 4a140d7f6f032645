"""From predictions to what a challenge's server takes, exactly; and checking what was made elsewhere.

``submit`` writes a submission, ``check`` examines a folder or zip, ``write_container`` wraps a trained model. Nothing
heavy is imported before one of them is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nnunet_ext.submission.checking import check as check
    from nnunet_ext.submission.container import write_container as write_container
    from nnunet_ext.submission.problems import Problem as Problem
    from nnunet_ext.submission.problems import RefusedError as RefusedError
    from nnunet_ext.submission.submitting import submit as submit

_WHERE = {
    "check": "checking",
    "write_container": "container",
    "Problem": "problems",
    "RefusedError": "problems",
    "submit": "submitting",
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
