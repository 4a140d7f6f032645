"""UNETR++'s planners: strides, caps, networks that fit, and the published settings."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

from nnunet_ext.architectures import unetrpp_plans
from nnunet_ext.architectures.grids import token_grids, total_stride
from nnunet_ext.architectures.unetrpp_plans import (
    MAX_PATCH_PARAMETERS,
    MAX_TOKENS,
    PRESETS,
    embedding_stride,
    fitting_topology,
    patch_parameters,
    unetrpp_strides,
)
from nnunet_ext.planners.unetrpp import MOST_COST, MOST_STRIDE, UNETRPPPlanner
from nnunet_ext.planners.variants import planner_class

Plan = Callable[..., dict[str, Any]]
Make = Callable[..., str]
RECIPES = {"Synapse": "synapse", "ACDC": "acdc", "Lung": "lung", "BraTS": "brats"}


def network(configuration: dict[str, Any], channels: int = 1, classes: int = 3) -> Any:
    block = configuration["architecture"]
    with torch.device("meta"):
        return get_network_from_plans(
            block["network_class_name"],
            block["arch_kwargs"],
            block["_kw_requires_import"],
            channels,
            classes,
            allow_init=False,
            deep_supervision=True,
        )


# ------------------------------------------------------------------------------------------------------------- strides


@pytest.mark.parametrize("name", PRESETS)
def test_the_rule_reproduces_the_published_strides(name: str) -> None:
    preset = PRESETS[name]
    stride = embedding_stride(preset.patch_size)
    assert stride == preset.embedding
    assert unetrpp_strides(preset.patch_size, stride) == preset.strides


@pytest.mark.parametrize("name", ["synapse", "acdc", "brats"])
def test_the_caps_leave_published_settings_alone(name: str) -> None:
    preset = PRESETS[name]
    assert fitting_topology(preset.patch_size) == (preset.patch_size, preset.strides)


def test_the_caps_win_over_the_rule() -> None:
    """The published Lung setting has 51 million parameters that depend on the patch, even with tied projections."""
    preset = PRESETS["lung"]
    assert patch_parameters(preset.patch_size, preset.strides) > MAX_PATCH_PARAMETERS
    patch, strides = fitting_topology(preset.patch_size)
    assert patch == preset.patch_size
    assert strides[1] == [1, 4, 8]


@pytest.mark.parametrize(
    ("patch", "fitted", "embedding", "last"),
    [
        ((31, 31, 31), (32, 32, 32), [1, 1, 1], [2, 2, 2]),
        ((62, 62, 62), (64, 64, 64), [2, 2, 2], [2, 2, 2]),  # rounded up to what takes a coarser embedding
        ((5, 64, 64), (8, 64, 64), [1, 2, 2], [1, 2, 2]),
        ((3, 64, 64), (4, 64, 64), [1, 2, 2], [1, 2, 2]),
        ((97, 101, 103), (112, 96, 96), [2, 4, 4], [2, 2, 2]),  # not 128: a quarter of it would be padding
        ((9, 160, 160), (8, 160, 160), [1, 4, 4], [2, 2, 2]),
        ((1, 64, 64), (1, 64, 64), [1, 2, 2], [1, 2, 2]),
        ((320, 256), (320, 256), [4, 4], [2, 2]),
        ((48, 40), (48, 40), [1, 1], [2, 2]),
    ],
)
def test_strides_of_other_patches(
    patch: tuple[int, ...], fitted: tuple[int, ...], embedding: list[int], last: list[int]
) -> None:
    found, strides = fitting_topology(patch)
    assert (found, strides[1], strides[-1]) == (fitted, embedding, last)


@pytest.mark.parametrize("patch", [(192, 192, 192), (40, 320, 320), (160, 160, 160), (40, 56, 40), (2048, 1024)])
def test_caps_hold_whatever_the_patch(patch: tuple[int, ...]) -> None:
    fitted, strides = fitting_topology(patch)
    for edge, wished, step in zip(fitted, patch, total_stride(strides), strict=True):
        assert edge % step == 0
        assert abs(edge - wished) <= 0.25 * wished
    assert math.prod(token_grids(fitted, strides)[0]) <= MAX_TOKENS
    assert patch_parameters(fitted, strides) <= MAX_PATCH_PARAMETERS
    once_more = fitting_topology(patch, raises=1)[1]
    assert math.prod(once_more[1]) == 2 * math.prod(strides[1])


@pytest.mark.parametrize("patch", [(36, 56, 44), (24, 32, 32), (20, 161, 160), (7, 7, 7), (50, 70)])
def test_exact_strides_keep_the_patch(patch: tuple[int, ...]) -> None:
    fitted, strides = fitting_topology(patch, exact=True)
    assert fitted == patch
    assert all(p % t == 0 for p, t in zip(patch, total_stride(strides), strict=True))


@pytest.mark.parametrize(("width", "heads"), [(32, 4), (256, 4), (16, 2), (8, 1), (24, 1), (20, 4), (6, 2)])
def test_heads_have_at_least_eight_channels(width: int, heads: int) -> None:
    assert unetrpp_plans.heads_for(width) == heads


@pytest.mark.parametrize(("name", "millions"), [("synapse", 22.67), ("brats", 22.67), ("acdc", 28.92), ("lung", 83.30)])
def test_count_of_patch_dependent_parameters(name: str, millions: float) -> None:
    """Specification unetrpp 3: E/F and pos_embed."""
    preset = PRESETS[name]
    projections = 2 if preset.options["projections"] == "separate" else 1
    count = patch_parameters(preset.patch_size, preset.strides, projections=projections)
    assert count / 1e6 == pytest.approx(millions, abs=0.01)


# --------------------------------------------------------------------------------------------------------------- plans


@pytest.mark.parametrize("fingerprint", ["isotropic", "anisotropic", "thin", "2d", "channels", "small", "lowres"])
def test_planned_networks_fit_their_patches(fingerprint: str, make_dataset: Make, plan: Plan) -> None:
    plans = plan(UNETRPPPlanner, make_dataset(fingerprint))
    for name in {"2d", "3d_fullres", "3d_lowres"} & plans["configurations"].keys():
        configuration = plans["configurations"][name]
        if "patch_size" not in configuration:
            continue
        patch, arguments = configuration["patch_size"], configuration["architecture"]["arch_kwargs"]
        assert arguments["patch_size"] == patch
        assert (arguments["projections"], arguments["sa_layout"]) == ("tied", "fixed")
        assert max(arguments["strides"][1]) <= MOST_STRIDE
        assert math.prod(token_grids(patch, arguments["strides"])[0]) <= MAX_TOKENS
        outputs = network(configuration)(torch.empty(2, 1, *patch, device="meta"))
        scales = total_scales(arguments["strides"])
        assert [list(y.shape[2:]) for y in outputs] == [
            [round(p * s) for p, s in zip(patch, scale, strict=True)] for scale in scales
        ]


def total_scales(strides: Sequence[Sequence[int]]) -> list[list[float]]:
    """nnU-Net's deep supervision scales."""
    scales = [[1.0] * len(strides[0])]
    for stride in strides[1:-1]:
        scales.append([scale / step for scale, step in zip(scales[-1], stride, strict=True)])
    return scales


