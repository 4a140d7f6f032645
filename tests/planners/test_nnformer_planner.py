"""nnFormer's planner: patches and strides, and what it leaves to nnU-Net."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner

from nnunet_ext.architectures.grids import total_stride
from nnunet_ext.architectures.nnformer_plans import (
    ALICE_PATCH,
    NETWORK_CLASS,
    fitting_topology,
    heads_for,
    lengths_of,
    nnformer_architecture,
    nnformer_strides,
    translated_architecture,
)
from nnunet_ext.planners.nnformer import NNFormerPlanner
from nnunet_ext.planners.variants import planner_class

Plan = Callable[..., dict[str, Any]]
Make = Callable[..., str]
TWOS = [[1, 1, 1], *([2, 2, 2],) * 4]


def test_alices_network_at_its_patch() -> None:
    patch, strides = fitting_topology(ALICE_PATCH)
    arguments = nnformer_architecture(patch, strides)["arch_kwargs"]
    assert (patch, strides) == (ALICE_PATCH, TWOS)
    assert arguments["features_per_stage"] == [24, 48, 96, 192, 384]
    assert arguments["num_heads"] == [6, 12, 24, 48]
    assert arguments["window_size"] == [4, 4, 8, 4]


@pytest.mark.parametrize(("width", "heads"), [(4, 1), (24, 3), (32, 4), (48, 6), (50, 5), (192, 6)])
def test_heads(width: int, heads: int) -> None:
    assert heads_for(width) == heads


def test_long_voxels_are_halved_later() -> None:
    """As nnU-Net does: at 3 x 1 x 1 mm the first axis waits until the others have caught up."""
    assert nnformer_strides((64, 64, 64), (3.0, 1.0, 1.0)) == [[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2], [2, 2, 2]]
    assert nnformer_strides((3, 64, 64)) == [[1, 1, 1], [2, 2, 2], [1, 2, 2], [1, 2, 2], [1, 2, 2]]


@pytest.mark.parametrize("patch", [(1, 1, 1), (20, 33, 161), (7, 250, 250)])
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (5.0, 0.7, 0.7), (0.5, 2.0, 1.0)])
def test_patches_fit(patch: tuple[int, ...], spacing: tuple[float, ...]) -> None:
    fitted, strides = fitting_topology(patch, spacing)
    assert all(edge % step == 0 for edge, step in zip(fitted, total_stride(strides), strict=True))
    assert all(edge >= wished for edge, wished in zip(fitted, patch, strict=True))
    assert nnformer_strides(fitted, spacing) == strides


def test_translated_plans_keep_the_patch_and_the_order_of_axes() -> None:
    theirs = [[1, 1, 1], [1, 2, 2], [1, 2, 2], [2, 2, 2], [2, 2, 2]]
    assert lengths_of(theirs) == [4.0, 1.0, 1.0]
    arguments = translated_architecture(theirs, (20, 160, 160))["arch_kwargs"]
    assert arguments["patch_size"] == [20, 160, 160]
    assert arguments["strides"] == [[1, 1, 1], [1, 2, 2], [1, 2, 2], [2, 2, 2], [2, 2, 2]]
    with pytest.raises(ValueError, match="can be halved"):
        translated_architecture(theirs, (21, 45, 33))


def test_plans(make_dataset: Make, plan: Plan) -> None:
    configuration = plan(planner_class("NNFormerPlanner_W8"), make_dataset("small"))["configurations"]["3d_fullres"]
    arguments = configuration["architecture"]["arch_kwargs"]
    assert configuration["architecture"]["network_class_name"] == NETWORK_CLASS
    assert arguments["patch_size"] == configuration["patch_size"]
    assert arguments["features_per_stage"] == [8, 8, 16, 32, 64]
    steps = total_stride(arguments["strides"])
    assert all(edge % step == 0 for edge, step in zip(configuration["patch_size"], steps, strict=True))


def test_2d_is_nnunets(make_dataset: Make, plan: Plan) -> None:
    dataset = make_dataset("tiny")
    ours = plan(NNFormerPlanner, dataset)["configurations"]
    theirs = plan(ExperimentPlanner, dataset)["configurations"]
    assert ours["2d"] == theirs["2d"]
    assert ours["3d_fullres"]["data_identifier"] == theirs["3d_fullres"]["data_identifier"]
