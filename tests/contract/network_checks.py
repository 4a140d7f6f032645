"""What nnU-Net asks of a network, one function a requirement; each raises AssertionError where it is not met.

A `NetworkCase` is a network as plans configure it. Nothing here knows a particular network.
"""

from __future__ import annotations

import inspect
import json
import pydoc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from measured import really_saved_bytes
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from torch import Tensor, nn

from nnunet_ext import registry
from nnunet_ext.architectures.blocks.memory import BYTES_PER_UNIT, REFERENCE_BATCH_SIZE, training_inputs
from nnunet_ext.architectures.graph import unused_parameters

CHANNELS, CLASSES = 2, 3
HEADS = ".seg_layers."
HALF_LIMIT = 65504 / 10 / 8  # nnU-Net adds logits, weighted with up to 10, of overlapping patches in float16


@dataclass(frozen=True)
class NetworkCase:
    """A network in plans.

    Attributes:
        entry: what is registered.
        architecture: the plans' block.
        patch_size: of the plans, (D, H, W) or (H, W).
        scales: nnU-Net's deep supervision scales, one factor an axis each; None where it is off.
    """

    entry: registry.NetworkEntry
    architecture: dict[str, Any]
    patch_size: tuple[int, ...]
    scales: list[list[float]] | None

    @property
    def arguments(self) -> dict[str, Any]:
        arguments: dict[str, Any] = self.architecture["arch_kwargs"]
        return arguments

    def build(self, classes: int = CLASSES, deep_supervision: bool | None = None, **changes: Any) -> Any:
        """The network as nnU-Net builds it; None leaves deep supervision to the constructor's default."""
        torch.manual_seed(0)
        return get_network_from_plans(
            self.architecture["network_class_name"],
            {**self.arguments, **changes},
            self.architecture["_kw_requires_import"],
            CHANNELS,
            classes,
            allow_init=True,
            deep_supervision=deep_supervision,
        )

    def image(self, batch: int = 1, patch_size: Sequence[int] | None = None) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        return torch.randn(batch, CHANNELS, *(patch_size or self.patch_size), generator=generator)

    def sizes(self) -> list[tuple[int, ...]]:
        """The sizes of nnU-Net's targets, one a deep supervision scale."""
        return [tuple(round(p * s) for p, s in zip(self.patch_size, scale, strict=True)) for scale in self.scales or []]


def check_dotted_name(case: NetworkCase) -> None:
    """The plans' dotted name is the registered class, and importable as nnU-Net imports it."""
    located = pydoc.locate(case.architecture["network_class_name"])
    assert located is registry.load(case.entry.target)
    assert inspect.isclass(located)
    assert issubclass(located, nn.Module)
    for name in case.architecture["_kw_requires_import"]:
        value = case.arguments[name]
        assert value is None or pydoc.locate(value) is not None, f"{name}: {value} cannot be imported"


def check_constructor(case: NetworkCase) -> None:
    """nnU-Net's argument names; without deep supervision by default, and no argument that plans don't have."""
    parameters = inspect.signature(type(case.build())).parameters
    assert {"input_channels", "num_classes", "deep_supervision"} <= parameters.keys()
    assert parameters["deep_supervision"].default is False
    assert isinstance(case.build().eval()(case.image()), Tensor)


def check_json(case: NetworkCase) -> None:
    """The architecture block is JSON and nothing is lost in the file."""
    again = json.loads(json.dumps(case.architecture))
    assert again == case.architecture


def check_meta_device(case: NetworkCase) -> None:
    """It can be built and run on the meta device, as planners do."""
    with torch.device("meta"):
        network = case.build()
        output = network(torch.empty(1, CHANNELS, *case.patch_size))
    assert {tensor.device.type for tensor in network.state_dict().values()} == {"meta"}
    assert tuple(output.shape) == (1, CLASSES, *case.patch_size)


def check_strict_load(case: NetworkCase) -> None:
    """Weights trained with deep supervision load strictly in the network that predicts, and give the same."""
    trained = case.build(deep_supervision=bool(case.scales))
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(0.01)
    predicting = case.build(deep_supervision=False)
    predicting.load_state_dict(trained.state_dict(), strict=True)
    with torch.inference_mode():
        output = trained.eval()(case.image())
        expected = output[0] if case.scales else output
        torch.testing.assert_close(predicting.eval()(case.image()), expected)


def check_head_names(case: NetworkCase) -> None:
    """Exactly the parameters that depend on the number of classes have ``.seg_layers.`` in their names."""
    few, many = case.build(CLASSES).state_dict(), case.build(CLASSES + 2).state_dict()
    assert few.keys() == many.keys(), "the names depend on the number of classes"
    dependent = {key for key in few if few[key].shape != many[key].shape}
    assert dependent
    assert dependent == {key for key in few if HEADS in key}


def check_registered_once(case: NetworkCase) -> None:
    """Every tensor of the state dict has one name, and parameters and buffers are all of them."""
    network = case.build()
    state = network.state_dict()
    assert len({tensor.data_ptr() for tensor in state.values()}) == len(state), "one tensor has several names"
    named = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    assert state.keys() <= named.keys()
    assert dict(network.named_parameters()).keys() <= state.keys()


