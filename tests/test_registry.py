from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from nnunet_ext import registry
from nnunet_ext.registry import NETWORKS, PLANNERS, TRAINERS, NetworkEntry, PlannerEntry, TrainerEntry

ENTRIES = [*TRAINERS.values(), *PLANNERS.values(), *NETWORKS.values()]


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_each_target_is_a_class_of_that_name(entry: registry.Entry) -> None:
    found = registry.load(entry.target)
    assert isinstance(found, type)
    assert found.__name__ == entry.name
    assert entry.summary


def test_entries_refer_to_each_other() -> None:
    for trainer in TRAINERS.values():
        if trainer.network == registry.STOCK_NETWORK:
            assert trainer.planner == registry.STOCK_PLANNER
        else:
            assert trainer.network in NETWORKS
            assert PLANNERS[trainer.planner].network == trainer.network
        assert set(trainer.dimensions) <= {2, 3}
        flat = [option for group in trainer.options for option in group] + list(trainer.recipes)
        assert len(flat) == len(set(flat)), "a suffix must belong to one place only"


@pytest.mark.parametrize("name", ["a__b", "_a", "a_", "__a__", "a-b", "1a", "", "a b", "SSHUNetTrainer", "SSHUNet"])
def test_names_that_cannot_be_registered(own_registry: None, name: str) -> None:
    with pytest.raises(ValueError, match="can't be registered"):
        registry.register(TrainerEntry(name, "module:Class", network="SSHUNet", planner="SSHUNetPlanner"))


def test_entries_that_cannot_be_registered(own_registry: None) -> None:
    with pytest.raises(ValueError, match="must end with 'Planner'"):
        registry.register(PlannerEntry("Mine", "module:Class", network="SSHUNet"))
    with pytest.raises(ValueError, match="must be 'module:attribute'"):
        registry.register(NetworkEntry("Mine", "module.Class"))


def test_one_can_register_once(own_registry: None) -> None:
    entries: list[registry.Entry] = [
        TrainerEntry("MineTrainer", "module:Class", network="Mine", planner="MinePlanner"),
        PlannerEntry("MinePlanner", "module:Class", network="Mine"),
        NetworkEntry("Mine", "module:Class"),
    ]
    for entry in entries:
        registry.register(entry)
        with pytest.raises(ValueError, match="taken"):
            registry.register(entry)
    assert (TRAINERS["MineTrainer"], PLANNERS["MinePlanner"], NETWORKS["Mine"]) == tuple(entries)


def test_registry_and_names_need_the_standard_library_only() -> None:
    code = f"import sys; sys.path.insert(0, {str(Path(registry.__file__).parents[1])!r})\n"
    code += "import nnunet_ext.registry, nnunet_ext.names, nnunet_ext.lookup, nnunet_ext.cli; print(*sys.modules)"
    command = [sys.executable, "-I", "-S", "-c", code]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    roots = {name.partition(".")[0] for name in out.split()}
    assert roots - set(sys.stdlib_module_names) == {"nnunet_ext", "__main__"}
