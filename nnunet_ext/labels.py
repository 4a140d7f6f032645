"""What a dataset.json says of its labels. No torch here: planners and command-line verbs read it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def has_regions(dataset_json: Mapping[str, Any]) -> bool:
    """Whether nnU-Net trains on regions: some label is a list of several values."""
    return any(isinstance(values, list | tuple) and len(values) > 1 for values in dataset_json["labels"].values())
