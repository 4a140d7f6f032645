"""SSH-UNet's planners: networks that fit, presets, widths, the published setting."""

from __future__ import annotations

import logging
import math
import pickle
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_ext.architectures.blocks.memory import conv_feature_map_units
from nnunet_ext.planners import sshunet
from nnunet_ext.planners.sshunet import SSHUNetPlanner, SSHUNetPlanner_Published
from nnunet_ext.planners.variants import planner_class

Plan = Callable[..., dict[str, Any]]
Make = Callable[..., str]

SSHUNET = "nnunet_ext.architectures.sshunet.SSHUNet"
ESTIMATES: dict[Any, int] = {}
IN_3D = ("3d_fullres", "3d_lowres")
FINGERPRINTS = ("isotropic", "anisotropic", "thin", "2d", "channels", "small", "tiny", "lowres", "coarse_last")


def network(configuration: dict[str, Any], channels: int = 1, classes: int = 3) -> Any:
    block = configuration["architecture"]
    return get_network_from_plans(
        block["network_class_name"],
        block["arch_kwargs"],
        block["_kw_requires_import"],
        channels,
        classes,
        allow_init=False,
        deep_supervision=True,
    )


def in_3d(plans: dict[str, Any]) -> list[dict[str, Any]]:
    return [plans["configurations"][name] for name in IN_3D if name in plans["configurations"]]


def volume(size: Sequence[int]) -> int:
    return math.prod(size)


