"""The suite itself: it finds mistakes, takes other packages' names, and every name of ours stands in the documents."""

from __future__ import annotations

import dataclasses
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import support
from contract import mutants, network_checks, registered, toy_plugin, trainer_checks
from contract.models import Planned, trainer_named
from contract.network_checks import NetworkCase
from contract.registered import ALL, OWN, PLUGINS, TOY, VARIABLE, is_ours, planner_names

from nnunet_ext import lookup, names, registry

CASCADE = "3d_cascade_fullres"
ROOT = Path(__file__).parents[2]
NETWORK_MUTANTS = {
    "Supervised": "check_constructor",
    "Keywords": "check_constructor",
    "OneHead": "check_strict_load",
    "OtherHeadName": "check_head_names",
    "HeadNameOfTrunk": "check_head_names",
    "Twice": "check_registered_once",
    "Softmax": "check_single_sample",
    "Cached": "check_output_owns_memory",
    "RandomAtInference": "check_deterministic",
    "BatchStatistics": "check_deterministic",
    "LowestFirst": "check_deep_supervision",
    "OneOutputLess": "check_deep_supervision",
    "FixedSwitch": "check_deep_supervision",
    "NeedsWeights": "check_meta_device",
    "UnusedParameter": "check_gradients",
    "AnyPatch": "check_impossible_patches",
    "CountsConvolutions": "check_memory",
    "ConstantCount": "check_memory",
}
TRAINER_MUTANTS = {
    "ExtraArgument": "check_constructor",
    "BoundBuild": "check_build_network",
    "OldBuild": "check_build_network",
}


@pytest.fixture
def toy_case(planned: Planned, monkeypatch: pytest.MonkeyPatch) -> NetworkCase:
    """The toy's network, whichever plug-ins the suite runs with."""
    entry = registry.NetworkEntry("ToyUNet", f"{toy_plugin.__name__}:ToyUNet")
    block = {
        "network_class_name": f"{toy_plugin.__name__}.ToyUNet",
        "arch_kwargs": {
            "features_per_stage": [4, 8, 16],
            "strides": [[1, 1, 1], [2, 2, 2], [1, 2, 2]],
            "conv_op": "torch.nn.Conv3d",
        },
        "_kw_requires_import": ["conv_op"],
    }
    return NetworkCase(entry, block, (16, 24, 32), [[1, 1, 1], [0.5, 0.5, 0.5]])


def with_network(case: NetworkCase, name: str) -> NetworkCase:
    """The case with another class of ``mutants.py``, which is registered under that name."""
    return dataclasses.replace(
        case,
        entry=registry.NetworkEntry(name, f"{mutants.__name__}:{name}"),
        architecture={**case.architecture, "network_class_name": f"{mutants.__name__}.{name}"},
    )


@pytest.mark.parametrize(("mutant", "check"), NETWORK_MUTANTS.items())
def test_it_finds_a_networks_mistake(mutant: str, check: str, toy_case: NetworkCase) -> None:
    getattr(network_checks, check)(toy_case)
    with pytest.raises((AssertionError, RuntimeError)):
        getattr(network_checks, check)(with_network(toy_case, mutant))


def test_every_check_of_networks_finds_something(toy_case: NetworkCase) -> None:
    easy = {"check_dotted_name", "check_json", "check_other_dimensions"}
    assert {check.__name__ for check in network_checks.CHECKS} == set(NETWORK_MUTANTS.values()) | easy
    misnamed = dataclasses.replace(toy_case, entry=with_network(toy_case, "AnyPatch").entry)
    with pytest.raises(AssertionError):
        network_checks.check_dotted_name(misnamed)
    block = {**toy_case.architecture, "arch_kwargs": {**toy_case.arguments, "strides": ((1, 1, 1),)}}
    with pytest.raises(AssertionError):  # tuples come back as lists
        network_checks.check_json(dataclasses.replace(toy_case, architecture=block))
    claims_less = dataclasses.replace(toy_case, entry=dataclasses.replace(toy_case.entry, dimensions=(3,)))
    with pytest.raises(pytest.fail.Exception):  # it takes images although it claims volumes only
        network_checks.check_other_dimensions(claims_less)


@pytest.mark.parametrize(("mutant", "check"), TRAINER_MUTANTS.items())
def test_it_finds_a_trainers_mistake(mutant: str, check: str) -> None:
    getattr(trainer_checks, check)(toy_plugin.ToyTrainer)
    with pytest.raises(AssertionError):
        getattr(trainer_checks, check)(getattr(mutants, mutant))


def test_a_local_class_is_no_trainer() -> None:
    class Local(toy_plugin.ToyTrainer):
        pass

    for check in (trainer_checks.check_name, trainer_checks.check_pickle):
        with pytest.raises((AssertionError, RuntimeError)):
            check(Local)


