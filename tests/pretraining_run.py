"""Tiny trainings for tests: four images of 24 x 32 x 32, a network of a few thousand weights."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import support
import torch

from nnunet_ext.pretraining.assembling import assemble, choose_settings, plan
from nnunet_ext.pretraining.cases import Case
from nnunet_ext.pretraining.distributed import Processes
from nnunet_ext.pretraining.landmarks import LandmarkTable
from nnunet_ext.pretraining.loop import Pretraining
from nnunet_ext.pretraining.preparing import open_pool

DATASET = "Dataset901_plain"
PATCH = (16, 16, 16)
ALICE: dict[str, Any] = {"width": 16, "hidden": 16, "bottleneck": 8, "prototypes": 16, "heads": 2, "casa_hidden": 16}
ONE = Processes(0, 1, torch.device("cpu"))


@dataclass(frozen=True)
class SmoothCase(Case):
    """A case in memory whose hidden voxels can be told from the others: a wave."""

    def image(self) -> Any:
        """(1, *shape) float32."""
        z, y, x = np.indices(self.shape, np.float32)
        return np.sin((z + y + x + 5 * len(self.name)) / 6)[None]


def training(
    method: str = "mae", steps: int = 20, processes: Processes = ONE, table: LandmarkTable | None = None, **wishes: Any
) -> Pretraining:
    """A training at its first step; nnU-Net's variables must point to a workspace with the data set "plain"."""
    torch.set_num_threads(1)
    pool = open_pool(DATASET, "nnUNetPlans", "3d_fullres", progress=False)
    trainer, seed = wishes.pop("trainer", "nnUNetTrainer"), wishes.get("seed", 0)
    planned = plan(pool, trainer, seed, wishes.pop("patch", PATCH))
    if method == "alice":
        wishes["alice"] = {**ALICE, **wishes.get("alice", {})}
    settings = choose_settings(pool, planned, method, **{"steps": steps, "batch_size": 2, **wishes})
    return assemble(pool, planned, settings, processes, table, warn=lambda _: None)


def weights(trained: Pretraining) -> dict[str, torch.Tensor]:
    """All that a training has made: networks, heads, centres."""
    found: dict[str, torch.Tensor] = {}

    def collect(prefix: str, value: Any) -> None:
        if isinstance(value, torch.Tensor):
            found[prefix] = value.detach().clone()
        elif isinstance(value, dict):
            for key, part in value.items():
                collect(f"{prefix}.{key}", part)

    collect("", trained.objective.state_dict())
    return found


def two_processes(rank: int, folder: str, variables: dict[str, str], wishes: dict[str, dict[str, Any]]) -> None:
    """One of two processes makes three steps of each method; the first leaves what it made in `folder`."""
    os.environ.update(variables)
    with support.one_of_two(rank, folder):
        for method, given in wishes.items():
            trained = training(method, processes=Processes(rank, 2, torch.device("cpu")), **given)
            trained.run(stop_after=3, progress=False)
            if rank == 0:
                torch.save(weights(trained), f"{folder}/{method}.pth")
