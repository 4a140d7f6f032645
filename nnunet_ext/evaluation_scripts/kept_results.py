"""Results of cases, kept between runs: one line a case, written as soon as it is computed."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nnunet_ext.evaluation_scripts.results import CaseResult


class KeptResults:
    """The file, and what is in it."""

    def __init__(self, path: Path | None) -> None:
        """Read it.

        Args:
            path: JSON lines; need not exist. None: nothing is kept.
        """
        self._path = path
        self._known: dict[str, dict[str, Any]] = {}
        self._cut_off = False
        if path is not None and path.is_file():
            text = path.read_text(encoding="utf-8", errors="replace")
            self._cut_off = bool(text) and not text.endswith("\n")  # a run was killed as it wrote
            for line in text.splitlines():
                self._take(line)

    def _take(self, line: str) -> None:
        try:
            content = json.loads(line)
            result = content["result"]
            self._known[content["key"]] = {**result, "notices": tuple(result["notices"])}
        except (ValueError, KeyError, TypeError):
            return

    def get(self, key: str) -> CaseResult | None:
        """The result of a key; None: it is not known."""
        try:
            return CaseResult(**self._known[key])
        except (KeyError, TypeError):  # of another version
            return None

    def keep(self, key: str, result: CaseResult) -> None:
        """Add a result."""
        if self._path is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as lines:
            start = "\n" if self._cut_off else ""
            lines.write(start + json.dumps({"key": key, "result": asdict(result)}) + "\n")
        self._cut_off = False
