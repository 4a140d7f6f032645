"""Plans, trainers and trained models of registered names on tiny data, each made once a session."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import support
from contract.network_checks import NetworkCase
from contract.registered import CONFIGURATIONS, NETWORKS, TRAINERS, planner_entry, small_planner
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_ext import lookup
from nnunet_ext.names import parse_trainer
from nnunet_ext.registry import STOCK_PLANNER, NetworkEntry, TrainerEntry

SHORT = "_2its_1epochs"


def trainer_named(name: str) -> Any:
    """The trainer class; nnU-Net's own where that is asked for."""
    return nnUNetTrainer if name == "nnUNetTrainer" else lookup.find("trainer", name)


def entry_of(name: str) -> TrainerEntry:
    """The registry's entry of a trainer's name with suffixes."""
    parsed = parse_trainer(name)
    assert parsed is not None, f"{name} is not registered"
    return parsed.entry


class Planned:
    """Callable: the plans of a planner (narrow, where it has widths) for a kind of data, all of it preprocessed."""

    def __init__(self, workspace: support.Workspace) -> None:
        self.workspace = workspace
        self._made: dict[tuple[str, str], dict[str, Any]] = {}

    def __call__(self, planner: str, kind: str) -> dict[str, Any]:
        if (planner, kind) not in self._made:
            dimensions: tuple[int, ...]
            if planner == STOCK_PLANNER:
                plans, dimensions = self.workspace.plan(kind), (2, 3)
            else:
                small: Any = lookup.find("planner", small_planner(planner))
                entry = planner_entry(planner)
                plans = self.workspace.plan(kind, small, thin=not entry.width)
                dimensions = NETWORKS[entry.network].dimensions
            for dimension in dimensions:
                with self.workspace.environment():
                    self.workspace.preprocess(plans, CONFIGURATIONS[dimension])
            self._made[planner, kind] = plans
        return deepcopy(self._made[planner, kind])

    def of(self, trainer: str, kind: str) -> dict[str, Any]:
        """The plans of a trainer's planner; of its network's own, where a recipe trains another network."""
        target = str(getattr(trainer_named(trainer), "network_class", None))
        own = next((n.planner for n in NETWORKS.values() if n.planner and n.target.replace(":", ".") == target), None)
        return self(own or entry_of(trainer).planner, kind)

    def trainer(self, name: str, kind: str, configuration: str = "3d_fullres", **attributes: Any) -> Any:
        """A trainer on its planner's plans, not yet initialised."""
        plans = self.of(name, kind)
        return support.build_trainer(trainer_named(name), self.workspace, plans, configuration, **attributes)

    def network(self, entry: NetworkEntry, planner: str, trainer: str, kind: str, configuration: str) -> NetworkCase:
        """A network as a trainer has it in the plans of a planner."""
        plans = self(planner, kind)
        plans["continue_training"] = False
        made = support.build_trainer(trainer_named(trainer), self.workspace, plans, configuration)
        manager = made.configuration_manager
        return NetworkCase(
            entry, manager.configuration["architecture"], tuple(manager.patch_size), made._get_deep_supervision_scales()
        )


class Trained:
    """Callable: a trainer after one epoch of two iterations and its validation; results are in the workspace."""

    def __init__(self, workspace: support.Workspace, planned: Planned) -> None:
        self.workspace, self.planned = workspace, planned
        self._made: dict[tuple[str, str, str], Any] = {}

    def __call__(self, name: str, kind: str = "plain", configuration: str = "3d_fullres") -> Any:
        key = (name, kind, configuration)
        if key not in self._made:
            with self.workspace.environment():
                trainer = self.planned.trainer(f"{name}{SHORT}", kind, configuration)
                if kind == "plain" and name in TRAINERS:
                    del trainer.logger.plot_progress_png  # the real one: exporting a model asks for progress.png
                trainer.run_training()
                trainer.perform_actual_validation()
            self._made[key] = trainer
        return self._made[key]
