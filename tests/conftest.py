"""For all tests: nnU-Net's variables as on a fresh machine, one thread, and tables that no test leaves changed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from nnunet_ext import registry

# Here and not in a hook: conftest files of sub-folders import torch before the first hook is called.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
for _variable in (
    "nnUNet_raw",
    "nnUNet_preprocessed",
    "nnUNet_results",
    "nnUNet_extTrainer",
    "NNUNET_EXT_DISABLE_STARTUP",
):
    os.environ.pop(_variable, None)


SLOWEST_FIRST = (
    *("e2e", "test_trained", "test_trainers", "test_networks", "test_planners", "test_demo", "test_round_trip"),
    "test_container",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that with two workers none of them is left for the end."""

    def place(item: pytest.Item) -> int:
        parts = (*item.path.parent.parts, item.path.stem)
        return next((i for i, name in enumerate(SLOWEST_FIRST) if name in parts), len(SLOWEST_FIRST))

    items.sort(key=place)


@pytest.fixture
def own_registry() -> Iterator[None]:
    """Entries that the test registers are gone afterwards."""
    tables: list[dict[str, Any]] = [registry.TRAINERS, registry.PLANNERS, registry.NETWORKS]
    before = [dict(table) for table in tables]
    yield
    for table, content in zip(tables, before, strict=True):
        table.clear()
        table.update(content)
