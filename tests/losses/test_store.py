"""Features of a network: which ones, when, under compile and DDP, and what is said where there are none."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import kd_networks
import kd_step
import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

from nnunet_ext.losses.points import KDPoint, KDPoints, points_of
from nnunet_ext.losses.self_regularisation import Features, SelfRegularisation
from nnunet_ext.losses.store import FeatureStore, capture

Shapes = list[tuple[int, ...]]


def shapes(stages: Any) -> Shapes:
    return [tuple(piece.shape) for stage in stages for pieces in stage for piece in pieces]


def names(stages: tuple[tuple[KDPoint, ...], ...]) -> list[str]:
    return [point.module for stage in stages for point in stage]


# ------------------------------------------------------------------------------------------------------- which features


@pytest.mark.parametrize("residual", [False, True])
def test_nnunets_networks_in_two_dimensions(residual: bool) -> None:
    network = kd_networks.u_net(residual=residual)
    points = points_of(network)
    assert names(points.encoder) == ["encoder.stages.1", "encoder.stages.2"]
    assert (names(points.decoder), points.teacher.module) == (["decoder.stages.0"], "decoder.stages.1")
    _, features = kd_networks.captured(network, torch.randn(2, 1, 16, 24))
    assert shapes(features.encoder) == [(2, 6, 8, 12), (2, 7, 4, 6)]
    assert shapes(features.decoder) == [(2, 6, 8, 12)]
    assert [tuple(t.shape) for t in features.teacher] == [(2, 4, 16, 24)]


def test_anisotropic_strides_in_three_dimensions() -> None:
    network = kd_networks.u_net(3, 4, strides=[[1, 1, 1], [1, 2, 2], [2, 2, 2], [1, 2, 2]])
    _, features = kd_networks.captured(network, torch.randn(1, 1, 4, 16, 24))
    assert shapes(features.encoder) == [(1, 6, 4, 8, 12), (1, 7, 2, 4, 6), (1, 8, 2, 2, 3)]
    assert shapes(features.decoder) == [(1, 7, 2, 4, 6), (1, 6, 4, 8, 12)]
    assert all(torch.isfinite(value) for value in vars(SelfRegularisation()(features)).values())


def test_two_stages() -> None:
    _, features = kd_networks.captured(kd_networks.u_net(stages=2), torch.randn(1, 1, 8, 8))
    assert shapes(features.encoder) == [(1, 6, 4, 4)]
    assert features.decoder == []


@pytest.mark.parametrize("patch", [(16, 32, 32), (32, 48)])
def test_unetrpp(patch: tuple[int, ...]) -> None:
    network = kd_networks.unetrpp(patch)
    points = points_of(network)
    assert names(points.encoder) == [f"encoder.stages.{i}" for i in range(3)]
    assert (names(points.decoder), points.teacher.module) == (
        ["decoder.stages.0", "decoder.stages.1"],
        "decoder.stages.2",
    )
    _, features = kd_networks.captured(network, torch.randn(1, 1, *patch))
    half = tuple(edge // 2 for edge in patch)
    assert shapes(features.encoder)[0][2:] == shapes(features.decoder)[-1][2:] == half
    assert tuple(features.teacher[0].shape) == (1, 4, *patch)


def test_sshunet_gives_a_map_of_every_view() -> None:
    strides = ((1, 1, 1), (1, 2, 2), (2, 2, 2))
    _, features = kd_networks.captured(kd_networks.sshunet(strides), torch.randn(1, 1, 4, 16, 24))
    assert len(features.teacher) == 3
    assert [tuple(piece.shape) for piece in features.encoder[0][0]] == 3 * [(1, 8, 4, 8, 12)]


def test_sshunets_loss_is_the_same_for_batched_and_sequential_views() -> None:
    network = kd_networks.sshunet()
    x = torch.randn(2, 1, 16, 16, 16)
    found = []
    for execution in ("batched", "sequential"):
        network.view_execution = execution
        network.zero_grad()
        _, features = kd_networks.captured(network, x)
        terms = SelfRegularisation()(features)
        (terms.scr + terms.ifd).backward()
        found.append((len(features.teacher), terms, kd_step.gradients(network)))
    (batched, one, gradient), (sequential, other, again) = found
    assert (batched, sequential) == (1, 3)
    torch.testing.assert_close((one.scr, one.ifd), (other.scr, other.ifd))
    assert float((gradient - again).norm() / gradient.norm()) < 1e-4


def test_a_foreign_network_states_its_points_in_ten_lines() -> None:
    network = kd_step.StatedForeign()
    output, features = kd_networks.captured(network, torch.randn(2, 1, 8, 12))
    assert output.shape == (2, 3, 8, 12)
    assert shapes(features.encoder) == [(2, 6, 4, 6)]
    assert shapes(features.decoder) == [(2, 5, 4, 6)]
    terms = SelfRegularisation()(features)
    (terms.scr + terms.ifd).backward()
    assert all(p.grad is not None for p in [*network.deep.parameters(), *network.bottom.parameters()])


def test_a_foreign_network_without_points_is_told_how() -> None:
    with pytest.raises(NotImplementedError, match=r"features of Foreign: give the network a method `kd_points\(self\)"):
        FeatureStore(kd_step.Foreign())


def test_a_name_that_is_no_module_is_said() -> None:
    network: Any = kd_step.Foreign()
    network.kd_points = lambda: KDPoints(((KDPoint("deeper"),),), (), KDPoint("join"))
    with pytest.raises(ValueError, match=r"Foreign has no module 'deeper', which its kd_points\(\) names"):
        FeatureStore(network)


def test_a_network_of_one_stage_has_nothing_to_teach() -> None:
    network: Any = nn.Module()
    for part in ("encoder", "decoder"):
        network.add_module(part, nn.Module())
        getattr(network, part).stages = nn.ModuleList([nn.Conv2d(1, 1, 1)])
    with pytest.raises(ValueError, match="no stages that could be taught; KD needs at least two stages"):
        points_of(network)


# ----------------------------------------------------------------------------------------------------------------- when


def test_nothing_is_stored_but_in_training() -> None:
    network = kd_networks.u_net()
    with capture(network) as store:
        network.eval()(torch.randn(1, 1, 16, 24))
        assert store.take() is None
        network.train()
        with torch.no_grad():
            network(torch.randn(1, 1, 16, 24))
        assert store.take() is None
        assert not any(store.taken.values())
        network(torch.randn(1, 1, 16, 24))
        assert store.take() is not None
        assert store.take() is None  # once
        assert not any(store.taken.values())


def test_an_aborted_step_leaves_nothing_behind() -> None:
    network = kd_networks.u_net().train()
    with capture(network) as store:
        for size in (16, 24):
            network(torch.randn(1, 1, size, 24))
        features = store.take()
        assert features is not None
        assert [tuple(t.shape) for t in features.teacher] == [(1, 4, 24, 24)]


def test_hooks_are_gone_after_the_capture_and_names_unchanged() -> None:
    network = kd_networks.u_net()
    before = list(network.state_dict())
    with capture(network) as store:
        assert list(network.state_dict()) == before
    network.train()(torch.randn(1, 1, 16, 24))
    assert not store.armed
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


def test_modules_that_are_not_called_are_said() -> None:
    class Idle(kd_step.StatedForeign):
        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.head(self.wide(x))
            return y

    network = Idle()
    with capture(network) as store:
        network(torch.randn(1, 1, 8, 12))
        with pytest.raises(RuntimeError, match="KD got no features of deep, bottom, join in a training forward"):
            store.take()


def test_recomputed_activations_are_not_taken_again() -> None:
    """Activation checkpointing calls modules once more in the backward pass."""
    network: Any = kd_networks.u_net().train()
    stage = network.encoder.stages[1]
    network.encoder.stages[1] = Checkpointed(stage)
    with capture(network) as store:
        kd_step.step(network, store, torch.randn(1, 1, 16, 24))
        assert store.take() is None
        assert not any(store.taken.values())


class Checkpointed(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Any:
        return torch.utils.checkpoint.checkpoint(self.inner, x, use_reentrant=False)


# ------------------------------------------------------------------------------------------------------ compile and DDP


@pytest.mark.parametrize("name", ["u_net", "sshunet"])
def test_a_compiled_network_is_one_graph_with_the_same_loss_and_gradients(name: str) -> None:
    """SSH-UNet's stages are called three times; its backward graph takes long to make and has a test elsewhere."""
    network = getattr(kd_networks, name)().train()
    x, backend = (torch.randn(1, 1, 16, 16), "aot_eager") if name == "u_net" else (torch.randn(1, 1, 8, 8, 8), "eager")
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    found = []
    with capture(network) as store:
        for function in (network, torch.compile(network, backend=backend, fullgraph=True)):
            network.zero_grad()
            found.append((kd_step.step(function, store, x), kd_step.gradients(network)))
    (eager, expected), (compiled, gradient) = found
    torch.testing.assert_close(compiled, eager)
    assert float((gradient - expected).norm() / expected.norm()) < 1e-4
    assert not torch._dynamo.utils.counters["graph_break"]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_evaluation_of_a_compiled_network_stores_nothing() -> None:
    network = kd_networks.u_net().train()
    compiled: Any = torch.compile(network, backend="eager", fullgraph=True)
    x = torch.randn(1, 1, 16, 16)
    torch._dynamo.reset()
    with capture(network) as store:
        compiled(x)
        assert isinstance(store.take(), Features)
        network.eval()
        with torch.no_grad():
            compiled(x)
        assert store.take() is None
        network.train()
        compiled(x)
        assert isinstance(store.take(), Features)