@pytest.fixture(autouse=True)
def _shared_estimates(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests plan the same networks again and again; each is measured once."""
    measure = SSHUNetPlanner.estimate

    def estimate(self: SSHUNetPlanner, patch_size: Sequence[int], architecture: dict[str, Any]) -> int:
        key = (tuple(patch_size), repr(architecture), self.num_input_channels, len(self.dataset_json["labels"]))
        if key not in ESTIMATES:
            ESTIMATES[key] = measure(self, patch_size, architecture)
        return ESTIMATES[key]

    monkeypatch.setattr(SSHUNetPlanner, "estimate", estimate)


@pytest.mark.parametrize("fingerprint", FINGERPRINTS)
def test_planned_networks_fit_their_patches(fingerprint: str, make_dataset: Make, plan: Plan) -> None:
    plans = plan(SSHUNetPlanner, make_dataset(fingerprint))
    assert plans["plans_name"] == "SSHUNetPlans"
    assert plans["experiment_planner_used"] == plans["nnunet_ext"]["planner"] == "SSHUNetPlanner"
    assert len(in_3d(plans)) == {"2d": 0, "lowres": 2}.get(fingerprint, 1)
    for configuration in in_3d(plans):
        block = configuration["architecture"]
        kwargs, patch = block["arch_kwargs"], configuration["patch_size"]
        stages = kwargs["n_stages"]
        assert block["network_class_name"] == SSHUNET
        assert stages >= 3
        assert kwargs["strides"][0] == [1, 1, 1]
        assert kwargs["kernel_sizes"] == [[1, 3, 3]] * stages
        assert kwargs["features_per_stage"] == [min(32 * 2**i, 320) for i in range(stages)]
        assert (kwargs["gate"], kwargs["fusion"]) == ("tsm", "sum")
        bottleneck = [p // math.prod(s) for p, s in zip(patch, zip(*kwargs["strides"], strict=True), strict=True)]
        assert min(bottleneck) >= 4
        with torch.device("meta"):
            model = network(configuration)
            outputs = model(torch.empty(1, 1, *patch))
        model.check_patch_size(patch)
        assert list(outputs[0].shape[2:]) == patch
        assert len(outputs) == stages - 1


@pytest.mark.parametrize("fingerprint", ["isotropic", "thin", "2d", "small", "coarse_last"])
def test_2d_is_nnunets(fingerprint: str, make_dataset: Make, plan: Plan) -> None:
    dataset = make_dataset(fingerprint)
    stock = plan(ExperimentPlanner, dataset)["configurations"]["2d"]
    assert plan(planner_class("SSHUNetPlanner_W8"), dataset)["configurations"]["2d"] == stock


def test_the_batch_fills_the_memory_and_no_more(make_dataset: Make, plan: Plan) -> None:
    for fingerprint, channels, labels in (("isotropic", 1, 3), ("channels", 12, 119), ("anisotropic", 1, 3)):
        (configuration,) = in_3d(plan(SSHUNetPlanner, make_dataset(fingerprint)))
        with torch.device("meta"):
            units = conv_feature_map_units(network(configuration, channels, labels), configuration["patch_size"])
        assert 0.7 * 560e6 < units * configuration["batch_size"] / 2 <= 560e6


def test_a_planned_network_runs_with_the_stock_trainer(make_dataset: Make, plan: Plan) -> None:
    plans = plan(planner_class("SSHUNetPlanner_W8"), make_dataset("tiny"))
    manager = PlansManager(plans)
    configuration = manager.get_configuration("3d_fullres")
    model = nnUNetTrainer.build_network_architecture(manager, configuration, 2, 3, True)
    outputs = model(torch.randn(1, 2, *configuration.patch_size))
    assert [tuple(o.shape) for o in outputs] == [(1, 3, 24, 32, 32), (1, 3, 12, 16, 16), (1, 3, 6, 8, 8)]
    assert all(torch.isfinite(o).all() for o in outputs)
    assert manager.plans["nnunet_ext"]["planner"] == "SSHUNetPlanner_W8"


def test_more_memory_never_makes_smaller_patches(make_dataset: Make, plan: Plan) -> None:
    dataset = make_dataset("isotropic")
    sizes = []
    for name in ("SSHUNetPlanner", "SSHUNetPlannerM", "SSHUNetPlannerL", "SSHUNetPlannerXL"):
        plans = plan(planner_class(name), dataset)
        assert plans["plans_name"] == name.replace("Planner", "Plans")
        sizes.append(volume(in_3d(plans)[0]["patch_size"]))
    assert sizes[0] == sizes[1] < sizes[2] < sizes[3]
    targets = [in_3d(plan(SSHUNetPlanner, dataset, gpu_memory_target_in_gb=target))[0] for target in (5, 6, 8, 12, 24)]
    sizes = [volume(configuration["patch_size"]) for configuration in targets]
    assert sizes == sorted(sizes)
    assert len(set(sizes)) > 3
    assert in_3d(plan(planner_class("SSHUNetPlannerL"), dataset))[0] == targets[-1]


def test_narrow_networks_get_larger_patches(make_dataset: Make, plan: Plan) -> None:
    dataset = make_dataset("isotropic")
    (wide,), (narrow,) = in_3d(plan(SSHUNetPlanner, dataset)), in_3d(plan(planner_class("SSHUNetPlanner_W8"), dataset))
    assert narrow["architecture"]["arch_kwargs"]["features_per_stage"] == [8, 16, 32, 64, 80, 80]
    assert volume(narrow["patch_size"]) > volume(wide["patch_size"])


@pytest.mark.parametrize(
    ("shape", "spacing"),
    [
        ((8, 8, 8), (1.0, 1.0, 1.0)),
        ((4, 12, 12), (5.0, 1.0, 1.0)),
        ((12, 8, 8), (1.0, 3.0, 3.0)),
        ((2, 3, 2), (1.0, 1.0, 1.0)),
    ],
)
def test_very_small_images_get_three_stages(
    shape: tuple[int, ...], spacing: tuple[float, ...], make_dataset: Make, plan: Plan
) -> None:
    (configuration,) = in_3d(plan(SSHUNetPlanner, make_dataset("tiny", shape=shape, spacing=spacing)))
    assert configuration["architecture"]["arch_kwargs"]["n_stages"] == 3
    assert max(configuration["patch_size"]) <= 24
    with torch.device("meta"):
        network(configuration).check_patch_size(configuration["patch_size"])


@pytest.mark.parametrize("fingerprint", ["isotropic", "thin", "tiny"])
def test_an_impossible_target_is_an_error_that_helps(
    fingerprint: str, make_dataset: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SSHUNetPlanner, "estimate", lambda self, patch, block: 10**6 * volume(patch))
    planner = SSHUNetPlanner(make_dataset(fingerprint), gpu_memory_target_in_gb=0.5)
    with pytest.raises(RuntimeError, match=r"SSHUNetPlanner: no patch fits .* 0\.5 GB.*needs about .*_W8"):
        planner.plan_experiment()


@pytest.mark.parametrize(
    ("name", "gigabytes", "width", "base"),
    [
        ("SSHUNetPlanner", 8, 32, SSHUNetPlanner),
        ("SSHUNetPlannerM", 8, 32, SSHUNetPlanner),
        ("SSHUNetPlannerL", 24, 32, SSHUNetPlanner),
        ("SSHUNetPlannerXL_W48", 40, 48, SSHUNetPlanner),
        ("SSHUNetPlanner_W8", 8, 8, SSHUNetPlanner),
        ("SSHUNetPlanner_Published", 8, 32, SSHUNetPlanner_Published),
        ("SSHUNetPlannerL_Published_W16", 24, 16, SSHUNetPlanner_Published),
    ],
)
def test_names_make_classes(name: str, gigabytes: float, width: int, base: type[SSHUNetPlanner]) -> None:
    made = planner_class(name)
    assert issubclass(made, base)
    assert made.__name__ == name
    assert (made.default_gpu_memory_gb, made.base_width) == (gigabytes, width)
    assert getattr(sshunet, name) is planner_class(name) is made
    assert pickle.loads(pickle.dumps(made)) is made


@pytest.mark.parametrize("name", ["SSHUNetPlannerS", "SSHUNetPlanner_W8_Published", "SSHUNetPlanner_W0", "Other"])
def test_unknown_names_are_attribute_errors(name: str) -> None:
    assert not hasattr(sshunet, name)
    with pytest.raises(AttributeError, match=name):
        planner_class(name)


def test_the_published_setting(make_dataset: Make, plan: Plan, caplog: pytest.LogCaptureFixture) -> None:
    dataset = make_dataset("lowres")
    with caplog.at_level(logging.WARNING):
        plans = plan(SSHUNetPlanner_Published, dataset)
    assert plans["plans_name"] == "SSHUNetPlans_Published"
    assert set(plans["configurations"]) == {"2d", "3d_fullres"}
    configuration = plans["configurations"]["3d_fullres"]
    assert configuration["spacing"] == [1.0, 1.0, 1.0]
    assert (configuration["patch_size"], configuration["batch_size"]) == ([96, 96, 96], 8)
    kwargs = configuration["architecture"]["arch_kwargs"]
    assert kwargs["strides"] == [[1, 1, 1]] + [[2, 2, 2]] * 4
    assert kwargs["features_per_stage"] == [32, 64, 128, 256, 320]
    assert configuration["data_identifier"] == "SSHUNetPlans_Published_3d_fullres"
    assert "needs a GPU with about" in caplog.text
    assert "becomes" not in caplog.text
    with torch.device("meta"):
        parameters = sum(p.numel() for p in network(configuration, 1, 14).parameters())
    assert parameters > 6_480_142  # the published 14-class network, and our heads of deep supervision

    stock = plan(ExperimentPlanner, dataset, overwrite_target_spacing=[1.0, 1.0, 1.0])["configurations"]["2d"]
    stock["data_identifier"] = "SSHUNetPlans_Published_2d"
    assert plans["configurations"]["2d"] == stock
    thicker = plan(SSHUNetPlanner_Published, dataset, overwrite_target_spacing=[2.0, 1.0, 1.0])
    assert thicker["configurations"]["3d_fullres"]["spacing"] == [2.0, 1.0, 1.0]


@pytest.mark.parametrize(("fingerprint", "patch"), [("small", [48, 64, 48]), ("thin", [80, 96, 96])])
def test_the_published_patch_shrinks_to_small_images(
    fingerprint: str, patch: list[int], make_dataset: Make, plan: Plan, caplog: pytest.LogCaptureFixture
) -> None:
    (configuration,) = in_3d(plan(planner_class("SSHUNetPlanner_Published_W8"), make_dataset(fingerprint)))
    assert configuration["patch_size"] == patch
    assert f"becomes {tuple(patch)}" in caplog.text
    assert configuration["architecture"]["arch_kwargs"]["features_per_stage"] == [8, 16, 32, 64, 80]
    with torch.device("meta"):
        network(configuration).check_patch_size(patch)


def test_the_published_planner_on_2d_images(make_dataset: Make, plan: Plan) -> None:
    plans = plan(SSHUNetPlanner_Published, make_dataset("2d"))
    assert set(plans["configurations"]) == {"2d"}
