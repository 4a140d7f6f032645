"""Whole cases through published OSS-Nets: how the authors prepared and decoded them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from nnunet_ext.architectures.ossnet_plans import ossnet_architecture
from nnunet_ext.inference import published_decoding
from nnunet_ext.inference.predict_volume_command import add_arguments
from nnunet_ext.inference.published_decoding import expedited_labels, standard_labels
from nnunet_ext.inference.published_volume import MODES, normalise, padding, predict_published
from nnunet_ext.weights.transfer import build_network

GRID = (32, 32, 16)
CASE = (27, 32, 13)


@pytest.fixture(scope="module")
def network() -> Any:
    """A small variant D whose classes are about as frequent."""
    block = ossnet_architecture(GRID, "D", decoder_width=12, decoder_blocks=2)
    net: Any = build_network(block, 1, 2, seed=3).eval()
    features: list[Tensor] = []
    hook = net.decoder.seg_layers[0].register_forward_hook(lambda _m, inputs, _o: features.append(inputs[0][0]))
    net.decode_mode = "dense"
    with torch.no_grad():
        net(torch.randn(1, 1, *GRID, generator=torch.Generator().manual_seed(1)))
        hook.remove()
        mean = torch.cat(features).mean(0)
        head = net.decoder.seg_layers[0].weight
        head -= (head @ mean)[:, None] / (mean @ mean) * mean
    net.decode_mode = "adaptive"
    return net


def image(shape: Sequence[int] = CASE) -> np.ndarray:
    return np.random.default_rng(5).normal(40, 9, (1, *shape)).astype(np.float32)


def dense_labels(network: Any, x: Tensor) -> np.ndarray:
    """Labels of the network's own grid."""
    network.decode_mode = "dense"
    with torch.no_grad():
        labels: np.ndarray = network(x[None])[0].argmax(0).numpy()
    network.decode_mode = "adaptive"
    return labels


def test_brats_is_padded_and_cropped_back(network: Any) -> None:
    """Three voxels before and two behind, two before and one behind (specification ossnet 2.1)."""
    assert padding((240, 240, 155), (256, 256, 160)) == [(8, 8), (8, 8), (3, 2)]
    case = image()
    padded = functional.pad(normalise(torch.from_numpy(case)), (2, 1, 0, 0, 3, 2))
    expected = dense_labels(network, padded)[3:30, :, 2:15]
    found = predict_published(network, case, "brats2020", "dense")
    assert found.dtype == np.uint8
    assert found.shape == CASE
    assert 0.1 < found.mean() < 0.9
    np.testing.assert_array_equal(found, expected)
    in_slabs = predict_published(network, case, "brats2020", "dense", slab_voxels=5 * 32 * 13)
    np.testing.assert_array_equal(in_slabs, expected)


def test_lits_is_resized_and_asked_at_its_own_voxels(network: Any) -> None:
    case = image((16, 48, 16))
    normal = normalise(torch.from_numpy(case))
    resized = functional.interpolate(normal[None], GRID, mode="trilinear", align_corners=False)
    axes = [torch.arange(16) * 2 + 0.5, (torch.arange(48) + 0.5) * 2 / 3 - 0.5, torch.arange(16.0)]
    coords = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).view(1, -1, 3)
    with torch.no_grad():
        expected = network.decode(network.encode(resized), coords, resized)[0].argmax(0).view(16, 48, 16)
    np.testing.assert_array_equal(predict_published(network, case, "lits", "dense"), expected.numpy())


def test_modes(network: Any) -> None:
    """Adaptive decoding agrees with the dense one; the original's only removes foreground."""
    case = image()
    dense = predict_published(network, case, "brats2020", "dense")
    assert (predict_published(network, case, "brats2020") == dense).mean() > 0.95
    reference = predict_published(network, case, "brats2020", "reference")
    assert reference.any()
    assert not reference[dense == 0].any()
    wide = predict_published(network, image((16, 48, 16)), "lits", "reference")
    assert wide.shape == (16, 48, 16)


def test_channels_are_normalised_over_all_voxels() -> None:
    x = torch.stack([torch.arange(24.0).view(2, 3, 4), torch.full((2, 3, 4), 7.0)])
    normal = normalise(x)
    torch.testing.assert_close(normal[0], (x[0] - 11.5) / x[0].std())
    assert not normal[1].any()


@pytest.mark.parametrize(
    ("case", "adapter", "mode", "message"),
    [
        (image(), "kits", "dense", "brats2020, lits and mode"),
        (image(), "lits", "fast", "dense, adaptive, budget, reference; got 'lits' and 'fast'"),
        (image((33, 8, 8)), "brats2020", "dense", "33 x 8 x 8 voxels, more than the 32 x 32 x 16"),
        (np.repeat(image(), 2, 0), "lits", "dense", r"with 1 channels; got \(2, 27, 32, 13\)"),
        (image() * np.nan, "lits", "dense", "not numbers or infinite"),
    ],
)
def test_impossible_cases_are_refused(network: Any, case: np.ndarray, adapter: str, mode: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        predict_published(network, case, adapter, mode)


def test_predict_volume_offers_every_mode() -> None:
    """Its parser lists them by itself: it reads no torch."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    offered = next(action.choices for action in parser._actions if action.dest == "mode")
    assert sorted(offered or ()) == sorted(MODES)


# ---------------------------------------------------------------------------------------------- the authors' decoding


class Solid:
    """Probabilities of a known segmentation, and the voxels that were asked for."""

    def __init__(self, truth: Tensor) -> None:
        self.truth, self.asked = truth, torch.zeros_like(truth)

    def __call__(self, index: Tensor) -> Tensor:
        where = tuple(index.mT)
        self.asked[where] = True
        return self.truth[where].float()


def ball(size: int = 24, radius: float = 7) -> Tensor:
    axis = torch.arange(size) - size // 2
    return axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2 <= radius**2


def test_interiors_are_evaluated_and_small_components_lost() -> None:
    truth = ball()
    truth[1:3, 1:3, 1:3] = True  # between the points of the first stage
    solid = Solid(truth)
    found = standard_labels(solid, truth.shape)
    assert torch.equal(found, ball())
    assert solid.asked[ball()].all()
    assert solid.asked.float().mean() < 0.5


def test_the_head_removes_what_it_does_not_see() -> None:
    truth = ball() | ball().roll(11, 0)
    coarse = torch.zeros(1, 1, 3, 3, 3)
    assert not expedited_labels(Solid(truth), truth.shape, coarse).any()
    coarse += 1
    assert torch.equal(expedited_labels(Solid(truth), truth.shape, coarse), standard_labels(Solid(truth), truth.shape))


def test_sizes_that_four_does_not_divide() -> None:
    truth = ball(23, 8)
    found = expedited_labels(Solid(truth), truth.shape, torch.ones(1, 1, 2, 2, 2))
    assert torch.equal(found, standard_labels(Solid(truth), truth.shape))
    assert found.sum() > 0.95 * truth.sum()


@pytest.mark.parametrize("radius", [1, 4, 30])
def test_dilation_is_a_maximum_filter(radius: int) -> None:
    labels = torch.rand(20, 9, 7, generator=torch.Generator().manual_seed(1)) > 0.97
    expected = functional.max_pool3d(functional.pad(labels.float(), [radius] * 6)[None], 2 * radius + 1, 1)[0] > 0
    assert torch.equal(published_decoding._dilated(labels, radius), expected)