def check_single_sample(case: NetworkCase) -> None:
    """Batches of one, training and predicting; logits of the input's size that are finite, and no probabilities."""
    network = case.build(deep_supervision=False)
    for mode in (True, False):
        with torch.no_grad():
            output = network.train(mode)(case.image())
        assert tuple(output.shape) == (1, CLASSES, *case.patch_size)
        assert output.dtype == torch.float32
        assert torch.isfinite(output).all()
        assert output.abs().max() < HALF_LIMIT
        assert not torch.allclose(output.sum(1), torch.ones(()), atol=1e-3), "softmax belongs to the loss"
        assert output.min() < 0 or output.max() > 1, "sigmoid belongs to the loss"


def check_output_owns_memory(case: NetworkCase) -> None:
    """nnU-Net's predictor changes outputs in place; that must not reach the input, the weights or a next output."""
    network = case.build(deep_supervision=False).eval()
    image = case.image()
    before = image.clone()
    with torch.inference_mode():
        first = network(image)
        kept = first.clone()
        first.mul_(2).add_(1)
        second = network(image)
        assert second.untyped_storage().data_ptr() != first.untyped_storage().data_ptr()
    assert torch.equal(image, before)
    torch.testing.assert_close(second, kept)


def check_deterministic(case: NetworkCase) -> None:
    """Two predictions are equal bit for bit, and a sample's does not depend on its neighbour in the batch."""
    network = case.build(deep_supervision=False).eval()
    pair = case.image(2)
    with torch.inference_mode():
        once, again = network(pair[:1]), network(pair[:1])
        torch.testing.assert_close(network(pair)[:1], once, rtol=1e-3, atol=1e-4)
    assert torch.equal(once, again)


def check_deep_supervision(case: NetworkCase) -> None:
    """Outputs as nnU-Net's targets: number, order, size; switched by ``decoder.deep_supervision`` at call time."""
    if not case.scales:
        assert isinstance(case.build(deep_supervision=False).train()(case.image()), Tensor)
        return
    network = case.build(deep_supervision=True).train()
    outputs = network(case.image())
    assert isinstance(outputs, (list, tuple))
    assert [tuple(o.shape) for o in outputs] == [(1, CLASSES, *size) for size in case.sizes()]
    network.decoder.deep_supervision = False
    single = network(case.image())
    assert isinstance(single, Tensor)
    assert tuple(single.shape) == (1, CLASSES, *case.patch_size)
    network.decoder.deep_supervision = True
    assert len(network.eval()(case.image())) == len(outputs), "the trainer's validation step takes the first of several"


def check_gradients(case: NetworkCase) -> None:
    """Every parameter gets a gradient in a training step (DDP waits for all of them)."""
    with torch.device("meta"):
        network = case.build(deep_supervision=bool(case.scales)).train()
        inputs = training_inputs(network, case.patch_size, CHANNELS)
    assert list(unused_parameters(network, *inputs)) == []


def refusal(case: NetworkCase) -> str | None:
    """What the network says against the case's patch (a ValueError); None where it takes it."""
    network = case.build()
    try:
        getattr(network, "check_patch_size", network.eval())(
            case.patch_size if hasattr(network, "check_patch_size") else case.image()
        )
    except ValueError as error:
        return str(error)
    return None


def check_impossible_patches(case: NetworkCase) -> None:
    """One voxel more along an axis: right outputs, or a ValueError that names the size, before and in the forward."""
    for axis in range(len(case.patch_size)):
        size = tuple(edge + (i == axis) for i, edge in enumerate(case.patch_size))
        other = NetworkCase(case.entry, case.architecture, size, case.scales)
        said = refusal(other)
        if said is None:
            check_single_sample(other)
            check_deep_supervision(other)
        else:
            assert str(size) in said, f"the message does not name the patch: {said}"


def check_memory(case: NetworkCase) -> None:
    """The planner's count is less for a smaller patch, and within 1 % what autograd keeps on a CPU (patch not tiny)."""
    counts = []
    for factor in (1, 2):
        larger = tuple(factor * p for p in case.patch_size)
        fixed: dict[str, Any] = (
            {"patch_size": list(larger)} if "patch_size" in case.arguments else {}
        )  # networks for one patch size
        network = case.build(deep_supervision=bool(case.scales), **fixed)
        counts.append(network.compute_conv_feature_map_size(larger))
    assert all(isinstance(count, int) for count in counts)
    assert counts[0] < counts[1]
    saved = really_saved_bytes(network, (REFERENCE_BATCH_SIZE, CHANNELS, *larger))
    assert counts[1] * BYTES_PER_UNIT == pytest.approx(saved, rel=0.01)


def check_other_dimensions(case: NetworkCase) -> None:
    """Dimensions that the entry does not claim are refused, by the constructor where it is asked for them."""
    for dimension in {2, 3} - set(case.entry.dimensions):
        patch = (16,) * dimension
        if "conv_op" in case.arguments:
            with pytest.raises(NotImplementedError):
                case.build(conv_op=f"torch.nn.Conv{dimension}d")
        with pytest.raises((ValueError, NotImplementedError)):
            case.build()(case.image(patch_size=patch))


SHAPE_CHECKS: tuple[Callable[[NetworkCase], None], ...] = (
    check_single_sample,
    check_output_owns_memory,
    check_deep_supervision,
    check_impossible_patches,
)
"""What depends on the patch."""

CHECKS: tuple[Callable[[NetworkCase], None], ...] = (
    *SHAPE_CHECKS,
    check_meta_device,
    check_dotted_name,
    check_constructor,
    check_json,
    check_strict_load,
    check_head_names,
    check_registered_once,
    check_deterministic,
    check_gradients,
    check_memory,
    check_other_dimensions,
)