@pytest.mark.usefixtures("own_registry")
def test_a_trainer_refuses_what_its_entry_does_not_claim(planned: Planned, workspace: support.Workspace) -> None:
    plans = support.with_cascade(planned(next(iter(OWN[1])), "plain"))
    for dimensions, cascade, configuration in (((3,), True, "2d"), ((2,), True, "3d_fullres"), ((3,), False, CASCADE)):
        registry.TRAINERS["LesserTrainer"] = registry.TrainerEntry(
            "LesserTrainer", f"{mutants.__name__}:LesserTrainer", "", "", dimensions=dimensions, cascade=cascade
        )
        for trainer in (mutants.LesserTrainer, type("Mine", (mutants.LesserTrainer,), {})):
            with pytest.raises(NotImplementedError, match=rf"LesserTrainer .*'{configuration}'.*nnUNetTrainer"):
                support.build_trainer(trainer, workspace, plans, configuration)
    support.build_trainer(mutants.LesserTrainer, workspace, plans)


# ------------------------------------------------------------------------------------------------------- other packages


def test_plug_ins_are_registered_during_the_suite_only() -> None:
    assert (registry.TRAINERS, registry.PLANNERS, registry.NETWORKS) == ALL
    assert all(set(OWN[i]) <= set(ALL[i]) for i in range(3))
    if PLUGINS == [TOY]:
        assert set(registry.TRAINERS) - set(OWN[0]) == {"ToyTrainer"}
        assert lookup.find("trainer", "ToyTrainer") is toy_plugin.ToyTrainer


def test_modules_that_register_nothing_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(pytest.UsageError, match=f"{VARIABLE}: json registers nothing"):
        registered._with_plugins(["json"])


def test_the_variable_selects_the_modules(tmp_path: Path) -> None:
    """A copy of the toy under another name, as somebody else's package, is collected and passes (its class checks)."""
    text = Path(toy_plugin.__file__).read_text()
    (tmp_path / "somebodys_networks.py").write_text(text.replace("Toy", "Theirs"))
    environment = {**os.environ, VARIABLE: "somebodys_networks", "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "Theirs and test_class"]
    command += [str(ROOT / "tests" / "contract" / "test_trainers.py")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert re.search(r"^\d+ passed", done.stdout, re.MULTILINE)
    assert "ToyTrainer" not in done.stdout


# ----------------------------------------------------------------------------------------------- registry and documents


def page_of(entry: registry.TrainerEntry) -> str:
    """The method's page in docs/: its trainer's module."""
    module = entry.target.partition(":")[0].rpartition(".")[2]
    return (ROOT / "docs" / f"{module}.md").read_text()


@pytest.mark.parametrize("base", OWN[0])
def test_a_method_stands_in_readme_and_on_its_page(base: str) -> None:
    entry = OWN[0][base]
    planner = OWN[1].get(entry.planner)
    options = [option for group in entry.options for option in group]
    words = [base, entry.planner, entry.network, *options, *entry.recipes, *(planner.recipes if planner else ())]
    for document in ((ROOT / "README.md").read_text(), page_of(entry)):
        missing = [word for word in words if not re.search(rf"(?<![A-Za-z0-9]){word}(?![a-z0-9])", document)]
        assert not missing, f"not in the document: {missing}"


def test_readme_explains_what_all_names_share() -> None:
    readme = (ROOT / "README.md").read_text()
    entry = registry.TrainerEntry("XTrainer", "x:X", network="X", planner="XPlanner")
    common = [choice for group in names.trainer_suffixes(entry) for choice in group.split("|")]
    assert common == ["AdamW", "FineTune", "NoMirroring", "Seed<n>", "<n>its", "<n>epochs"]
    missing = [suffix for suffix in (*common, "W<n>") if f"_{suffix}" not in readme]
    assert not missing
    for preset in {preset for planner in OWN[1].values() for preset in planner.presets}:
        assert re.search(rf"(?<![A-Za-z]){preset}(?![A-Za-z])", readme), f"preset {preset}"


def test_registry_and_shim_agree() -> None:
    shim = importlib.import_module("nnunet_ext._discovery.nnunet_ext_trainers")
    assert set(dir(shim)) == set(registry.TRAINERS)
    for name in registry.TRAINERS:
        assert getattr(shim, name) is trainer_named(name)
        assert getattr(shim, f"{name}_Seed1") is trainer_named(f"{name}_Seed1")


def test_registry_is_complete_and_its_targets_exist() -> None:
    for trainer in registry.TRAINERS.values():
        if (trainer.planner, trainer.network) != (registry.STOCK_PLANNER, registry.STOCK_NETWORK):
            assert trainer.network in registry.NETWORKS
            assert registry.PLANNERS[trainer.planner].network == trainer.network
    entries: list[Any] = [
        *registry.TRAINERS.values(),
        *registry.PLANNERS.values(),
        *registry.NETWORKS.values(),
    ]
    for entry in entries:
        assert registry.load(entry.target).__name__ == entry.name
        assert entry.summary or not is_ours(entry), f"{entry.name} has no summary for `nnunet-ext list`"
    for planner in registry.PLANNERS.values():
        for name in planner_names(planner):
            assert lookup.find("planner", name) is not None


def test_the_documented_network_is_the_tested_one() -> None:
    """docs/extending.md quotes toy_plugin.py: everything but its first docstring."""
    text = Path(toy_plugin.__file__).read_text()
    code = text[text.index("from __future__") :].rstrip()
    document = (ROOT / "docs" / "extending.md").read_text()
    blocks = re.findall(r"```python\n# toy_plugin\.py\n(.*?)```", document, re.DOTALL)
    assert [block.strip() for block in blocks] == [code]
