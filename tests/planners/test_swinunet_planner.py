"""Swin-Unet's planner: patches, and what it leaves to nnU-Net."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner

from nnunet_ext.architectures.swinunet_plans import NETWORK_CLASS
from nnunet_ext.planners.swinunet import SwinUNetPlanner
from nnunet_ext.planners.variants import planner_class

Plan = Callable[..., dict[str, Any]]
Make = Callable[..., str]


@pytest.mark.parametrize("fingerprint", ["anisotropic", "2d", "channels", "small"])
def test_patches_are_multiples_of_32(fingerprint: str, make_dataset: Make, plan: Plan) -> None:
    configuration = plan(SwinUNetPlanner, make_dataset(fingerprint))["configurations"]["2d"]
    arguments = configuration["architecture"]["arch_kwargs"]
    assert configuration["architecture"]["network_class_name"] == NETWORK_CLASS
    assert all(edge % 32 == 0 for edge in configuration["patch_size"])
    assert arguments["patch_size"] == configuration["patch_size"]
    assert arguments["features_per_stage"] == [96, 96, 192, 384, 768]
    assert arguments["strides"] == [[1, 1], [4, 4], [2, 2], [2, 2], [2, 2]]


def test_the_aspect_ratio_is_the_images(make_dataset: Make, plan: Plan) -> None:
    dataset = make_dataset("2d", shape=(1, 640, 320))
    patch = plan(SwinUNetPlanner, dataset, gpu_memory_target_in_gb=1.5)["configurations"]["2d"]["patch_size"]
    assert 1.6 <= patch[0] / patch[1] <= 2.5
    assert patch[0] < 640


def test_3d_is_nnunets(make_dataset: Make, plan: Plan) -> None:
    dataset = make_dataset("tiny")
    ours = plan(planner_class("SwinUNetPlanner_W8"), dataset)["configurations"]
    theirs = plan(ExperimentPlanner, dataset)["configurations"]
    assert ours["3d_fullres"] == theirs["3d_fullres"]
    assert ours["2d"]["architecture"]["arch_kwargs"]["features_per_stage"] == [8, 8, 16, 32, 64]
    assert ours["2d"]["data_identifier"] == theirs["2d"]["data_identifier"]
