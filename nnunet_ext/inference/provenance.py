"""Where predictions come from: whether nnUNetv2_predict made them, also by way of ensembles and post-processing."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

ENSEMBLE, POSTPROCESSED = "ensemble.json", "postprocess.json"
"""Records of how a folder was made, in it."""
PREDICTED = "predicted"
"""In a record: whether nnUNetv2_predict made what went in; tells it also where those folders are gone."""
_ARGUMENTS = "predict_from_raw_data_args.json"  # nnUNetv2_predict leaves it


def predicted_from(folders: Iterable[Path]) -> Path | None:
    """The first folder known to be of nnUNetv2_predict: one of these, or one that they were made from.

    Folders that are gone are passed over, as are records that can't be read.
    """
    return next((place for place in _and_sources(folders) if _is_predicted(place)), None)


def origin(folders: Iterable[Path]) -> dict[str, bool]:
    """What a record says of the folders that it is made from."""
    return {PREDICTED: predicted_from(folders) is not None}


def _is_predicted(folder: Path) -> bool:
    return (folder / _ARGUMENTS).is_file() or any(record.get(PREDICTED) is True for record in _records(folder))


def _and_sources(folders: Iterable[Path]) -> Iterator[Path]:
    """These folders and those that they were made from, each once, nearest first."""
    seen: set[Path] = set()
    left = list(folders)
    while left:
        place = left.pop(0)
        if place.resolve() in seen:
            continue
        seen.add(place.resolve())
        yield place
        for record in _records(place):
            several = record.get("folders")
            sources = [record.get("folder"), *(several if isinstance(several, list) else [])]
            left += [Path(source) for source in sources if isinstance(source, str)]


def _records(folder: Path) -> Iterator[dict[str, Any]]:
    for name in (ENSEMBLE, POSTPROCESSED):
        try:
            content = json.loads((folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(content, dict):
            yield content