def test_hooks_after_the_first_compiled_call_are_said() -> None:
    """They are not compiled in, but for the root's."""
    network = kd_networks.u_net().train()
    torch._dynamo.reset()
    compiled: Any = torch.compile(network, backend="eager")
    x = torch.randn(1, 1, 16, 16)
    compiled(x)
    with capture(network) as store:
        compiled(x)
        with pytest.raises(RuntimeError, match="the network was compiled and called before KD was attached"):
            store.take()


def test_two_processes_get_the_averaged_gradients(tmp_path: Path) -> None:
    other = spawn(kd_step.other_process, (str(tmp_path),), nprocs=1, join=False)
    found = kd_step.parallel_step(0, str(tmp_path))
    assert other is not None
    assert other.join()
    expected = []
    for half in kd_step.halves():
        network = kd_step.seeded()
        with capture(network) as store:
            kd_step.step(network, store, half)
        expected.append(kd_step.gradients(network))
    torch.testing.assert_close(found, (expected[0] + expected[1]) / 2, rtol=1e-5, atol=1e-7)


class Overwriting(nn.Module):
    """Changes a stage's result in place after the stage."""

    def __init__(self) -> None:
        super().__init__()
        self.low, self.high = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.low(x)
        y += 10
        high: Tensor = self.high(y)
        return high


OVERWRITTEN = KDPoints(((KDPoint("low"),),), (), KDPoint("high"))


def test_an_overwritten_feature_is_said() -> None:
    network = Overwriting()
    with capture(network, OVERWRITTEN) as store:
        network(torch.randn(1, 1, 8, 8))
        with pytest.raises(RuntimeError, match="feature low was overwritten"):
            store.take()


def test_modules_called_unequally_are_said() -> None:
    network = Overwriting()
    with capture(network, OVERWRITTEN) as store:
        x = torch.randn(1, 1, 8, 8)
        network(x)
        network.low(x)
        with pytest.raises(RuntimeError, match=r"equally often.*'low': 2"):
            store.take()


def test_copies_do_not_fill_the_originals_store() -> None:
    network = Overwriting()
    with capture(network, OVERWRITTEN) as store:
        for twin in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
            twin(torch.randn(1, 1, 8, 8))
        assert not any(store.taken.values())
