"""The base planner: nnU-Net's plans for nnU-Net's networks, and a search that ends."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.experiment_planning.experiment_planners.residual_unets.residual_encoder_unet_planners import (
    nnUNetPlannerResEncL,
    nnUNetPlannerResEncM,
)

from nnunet_ext import __version__
from nnunet_ext.planners.base import BasePlanner, Topology

Plan = Callable[..., dict[str, Any]]
Make = Callable[..., str]

NAMES = ("plans_name", "experiment_planner_used", "nnunet_ext")
FINGERPRINTS = (
    "isotropic",
    "anisotropic",
    "thin",
    "2d",
    "channels",
    "small",
    "tiny",
    "lowres",
    "coarse_last",
)
ONCE_PER_SIZE = ("isotropic", "anisotropic", "2d", "channels", "tiny", "lowres", "coarse_last")


class PlainPlanner(BasePlanner):
    """nnU-Net's default planner by our loop."""


class ResEncMPlanner(BasePlanner, nnUNetPlannerResEncM):
    """nnU-Net's ResEnc M planner by our loop: its references, our search."""


class ResEncLPlanner(BasePlanner, nnUNetPlannerResEncL):
    default_gpu_memory_gb = 24


class PlainUNet(PlainConvUNet):
    """The same network under another name: measured instead of counted."""


class MeasuredPlanner(BasePlanner):
    """Plans `PlainUNet`."""

    def architecture_block(self, topology: Topology) -> dict[str, Any]:
        block = self.stock_architecture(topology)
        block["network_class_name"] = f"{__name__}.PlainUNet"
        return block


def anonymous(plans: dict[str, Any], name: str) -> dict[str, Any]:
    """Plans without their names."""
    text = json.dumps({key: value for key, value in plans.items() if key not in NAMES})
    return dict(json.loads(text.replace(name, "PLANS")))


@pytest.mark.parametrize("fingerprint", FINGERPRINTS)
def test_plain_networks_get_the_stock_plans(fingerprint: str, make_dataset: Make, plan: Plan) -> None:
    dataset = make_dataset(fingerprint)
    stock = plan(ExperimentPlanner, dataset, plans_name="StockPlans")
    ours = plan(PlainPlanner, dataset, plans_name="OurPlans")
    expected = anonymous(stock, "StockPlans")
    for name in ("2d", "3d_fullres"):  # preprocessed data is shared with the default plans
        if name in expected["configurations"]:
            expected["configurations"][name]["data_identifier"] = f"nnUNetPlans_{name}"
    assert anonymous(ours, "OurPlans") == expected
    assert ("3d_lowres" in ours["configurations"]) == (fingerprint == "lowres")
    assert ("3d_fullres" in ours["configurations"]) == (fingerprint != "2d")


@pytest.mark.parametrize("fingerprint", ONCE_PER_SIZE)
def test_residual_networks_get_the_stock_plans(fingerprint: str, make_dataset: Make, plan: Plan) -> None:
    dataset = make_dataset(fingerprint)
    stock = plan(nnUNetPlannerResEncM, dataset)
    ours = plan(ResEncMPlanner, dataset)
    assert ours["plans_name"] == "ResEncMPlans"
    assert anonymous(ours, "ResEncMPlans") == anonymous(stock, "nnUNetResEncUNetMPlans")


def test_larger_presets_get_the_stock_plans(make_dataset: Make, plan: Plan) -> None:
    dataset = make_dataset("isotropic")
    stock, ours = plan(nnUNetPlannerResEncL, dataset), plan(ResEncLPlanner, dataset)
    assert anonymous(ours, "ResEncLPlans") == anonymous(stock, "nnUNetResEncUNetLPlans")
    target = {"gpu_memory_target_in_gb": 5.5}
    stock, ours = plan(ExperimentPlanner, dataset, **target), plan(PlainPlanner, dataset, **target)
    assert ours["configurations"] == stock["configurations"]


@pytest.mark.parametrize("fingerprint", ["isotropic", "anisotropic", "thin", "2d", "small"])
def test_measuring_the_plain_network_gives_nnunets_patches(fingerprint: str, make_dataset: Make, plan: Plan) -> None:
    dataset = make_dataset(fingerprint)
    stock, measured = plan(ExperimentPlanner, dataset), plan(MeasuredPlanner, dataset)
    for name, configuration in stock["configurations"].items():
        assert measured["configurations"][name]["patch_size"] == configuration["patch_size"]
        # nnU-Net counts without the outputs of deep supervision, with which it trains
        assert measured["configurations"][name]["batch_size"] == pytest.approx(configuration["batch_size"], rel=0.05)


