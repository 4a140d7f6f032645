"""The measured memory: equal to what autograd really keeps, and in nnU-Net's units."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from measured import really_saved_bytes
from torch import Tensor, nn

from nnunet_ext.architectures.blocks.memory import (
    BYTES_PER_UNIT,
    conv_feature_map_units,
    kept_for_backward,
    saved_bytes,
)
from nnunet_ext.architectures.sshunet import SSHUNet
from nnunet_ext.architectures.sshunet_plans import sshunet_architecture

CLASSES = (2, 14, 118)


def nnunet_network(
    cls: type[nn.Module] = PlainConvUNet,
    classes: int = 3,
    dim: int = 3,
    stages: int = 5,
    width: int = 32,
    channels: int = 1,
    deep_supervision: bool = True,
) -> Any:
    """nnU-Net's own network as its planner would configure it."""
    blocks = "n_conv_per_stage" if cls is PlainConvUNet else "n_blocks_per_stage"
    in_decoder = 2 if cls is PlainConvUNet else 1
    network: Any = cls(
        input_channels=channels,
        n_stages=stages,
        features_per_stage=[min(width * 2**i, 10 * width) for i in range(stages)],
        conv_op=nn.Conv3d if dim == 3 else nn.Conv2d,
        kernel_sizes=3,
        strides=[1] + [2] * (stages - 1),
        num_classes=classes,
        **{blocks: ([2] * stages if cls is PlainConvUNet else [1, 3, 4, 6, 6, 6][:stages])},
        n_conv_per_stage_decoder=[in_decoder] * (stages - 1),
        conv_bias=True,
        norm_op=nn.InstanceNorm3d if dim == 3 else nn.InstanceNorm2d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        deep_supervision=deep_supervision,
    )
    network.input_channels = channels
    return network


@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("size", [(128, 128, 128), (64, 96, 160), (48, 192, 192), (512, 448)])
def test_a_unit_of_nnunets_count_is_sixteen_bytes(classes: int, size: tuple[int, ...]) -> None:
    with torch.device("meta"):
        network = nnunet_network(classes=classes, dim=len(size))
    counted = network.compute_conv_feature_map_size(size)
    assert saved_bytes(network, size, 1) / counted == pytest.approx(BYTES_PER_UNIT, rel=1e-3)
    assert conv_feature_map_units(network, size) == pytest.approx(counted, rel=1e-3)


@pytest.mark.parametrize("cls", [PlainConvUNet, ResidualEncoderUNet])
@pytest.mark.parametrize("size", [(32, 32, 32), (16, 48, 32)])
def test_the_estimate_is_what_autograd_really_keeps(cls: type[nn.Module], size: tuple[int, ...]) -> None:
    network = nnunet_network(cls, stages=4, width=8, channels=2)
    assert saved_bytes(network, size, 2) == pytest.approx(really_saved_bytes(network, (2, 2, *size)), rel=0.01)


@pytest.mark.parametrize(
    "options",
    [{}, {"gate": "gsm"}, {"gate": "gsf"}, {"fusion": "vfn"}, {"decoder_block": "basic"}],
    ids=["tsm", "gsm", "gsf", "vfn", "basic"],
)
@pytest.mark.parametrize("size", [(48, 48, 48), (32, 48, 64)])
def test_the_estimate_holds_for_sshunet(options: dict[str, Any], size: tuple[int, ...]) -> None:
    """On a CPU the network also keeps channels-last copies of its weights and inputs, so not for a tiny patch."""
    strides = [[1, 1, 1], [2, 2, 2], [2, 2, 2], [1, 2, 2]]
    kwargs = sshunet_architecture(strides, base_width=8, **options)["arch_kwargs"]
    operations = {"conv_op": nn.Conv3d, "norm_op": nn.InstanceNorm3d, "nonlin": nn.LeakyReLU}
    network = SSHUNet(1, num_classes=3, deep_supervision=True, **{**kwargs, **operations})
    estimate = saved_bytes(network, size, 1)
    assert estimate == pytest.approx(really_saved_bytes(network, (2, 1, *size)), rel=0.01)
    assert network.compute_conv_feature_map_size(size) == round(estimate / BYTES_PER_UNIT)


def test_the_device_of_the_network_and_its_state_do_not_matter() -> None:
    real = nnunet_network(stages=3, width=8, deep_supervision=False).eval()
    before = {key: value.clone() for key, value in real.state_dict().items()}
    with torch.device("meta"):
        meta = nnunet_network(stages=3, width=8)
    with torch.inference_mode():
        assert saved_bytes(real, (16, 16, 16), 1) == saved_bytes(meta, (16, 16, 16), 1)
    assert all(torch.equal(before[key], value) for key, value in real.state_dict().items())
    assert saved_bytes(real.half(), (16, 16, 16), 1) == saved_bytes(meta, (16, 16, 16), 1)
    assert not real.training
    assert not real.decoder.deep_supervision
    assert {p.device.type for p in real.parameters()} == {"cpu"}


def test_it_grows_with_batch_and_patch() -> None:
    with torch.device("meta"):
        network = nnunet_network(stages=3, width=8)
    one = saved_bytes(network, (32, 32, 32), 1, batch_size=1)
    assert saved_bytes(network, (32, 32, 32), 1, batch_size=4) == pytest.approx(4 * one, rel=1e-3)
    assert saved_bytes(network, (32, 32, 64), 1, batch_size=1) == pytest.approx(2 * one, rel=1e-3)


class _Square(torch.autograd.Function):
    """Keeps its input for backward, as a fused block of ours does."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 2 * x * gradient


class _Toy(nn.Module):
    """Adds one parameter to the input, then squares: keeps one tensor of the input's size, returns another."""

    def __init__(self) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> dict[str, list[Tensor]]:
        return {"out": [_Square.apply(x + self.offset)]}


def test_custom_functions_views_and_nested_outputs_are_counted_once() -> None:
    voxels = 2 * 1 * 4 * 4 * 4
    assert saved_bytes(_Toy(), (4, 4, 4), 1) == (1 + 2) * voxels * 4

    weight = torch.ones(10, requires_grad=True)
    x = torch.ones(10)

    def forward() -> Tensor:
        y = weight * x  # keeps x and the weight: both excluded below
        return y.view(2, 5) * y.view(2, 5)  # keeps y, three times the same storage

    assert kept_for_backward(forward, exclude=[x, weight]) == 10 * 4 + 2 * 10 * 4


def test_a_network_may_bring_its_own_inputs() -> None:
    class Points(_Toy):
        def memory_probe(self, patch_size: tuple[int, ...], batch_size: int) -> tuple[Tensor]:
            assert patch_size == (4, 4, 4)
            return (torch.empty(batch_size, 7, device=self.offset.device),)

    assert saved_bytes(Points(), (4, 4, 4), 1, batch_size=3) == 3 * 3 * 7 * 4
