"""OSS-Net's planners: larger patches than nnU-Net's, never too large ones, and whole volumes as published."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

from nnunet_ext.architectures.ossnet_local_plans import NETWORK_CLASS, number_of_points
from nnunet_ext.architectures.ossnet_plans import NETWORK_CLASS as FAITHFUL
from nnunet_ext.architectures.ossnet_plans import ossnet_strides
from nnunet_ext.planners.ossnet import OSSNetPlanner, OSSNetPlanner_Published, whole_volume_patch
from nnunet_ext.planners.variants import planner_class

Plan = Callable[..., dict[str, Any]]
Make = Callable[..., str]


def network(configuration: dict[str, Any], classes: int = 3) -> Any:
    block = configuration["architecture"]
    with torch.device("meta"):
        return get_network_from_plans(
            block["network_class_name"],
            block["arch_kwargs"],
            block["_kw_requires_import"],
            1,
            classes,
            allow_init=False,
            deep_supervision=False,
        )


def planned(plans: dict[str, Any]) -> list[dict[str, Any]]:
    """The configurations with a patch of their own."""
    return [c for c in plans["configurations"].values() if "patch_size" in c]


# --------------------------------------------------------------------------------------------------------- OSSNetLocal


@pytest.mark.parametrize("fingerprint", ["isotropic", "lowres", "anisotropic"])
def test_patches_are_larger_than_nnunets(fingerprint: str, make_dataset: Make, plan: Plan) -> None:
    dataset = make_dataset(fingerprint)
    ours = plan(OSSNetPlanner, dataset)["configurations"]["3d_fullres"]
    theirs = plan(ExperimentPlanner, dataset)["configurations"]["3d_fullres"]
    assert math.prod(ours["patch_size"]) > 1.2 * math.prod(theirs["patch_size"])
    assert ours["batch_size"] >= 2


@pytest.mark.parametrize("target", [8, 80])
@pytest.mark.parametrize(
    "changes",
    [
        {"shape": (500, 512, 512)},
        {"shape": (300, 190, 170)},
        {"shape": (197, 195, 193)},
        {"shape": (100, 1000, 1000), "spacing": (2.5, 0.6, 0.6)},
        {"shape": (1000, 300, 300), "spacing": (0.3, 1.0, 1.0)},
    ],
    ids=str,
)
def test_never_more_than_192_cubed(changes: dict[str, Any], target: float, make_dataset: Make) -> None:
    planner = OSSNetPlanner(make_dataset("isotropic", **changes), gpu_memory_target_in_gb=target)
    shape, spacing = changes["shape"], changes.get("spacing", (1.0, 1.0, 1.0))
    choice = planner.search(spacing, shape, 1e12, {})
    assert math.prod(choice.patch_size) <= 192**3
    assert math.prod(choice.patch_size) > 0.5 * min(192**3, math.prod(shape))
    assert math.prod(choice.patch_size) * choice.batch_size <= 2 * 192**3 * target / 8


@pytest.mark.parametrize("fingerprint", ["thin", "2d", "channels", "small", "tiny", "lowres", "coarse_last"])
def test_networks_fit_their_patches(fingerprint: str, make_dataset: Make, plan: Plan) -> None:
    """Two stages at least, points by the patch, in two dimensions too; and a smaller target gives no larger patch."""
    plans = plan(OSSNetPlanner, make_dataset(fingerprint))
    for configuration in planned(plans):
        patch, block = configuration["patch_size"], configuration["architecture"]
        arguments = block["arch_kwargs"]
        assert block["network_class_name"] == NETWORK_CLASS
        assert json.loads(json.dumps(block)) == block
        assert arguments["n_stages"] >= 2
        assert arguments["n_points"] == number_of_points(patch)
        assert arguments["regions"] is False
        made = network(configuration)
        made.check_patch_size(patch)
        points, _ = (
            made.train()(*made.memory_probe(patch, 2))
            if fingerprint != "channels"
            else made.train()(torch.empty(2, 1, *patch, device="meta"), *made.memory_probe(patch, 2)[1:])
        )
        assert tuple(points.shape) == (2, 3, arguments["n_points"])


def test_a_patch_of_one_stage_grows(make_dataset: Make) -> None:
    """nnU-Net plans images of fewer than eight voxels an axis without any pooling."""
    planner = OSSNetPlanner(make_dataset("tiny"))
    assert planner.stock_topology((1.0, 1.0, 1.0), (6, 7, 5)).n_stages == 1
    topology = planner.topology((1.0, 1.0, 1.0), (6, 7, 5))
    assert topology.n_stages >= 2
    assert all(wide >= narrow for wide, narrow in zip(topology.patch_size, (6, 7, 5), strict=True))
    assert planner.topology((9.0, 1.0, 1.0), (2, 6, 6)).patch_size[0] == 2  # the coarse axis stays


@pytest.mark.parametrize("planner", [OSSNetPlanner, OSSNetPlanner_Published])
def test_regions_are_planned(planner: type, make_dataset: Make, plan: Plan, nnunet_folders: Path) -> None:
    dataset = make_dataset("tiny")
    path = nnunet_folders / "nnUNet_raw" / dataset / "dataset.json"
    content = json.loads(path.read_text())
    content["labels"] = {"background": 0, "whole": [1, 2], "core": [2]}
    content["regions_class_order"] = [1, 2]
    path.write_text(json.dumps(content))
    for configuration in planned(plan(planner, dataset)):
        assert configuration["architecture"]["arch_kwargs"]["regions"] is True
        assert network(configuration, 2).regions is True


# ----------------------------------------------------------------------------------------------------------- published


def published(plan: Plan, dataset: str, name: str = "OSSNetPlanner_Published", **options: Any) -> dict[str, Any]:
    plans = plan(planner_class(name), dataset, **options)
    assert "3d_lowres" not in plans["configurations"]
    configuration: dict[str, Any] = plans["configurations"]["3d_fullres"]
    return configuration


def test_brats(make_dataset: Make, plan: Plan) -> None:
    """240 x 240 x 155 voxels (here z, y, x) at 1 mm are padded as the authors padded them, for their network."""
    dataset = make_dataset("isotropic", shape=(155, 240, 240), channels=4, labels=4)
    configuration = published(plan, dataset)
    arguments = configuration["architecture"]["arch_kwargs"]
    assert configuration["architecture"]["network_class_name"] == FAITHFUL
    assert configuration["patch_size"] == arguments["patch_size"] == [160, 256, 256]
    assert arguments["latent_shape"] == [5, 8, 8]
    assert arguments["strides"] == [[s] * 3 for s in (1, 4, 2, 2, 2)]
    assert arguments["features_per_stage"] == [16, 16, 32, 64, 128]
    assert (arguments["decoder_width"], arguments["decoder_blocks"], arguments["n_points"]) == (512, 5, 2**14)
    assert (arguments["patches"], arguments["large_patches"], arguments["skip"]) == (True, False, True)
    assert 2 <= configuration["batch_size"] <= 8
    assert configuration["spacing"] == [1, 1, 1]
    wide = published(plan, dataset, gpu_memory_target_in_gb=400)
    assert wide["batch_size"] == 8


def test_lits(make_dataset: Make, plan: Plan) -> None:
    """Images of more than 512 voxels along an axis get a coarser spacing there, not elsewhere."""
    dataset = make_dataset("lowres", shape=(1000, 512, 512), spacing=(1.0, 0.7, 0.7), cases=6)
    configuration = published(plan, dataset)
    assert configuration["patch_size"] == [512, 512, 512]
    assert configuration["architecture"]["arch_kwargs"]["latent_shape"] == [8, 8, 8]
    np.testing.assert_allclose(configuration["spacing"], [1000 / 512, 0.7, 0.7])


def test_the_coarse_axis_comes_first_and_every_case_fits(make_dataset: Make, plan: Plan, nnunet_folders: Path) -> None:
    """The largest image decides, not the median one; extents follow nnU-Net's transposition."""
    dataset = make_dataset("coarse_last", shape=(100, 90, 20), cases=3)
    path = nnunet_folders / "nnUNet_preprocessed" / dataset / "dataset_fingerprint.json"
    fingerprint = json.loads(path.read_text())
    fingerprint["shapes_after_crop"] = [[100, 90, 20], [90, 150, 20], [80, 80, 33]]
    path.write_text(json.dumps(fingerprint))
    plans = plan(OSSNetPlanner_Published, dataset)
    forward = plans["transpose_forward"]
    assert forward == [2, 0, 1]
    configuration = plans["configurations"]["3d_fullres"]
    for shape in fingerprint["shapes_after_crop"]:
        resampled = [
            shape[axis] * (0.9, 0.9, 4.0)[axis] / spacing
            for axis, spacing in zip(forward, configuration["spacing"], strict=True)
        ]
        assert all(edge <= p for edge, p in zip(resampled, configuration["patch_size"], strict=True))
    slices = plans["configurations"]["2d"]
    assert all(p >= edge for p, edge in zip(slices["patch_size"], (100, 150), strict=True))
    assert tuple(slices["architecture"]["arch_kwargs"]["patch_size"]) == tuple(slices["patch_size"])
    for each in planned(plans):
        network(each).check_patch_size(each["patch_size"])
        assert json.loads(json.dumps(each["architecture"])) == each["architecture"]