def test_plans_say_who_made_them_and_keep_it(make_dataset: Make, plan: Plan, nnunet_folders: Path) -> None:
    from nnunetv2.experiment_planning.plans_for_pretraining.move_plans_between_datasets import (
        move_plans_between_datasets,
    )

    dataset, other = make_dataset("small"), make_dataset("tiny")
    plans = plan(PlainPlanner, dataset)
    note = {"version": __version__, "planner": "PlainPlanner", "gpu_memory_target_in_gb": 8.0}
    assert plans["nnunet_ext"] == note
    move_plans_between_datasets(dataset, other, "PlainPlans", "MovedPlans")
    moved = json.loads((nnunet_folders / "nnUNet_preprocessed" / other / "MovedPlans.json").read_text())
    assert moved["nnunet_ext"] == note
    assert {c["data_identifier"] for c in moved["configurations"].values()} == {
        "MovedPlans_nnUNetPlans_2d",
        "MovedPlans_nnUNetPlans_3d_fullres",
    }
    assert dataset not in json.dumps(moved)


def test_preprocessed_data_is_shared_only_if_it_is_the_same(make_dataset: Make, plan: Plan) -> None:
    class WithoutResampling(BasePlanner):
        def determine_resampling(self, *args: Any, **kwargs: Any) -> Any:
            return super().determine_resampling()

    dataset = make_dataset("anisotropic")

    def identifiers(planner: type = PlainPlanner, **kwargs: Any) -> set[str]:
        plans = plan(planner, dataset, plans_name="Mine", **kwargs)
        return {c["data_identifier"] for c in plans["configurations"].values()}

    shared, own = {"nnUNetPlans_2d", "nnUNetPlans_3d_fullres"}, {"Mine_2d", "Mine_3d_fullres"}
    assert identifiers() == shared
    assert identifiers(overwrite_target_spacing=[5.0, 0.8, 0.8]) == own
    assert identifiers(suppress_transpose=True) == own
    assert identifiers(preprocessor_name="Other") == own
    assert identifiers(WithoutResampling) == own
    plan(ExperimentPlanner, dataset)
    assert identifiers() == shared
    plan(ExperimentPlanner, dataset, overwrite_target_spacing=[4.0, 0.8, 0.8])
    assert identifiers() == {"nnUNetPlans_2d", "Mine_3d_fullres"}


def test_no_augmentation_workers_are_needed(make_dataset: Make, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    threads = torch.get_num_threads()
    assert plan(MeasuredPlanner, make_dataset("tiny"))["configurations"]["3d_fullres"]["patch_size"] == [24, 32, 32]
    assert torch.get_num_threads() == threads


def test_the_target_must_be_positive(make_dataset: Make) -> None:
    with pytest.raises(ValueError, match="must be positive, in GB; got -1"):
        PlainPlanner(make_dataset("tiny"), gpu_memory_target_in_gb=-1)


@pytest.mark.parametrize("planner", [PlainPlanner, MeasuredPlanner])
@pytest.mark.parametrize("fingerprint", ["isotropic", "thin", "2d"])
def test_the_search_ends(planner: type[BasePlanner], fingerprint: str, make_dataset: Make) -> None:
    sizes: list[int] = []

    class Counting(planner):  # type: ignore[valid-type, misc]
        def estimate(self, patch_size: Sequence[int], architecture: dict[str, Any]) -> int:
            sizes.append(math.prod(patch_size))
            return sizes[-1]

    instance = Counting(make_dataset(fingerprint), gpu_memory_target_in_gb=1e-12)
    with pytest.raises(RuntimeError, match=r"no patch fits a GPU memory target of 1e-12 GB.*-gpu_memory_target"):
        instance.plan_experiment()
    assert sizes[-1] == 1


def test_a_constraint_holds_for_every_patch(make_dataset: Make, plan: Plan) -> None:
    class Constrained(BasePlanner):
        def shape_constraint(self, dim: int) -> tuple[int, ...]:
            return (24,) * dim

    datasets = [make_dataset("thin"), make_dataset("isotropic"), make_dataset("isotropic", shape=(30, 45, 100))]
    for dataset in datasets:
        plans = plan(Constrained, dataset)
        for configuration in plans["configurations"].values():
            strides = torch.tensor(configuration["architecture"]["arch_kwargs"]["strides"]).prod(0)
            patch = torch.tensor(configuration["patch_size"])
            assert (patch % 24 == 0).all()
            assert (patch % strides == 0).all()


def test_estimates_are_cached_by_network(make_dataset: Make) -> None:
    calls: list[tuple[int, ...]] = []

    class Counting(MeasuredPlanner):
        def estimate(self, patch_size: Sequence[int], architecture: dict[str, Any]) -> int:
            calls.append(tuple(patch_size))
            return super().estimate(patch_size, architecture)

    planner = Counting(make_dataset("tiny"))
    cache: dict[Any, int] = {}
    topology = planner.topology((1, 1, 1), (32, 32, 32))
    narrow = planner.architecture_block(topology)
    planner.UNet_base_num_features = 16
    for block in (narrow, narrow, planner.architecture_block(topology), narrow):
        planner._cached_estimate((32, 32, 32), block, cache)
    assert len(calls) == 2
    assert len(set(cache.values())) == 2
