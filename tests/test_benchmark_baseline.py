"""The benchmarks' baselines are the published networks: the authors' fixtures would show it if they were not."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import golden_tools
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from nnunet_ext.architectures.blocks.memory import kept_for_backward

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture
def benchmark_module(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module(getattr(request, "param", "sshunet_baseline"))


@pytest.mark.parametrize(
    ("benchmark_module", "fixtures", "large"),
    [("sshunet_baseline", 8, ()), ("unetrpp_baseline", 11, ("lung_small", "tumor_small", "synapse_full"))],
    indirect=["benchmark_module"],
)
def test_every_fixture_that_it_covers_passes(
    benchmark_module: ModuleType,
    fixtures: int,
    large: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Large ones are left to the benchmark, which stops where one fails."""
    assert len(benchmark_module.FIXTURES) == fixtures
    monkeypatch.setattr(benchmark_module, "FIXTURES", [f for f in benchmark_module.FIXTURES if f not in large])
    assert benchmark_module.main(["--check"]) == 0
    assert capsys.readouterr().out.count(" ok") == fixtures - len(large)


@pytest.mark.parametrize("name", ["tsm_small", "tsm_vfn_small"])
def test_a_shift_the_other_way_is_noticed(
    benchmark_module: ModuleType, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    forward = benchmark_module.SliceShift.forward
    monkeypatch.setattr(benchmark_module.SliceShift, "forward", lambda self, x: forward(self, x.flip(2)).flip(2))
    assert benchmark_module.fixture_error(golden_tools, GOLDEN / "sshunet" / name) > 100 * benchmark_module.TOLERANCE


@pytest.mark.parametrize("benchmark_module", ["unetrpp_baseline"], indirect=True)
@pytest.mark.parametrize("name", ["epa_synapse", "epa_acdc", "epa_tumor"])
def test_a_norm_over_the_channels_is_noticed(
    benchmark_module: ModuleType, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    normalize = functional.normalize
    monkeypatch.setattr(functional, "normalize", lambda x, dim: normalize(x, dim=-2))
    assert benchmark_module.fixture_error(golden_tools, GOLDEN / "unetrpp" / name) > 100 * benchmark_module.TOLERANCE


@pytest.mark.parametrize(
    ("gate", "vfn", "parameters"),
    [("tsm", False, 6_480_142), ("gsm", False, 6_513_854), ("gsf", False, 6_488_886), ("tsm", True, 11_096_076)],
)
def test_parameter_counts_are_the_published_ones(
    benchmark_module: ModuleType, gate: str, vfn: bool, parameters: int
) -> None:
    network: nn.Module = benchmark_module.published(gate, 14, vfn)
    assert sum(p.numel() for p in network.parameters()) == parameters


@pytest.mark.parametrize("benchmark_module", ["unetrpp_baseline"], indirect=True)
@pytest.mark.parametrize(
    ("variant", "channels", "classes", "parameters", "megabytes"),
    [
        ("synapse", 1, 14, 42_952_850, 2180),
        ("acdc", 1, 4, 66_796_404, 1544),
        ("lung", 1, 2, 121_174_798, 4441),
        ("tumor", 4, 4, 42_647_604, 2814),
    ],
)
def test_unetrpp_has_the_authors_parameters_and_keeps_what_their_code_keeps(
    benchmark_module: ModuleType, variant: str, channels: int, classes: int, parameters: int, megabytes: int
) -> None:
    """Specification unetrpp 3: float32, a batch of one, training mode. Without memory, on the meta device."""
    with torch.device("meta"):
        network: nn.Module = benchmark_module.PublishedUNETRPP(variant, channels, classes)
        x = torch.empty(1, channels, *benchmark_module.VARIANTS[variant].patch)
    assert sum(p.numel() for p in network.parameters()) == parameters
    outputs: list[Tensor] = []

    def forward() -> None:
        outputs.extend(network.train()(x))

    kept = kept_for_backward(forward, exclude=[x, *network.parameters()])
    assert len(outputs) == 3
    assert kept / 1e6 == pytest.approx(megabytes, rel=0.05)


@pytest.mark.parametrize("benchmark_module", ["unetrpp"], indirect=True)
def test_unetrpp_is_timed_only_if_both_formulations_are_equal(benchmark_module: ModuleType) -> None:
    pair = benchmark_module.build_pair((16, 64, 64), features=4)
    found = benchmark_module.equality(pair, "cpu", torch.float64)
    assert found.outputs < 1e-10
    assert found.gradients < 1e-6
    with torch.no_grad():
        pair.ours.get_parameter("decoder.stages.2.1.attention.spatial_temperature").mul_(1.01)
    with pytest.raises(RuntimeError, match=r"Not the same network in torch\.float64"):
        benchmark_module.equality(pair, "cpu", torch.float64)


@pytest.mark.parametrize("benchmark_module", ["unetrpp"], indirect=True)
def test_dropout_is_switched_in_both_formulations(benchmark_module: ModuleType) -> None:
    pair = benchmark_module.build_pair((16, 32, 32), features=4)
    networks = (pair.published.train(), pair.ours.train())
    x = torch.ones(2, 1, 16, 32, 32)
    for on in (True, False):
        benchmark_module.set_dropout(networks, on)
        for network in networks:
            assert torch.equal(network(x)[0], network(x)[0]) != on


@pytest.mark.parametrize("benchmark_module", ["measure"], indirect=True)
def test_what_is_kept_for_backward_is_counted_once(benchmark_module: ModuleType) -> None:
    x, weight = torch.ones(1000), torch.ones(1000, requires_grad=True)
    with benchmark_module.KeptForBackward([x, weight]) as kept:
        y = x * weight  # keeps x, which is excluded
        assert kept.bytes == 0
        z = y * y  # keeps y, twice
        (z * z[:500].repeat(2)).sum().backward()  # keeps z, and its repeated half; still differentiable
    assert kept.bytes == 3 * 4000
    assert weight.grad is not None
    assert weight.grad[0] == 6


@pytest.mark.parametrize("benchmark_module", ["measure"], indirect=True)
def test_runs_take_turns_and_are_compared_within_a_round(benchmark_module: ModuleType) -> None:
    now, order = [0.0], []

    def run(name: str, seconds: float) -> None:
        order.append(name)
        now[0] += seconds * (10 if len(order) > 2 else 1)  # the machine gets slow after the first round

    runs = {"a": lambda: run("a", 1), "b": lambda: run("b", 2)}
    seconds = benchmark_module.in_turns(runs, 3, lambda: now[0])
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert benchmark_module.ratio(seconds, "b", "a") == 2


@pytest.mark.parametrize("benchmark_module", ["measure"], indirect=True)
def test_time_is_attributed_to_groups(benchmark_module: ModuleType) -> None:
    network = nn.Sequential(nn.Conv3d(2, 8, 3), nn.InstanceNorm3d(8), nn.LeakyReLU())
    groups, operators = benchmark_module.time_by_group(network, lambda: network(torch.ones(1, 2, 16, 16, 16)))
    assert {"convolution", "norm", "activation"} <= set(groups)
    assert sum(groups.values()) == pytest.approx(sum(operators.values()))