def test_width_and_warning(make_dataset: Make, plan: Plan, caplog: pytest.LogCaptureFixture) -> None:
    dataset = make_dataset("isotropic", shape=(96, 128, 128))
    narrow = published(plan, dataset, "OSSNetPlanner_Published_W4")
    arguments = narrow["architecture"]["arch_kwargs"]
    assert arguments["features_per_stage"][:3] == [4, 4, 8]
    assert arguments["decoder_width"] == 128
    with caplog.at_level(logging.WARNING):
        tight = published(plan, dataset, gpu_memory_target_in_gb=0.5)
    assert tight["batch_size"] == 2
    assert tight["patch_size"] == [96, 128, 128]
    assert "batches of 2 volumes of (96, 128, 128) voxels need a GPU with about" in caplog.text


@pytest.mark.parametrize(
    ("shape", "patch"),
    [
        ((155, 240, 240), (160, 256, 256)),
        ((512, 512, 512), (512, 512, 512)),
        ((30, 250, 251), (32, 256, 256)),
        ((1, 40, 40), (1, 40, 40)),
        ((100, 60), (112, 64)),
        ((200, 180, 90), (224, 192, 96)),
    ],
)
def test_patches_hold_the_image_and_are_divided(shape: Sequence[int], patch: Sequence[int]) -> None:
    found = whole_volume_patch(shape)
    assert found == patch
    steps = [math.prod(axis) for axis in zip(*ossnet_strides(found), strict=True)]
    assert all(edge % step == 0 for edge, step in zip(found, steps, strict=True))
