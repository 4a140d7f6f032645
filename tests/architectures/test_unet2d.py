"""The paper's plain 2D U-Net: counts, sizes, features, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from nnunet_ext.architectures.unet2d import PublishedUNet2d, unet2d_architecture
from nnunet_ext.losses.points import points_of


def network(width: int = 4, upsampling: str = "bilinear", channels: int = 1, classes: int = 3, **changes: Any) -> Any:
    arguments = {**unet2d_architecture(width, upsampling)["arch_kwargs"], "conv_op": nn.Conv2d, **changes}
    return PublishedUNet2d(channels, classes, **arguments)


@pytest.mark.parametrize(("upsampling", "millions", "entries"), [("bilinear", 17.26, 110), ("transposed", 31.04, 118)])
def test_published_counts(upsampling: str, millions: float, entries: int) -> None:
    """Specification selfreg 2.1."""
    with torch.device("meta"):
        made = network(64, upsampling, classes=9)
    assert sum(p.numel() for p in made.parameters()) / 1e6 == pytest.approx(millions, abs=0.005)
    assert len(made.state_dict()) == entries


@pytest.mark.parametrize("upsampling", ["bilinear", "transposed"])
@pytest.mark.parametrize("size", [(16, 16), (70, 54), (33, 17)])
def test_images_of_any_size(upsampling: str, size: tuple[int, int]) -> None:
    assert network(upsampling=upsampling).eval()(torch.randn(1, 1, *size)).shape == (1, 3, *size)


def test_features_for_self_regularisation() -> None:
    points = points_of(network())
    assert [p.module for p in points.students] == [*(f"down{i}" for i in range(1, 5)), *(f"up{i}" for i in range(1, 4))]
    assert points.teacher.module == "up4"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"conv_op": nn.Conv3d}, "2D network"),
        ({"deep_supervision": True}, "nnUNetTrainerNoDeepSupervision"),
        ({"upsampling": "nearest"}, "choose bilinear or transposed"),
        ({"features_per_stage": [4, 8, 16, 32, 64]}, r"features_per_stage \[4, 8, 16, 32, 32\]"),
        ({"n_stages": 4}, "n_stages 5"),
    ],
)
def test_impossible_arguments_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises((ValueError, NotImplementedError), match=said):
        network(**changes)


@pytest.mark.parametrize("size", [(15, 16), (16, 16, 16)])
def test_impossible_images_are_refused(size: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="at least 16 x 16 pixels"):
        network()(torch.zeros(1, 1, *size))


def test_its_memory_is_measured() -> None:
    assert 0 < network().compute_conv_feature_map_size((32, 32)) < network().compute_conv_feature_map_size((64, 32))
