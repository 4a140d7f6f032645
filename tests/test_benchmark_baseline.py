"""The benchmark's baseline is the published network: it passes the authors' fixtures, and would fail if it were not."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import golden_tools
import pytest
import torch
from torch import nn

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
GOLDEN = Path(__file__).parent / "golden" / "sshunet"


@pytest.fixture
def benchmark_module(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module(getattr(request, "param", "sshunet_baseline"))


def test_every_fixture_that_it_covers_passes(benchmark_module: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark_module.main(["--check"]) == 0
    assert capsys.readouterr().out.count(" ok") == len(benchmark_module.FIXTURES) == 8


@pytest.mark.parametrize("name", ["tsm_small", "tsm_vfn_small"])
def test_a_shift_the_other_way_is_noticed(
    benchmark_module: ModuleType, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    forward = benchmark_module.SliceShift.forward
    monkeypatch.setattr(benchmark_module.SliceShift, "forward", lambda self, x: forward(self, x.flip(2)).flip(2))
    assert benchmark_module.fixture_error(golden_tools, GOLDEN / name) > 100 * benchmark_module.TOLERANCE


@pytest.mark.parametrize(
    ("gate", "vfn", "parameters"),
    [("tsm", False, 6_480_142), ("gsm", False, 6_513_854), ("gsf", False, 6_488_886), ("tsm", True, 11_096_076)],
)
def test_parameter_counts_are_the_published_ones(
    benchmark_module: ModuleType, gate: str, vfn: bool, parameters: int
) -> None:
    network: nn.Module = benchmark_module.published(gate, 14, vfn)
    assert sum(p.numel() for p in network.parameters()) == parameters


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
