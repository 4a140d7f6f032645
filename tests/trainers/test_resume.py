"""A training that is interrupted and resumed goes on as if nothing had happened."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import support
from resuming import KeyedBatches, assert_same_state, interrupted

from nnunet_ext.trainers.base import BaseTrainer
from nnunet_ext.trainers.options import variant_attributes

Plans = Callable[[str], dict[str, Any]]
ITERATIONS = 3


class KeyedTrainer(KeyedBatches, BaseTrainer):
    """Trains on keyed batches."""


@pytest.mark.parametrize(
    ("base", "suffixes"), [(KeyedTrainer, ("Seed1",)), (KeyedTrainer, ("AdamW", "Seed1")), (BaseTrainer, ("Seed1",))]
)
def test_resumed_equals_uninterrupted(
    workspace: support.Workspace, planned: Plans, tmp_path: Path, base: type, suffixes: tuple[str, ...]
) -> None:
    attributes = variant_attributes(base, (*suffixes, f"{ITERATIONS}its", "3epochs"))
    trainer_class = type("Resumed", (base,), attributes)
    plans = planned("plain")
    with workspace.environment(tmp_path / "whole"):
        whole = support.build_trainer(trainer_class, workspace, plans)
        whole.run_training()
    with workspace.environment(tmp_path / "parts"):
        parts = interrupted(workspace, plans, trainer_class)
    for key in ("train_losses", "val_losses", "lrs"):
        assert parts.logger.get_value(key, step=None) == whole.logger.get_value(key, step=None)
        assert len(parts.logger.get_value(key, step=None)) == 3
    assert_same_state(whole, parts)
