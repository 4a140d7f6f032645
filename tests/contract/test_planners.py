"""Every registered planner, with its presets, recipes and a width: found, plans for all kinds of images, trainable."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nnunetv2
import pytest
import support
import torch
from contract.models import Planned
from contract.network_checks import NetworkCase
from contract.registered import CONFIGURATIONS, NETWORKS, PLANNERS, configurations, planner_names
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.find_class_by_name import recursive_find_python_class
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_ext import lookup, names
from nnunet_ext.planners.base import BasePlanner
from nnunet_ext.registry import NetworkEntry

Plan = Callable[..., dict[str, Any]]
Make = Callable[..., str]

NAMES = [name for entry in PLANNERS.values() for name in planner_names(entry)]
FINGERPRINTS = ("isotropic", "anisotropic", "2d", "channels", "small")
STOCK = "dynamic_network_architectures."
ESTIMATES: dict[Any, int] = {}


def network_of(name: str) -> NetworkEntry:
    """What a planner plans for: a network that names it, or its entry's."""
    own = next((network for network in NETWORKS.values() if network.planner == name), None)
    return own or next(NETWORKS[e.network] for e in PLANNERS.values() if name.startswith(e.name))


@pytest.fixture(autouse=True)
def _shared_estimates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each network is measured once."""
    measure = BasePlanner.static_estimate_VRAM_usage

    def estimate(*arguments: Any) -> int:
        if (key := repr(arguments)) not in ESTIMATES:
            ESTIMATES[key] = measure(*arguments)
        return ESTIMATES[key]

    monkeypatch.setattr(BasePlanner, "static_estimate_VRAM_usage", staticmethod(estimate))


@pytest.mark.parametrize("name", NAMES)
def test_nnunet_finds_it(name: str) -> None:
    folder = str(Path(nnunetv2.__path__[0]) / "experiment_planning")
    expected: Any = lookup.find("planner", name)
    assert recursive_find_python_class(folder, name, current_module="nnunetv2.experiment_planning") is expected
    assert expected.__name__ == name
    assert issubclass(expected, ExperimentPlanner)


def test_default_plans_names_differ(make_dataset: Make) -> None:
    dataset = make_dataset("tiny")
    planners: list[Any] = [lookup.find("planner", name) for name in NAMES]
    plans = [planner(dataset).plans_identifier for planner in planners]
    assert len(set(plans)) == len(plans)
    for name in plans:
        assert "__" not in name
        assert not name.startswith("nnUNet"), "nnU-Net's own plans would be overwritten"


@pytest.mark.parametrize("fingerprint", FINGERPRINTS)
@pytest.mark.parametrize("name", [name for entry in PLANNERS.values() for name in planner_names(entry)[-1:]])
def test_plans_for_all_images(name: str, fingerprint: str, make_dataset: Make, plan: Plan) -> None:
    check_plans(name, plan(lookup.find("planner", name), make_dataset(fingerprint)), fingerprint)


@pytest.mark.parametrize("name", [f"{entry.name}_{recipe}" for entry in PLANNERS.values() for recipe in entry.recipes])
@pytest.mark.parametrize("fingerprint", ["anisotropic", "2d", "small"])
def test_recipes_plan_for_all_images(name: str, fingerprint: str, make_dataset: Make, plan: Plan) -> None:
    check_plans(name, plan(lookup.find("planner", name), make_dataset(fingerprint)), fingerprint)


def check_plans(name: str, plans: dict[str, Any], fingerprint: str) -> None:
    """JSON, the planner's network where its dimension is claimed (else nnU-Net's), patches that pass it."""
    assert json.loads(json.dumps(plans)) == plans
    assert plans["experiment_planner_used"] == name
    assert plans["plans_name"] == names.plans_name(name)
    assert "2d" in plans["configurations"]
    assert ("3d_fullres" in plans["configurations"]) == (fingerprint != "2d")
    entry = network_of(name)
    manager = PlansManager(plans)
    for configuration, content in plans["configurations"].items():
        if "patch_size" not in content:
            continue
        patch, architecture = tuple(content["patch_size"]), content["architecture"]
        assert content["batch_size"] >= 2
        if len(patch) not in entry.dimensions:
            assert architecture["network_class_name"].startswith(STOCK)
            continue
        assert architecture["network_class_name"] == entry.target.replace(":", ".")
        with torch.device("meta"):
            network = nnUNetTrainer.build_network_architecture(
                manager, manager.get_configuration(configuration), 1, 3, False
            )
            assert tuple(network(torch.empty(1, 1, *patch)).shape) == (1, 3, *patch)
            getattr(network, "check_patch_size", lambda _: None)(patch)


@pytest.mark.parametrize("name", PLANNERS)
def test_more_memory_gives_larger_patches(name: str, make_dataset: Make, plan: Plan) -> None:
    dataset, planner = make_dataset("small"), lookup.find("planner", name)
    for configuration in configurations(network_of(name)):
        sizes = []
        for target in (0.4, 1, 8):
            content = plan(planner, dataset, gpu_memory_target_in_gb=target)["configurations"][configuration]
            sizes.append((math.prod(content["patch_size"]), content["batch_size"] * math.prod(content["patch_size"])))
        assert [voxels for voxels, _ in sizes] == sorted(voxels for voxels, _ in sizes)
        assert sizes[0] < sizes[-1], "the target changes nothing"


@pytest.mark.parametrize("name", PLANNERS)
def test_an_impossible_target_is_refused(name: str, make_dataset: Make) -> None:
    planner: Any = lookup.find("planner", name)
    with pytest.raises(RuntimeError, match=rf"{name}: no patch fits.*-gpu_memory_target"):
        planner(make_dataset("tiny", shape=(8, 16, 16)), gpu_memory_target_in_gb=1e-6).plan_experiment()


@pytest.mark.parametrize("name", [entry.name for entry in PLANNERS.values() if entry.width])
def test_widths(name: str, make_dataset: Make, plan: Plan) -> None:
    dataset = make_dataset("tiny")
    parameters = []
    for width in (4, 8):
        plans = plan(lookup.find("planner", f"{name}_W{width}"), dataset)
        configuration = CONFIGURATIONS[max(network_of(name).dimensions)]
        content = plans["configurations"][configuration]
        case = NetworkCase(network_of(name), content["architecture"], tuple(content["patch_size"]), None)
        with torch.device("meta"):
            parameters.append(sum(p.numel() for p in case.build().parameters()))
    assert parameters[0] < parameters[1]


@pytest.mark.parametrize(
    "refused", ["{}S", "{}_W0", "{}_W08", "{}_Nonsense", "{}_W8_W9"], ids=["preset", "zero", "leading", "word", "twice"]
)
@pytest.mark.parametrize("name", PLANNERS)
def test_what_is_not_in_the_grammar_is_refused(name: str, refused: str) -> None:
    with pytest.raises(names.UnknownNameError, match=name):
        lookup.find("planner", refused.format(name))
    entry = PLANNERS[name]
    for preset in {"M", "L", "XL"} - set(entry.presets):
        with pytest.raises(names.UnknownNameError, match=name):
            lookup.find("planner", name + preset)
    if not entry.width:
        with pytest.raises(names.UnknownNameError, match=name):
            lookup.find("planner", f"{name}_W8")


@pytest.mark.parametrize(
    ("name", "configuration"),
    [(name, c) for name, entry in PLANNERS.items() for c in configurations(NETWORKS[entry.network])],
)
def test_the_stock_trainer_trains_a_step(
    name: str, configuration: str, planned: Planned, workspace: support.Workspace
) -> None:
    plans = planned(name, "plain")
    plans["continue_training"] = False
    trainer = support.build_trainer(nnUNetTrainer, workspace, plans, configuration)
    trainer.initialize()
    entry = NETWORKS[PLANNERS[name].network]
    assert f"{type(trainer.network).__module__}:{type(trainer.network).__name__}" == entry.target
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    before = [p.detach().clone() for p in trainer.network.parameters()]
    loss = trainer.train_step(next(trainer.dataloader_train))["loss"]
    assert math.isfinite(loss)
    after: Sequence[Any] = list(trainer.network.parameters())
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