def test_fine_tokens_that_cost_too_much_are_made_coarser(make_dataset: Make) -> None:
    """A wide network on a patch that is embedded voxel by voxel costs more than three times nnU-Net's."""
    made: Any = planner_class("UNETRPPPlanner_W32")
    planner = made(make_dataset("tiny"))
    topology = planner.topology((1.0, 1.0, 1.0), (24, 24, 24))
    finer = planner._fitting((24, 24, 24), 0)
    stock = planner.stock_topology((1.0, 1.0, 1.0), (24, 24, 24))
    plain = planner._arithmetic(planner.stock_architecture(stock), stock.patch_size)
    ratio = planner._arithmetic(planner.architecture_block(finer), finer.patch_size) / plain
    assert ratio > MOST_COST
    assert finer.strides[1] == (1, 1, 1)
    assert topology.strides[1] == (1, 1, 2)


@pytest.mark.parametrize("recipe", RECIPES)
def test_published_settings(recipe: str, make_dataset: Make, plan: Plan, caplog: pytest.LogCaptureFixture) -> None:
    preset = PRESETS[RECIPES[recipe]]
    with caplog.at_level(logging.INFO):
        plans = plan(planner_class(f"UNETRPPPlanner_{recipe}"), make_dataset("lowres"))
    assert "3d_lowres" not in plans["configurations"]
    configuration = plans["configurations"]["3d_fullres"]
    arguments = configuration["architecture"]["arch_kwargs"]
    assert (tuple(configuration["patch_size"]), configuration["batch_size"]) == (preset.patch_size, preset.batch_size)
    assert arguments["strides"] == preset.strides
    assert arguments["sa_layout"] == "legacy"
    assert {key: arguments[key] for key in preset.options} == preset.options
    assert "needs a GPU with about" in caplog.text


@pytest.mark.parametrize(
    ("recipe", "count"), [("Synapse", 42_952_850), ("ACDC", 66_796_404), ("Lung", 121_174_798), ("BraTS", 42_647_604)]
)
def test_published_parameter_counts(recipe: str, count: int, make_dataset: Make, plan: Plan) -> None:
    preset = PRESETS[RECIPES[recipe]]
    plans = plan(planner_class(f"UNETRPPPlanner_{recipe}"), make_dataset("isotropic"))
    built = network(plans["configurations"]["3d_fullres"], preset.input_channels, preset.classes)
    assert sum(p.numel() for name, p in built.named_parameters() if "seg_layers.0" not in name) == count
