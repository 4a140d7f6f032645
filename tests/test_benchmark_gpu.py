"""`benchmarks/gpu.py` without a GPU: it says so; its pieces run on the CPU on toy networks."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from nnunet_ext import registry

WRONG = "encoder.stages.1.conv1.weight"
BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("gpu")


def test_without_a_gpu_one_sentence_and_no_report(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main(["-o", str(tmp_path / "report")]) == 1
    out = capsys.readouterr().out
    assert out.startswith("No GPU")
    assert out.count("\n") == 1
    assert not (tmp_path / "report").exists()


def test_every_registered_3d_network_is_measured(gpu: ModuleType) -> None:
    registered = {name for name, entry in registry.NETWORKS.items() if 3 in entry.dimensions}
    measured = {network for network, _ in gpu.gpu_networks.VARIANTS.values()}
    assert registered == measured == set(gpu.gpu_networks.ARCHITECTURES)


def test_pieces_run_on_the_cpu_and_reports_add_up(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SSHUNet GSM", "SSHUNet TSM VFN", "UNETRPP separate", "UNETRPP sum legacy", "NNFormer legacy"):
        monkeypatch.delitem(gpu.gpu_networks.VARIANTS, name)  # the time of a test run is short
    short = {"n_blocks_per_stage": [1] * 4, "n_blocks_per_stage_decoder": [1] * 3}
    monkeypatch.setitem(gpu.gpu_networks.VARIANTS, "UNETRPP tied", ("UNETRPP", short))
    monkeypatch.setattr(importlib.import_module("gpu_numerics"), "MODES", ("eager",))  # compiling takes long
    arguments = ["-o", str(tmp_path), "--device", "cpu", "--tiny", "--rounds", "1"]
    for piece in ("amp", "memory", "speed", "pretraining"):
        assert gpu.main([*arguments, "--piece", piece]) == 0
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert set(report) == {"amp", "memory", "speed", "pretraining"}
    ways = [tuple(row[:4]) for row in report["amp"]["rows"]]
    assert ("SSHUNet TSM", "batched", "float32", "eager") in ways
    assert {("SSHUNet GSF", views, "mixed", "eager") for views in ("batched", "sequential")} <= set(ways)
    rows = {row[0] for row in report["memory"]["rows"]}
    assert rows == {gpu.gpu_networks.PLAIN, *gpu.gpu_networks.VARIANTS}
    text = (tmp_path / "gpu.md").read_text()
    assert "## memory: ok" in text
    assert "| SSHUNet GSF" in text


def test_a_wrong_gradient_of_batched_views_is_found(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    numerics, build = importlib.import_module("gpu_numerics"), gpu.gpu_networks.build

    def broken(name: str, plan: object, **options: str) -> torch.nn.Module:
        network: torch.nn.Module = build(name, plan, **options)
        if options["view_execution"] == "batched":
            network.get_parameter(WRONG).register_hook(torch.neg)
        return network

    monkeypatch.setattr(gpu.gpu_networks, "build", broken)
    setting, outcome = gpu.Setting("cpu", gpu.gpu_networks.TINY), gpu.Outcome()
    reference, batched = (numerics.Way("SSHUNet TSM", views) for views in ("sequential", "batched"))
    expected = reference.step(setting)
    numerics._check_step(reference, expected, expected, setting, outcome)
    assert not outcome.failures
    numerics._check_step(batched, batched.step(setting), expected, setting, outcome)
    assert len(outcome.failures) == 1
    assert WRONG in outcome.failures[0]


def test_a_wrong_gradient_of_a_compiled_network_is_found(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    numerics = importlib.import_module("gpu_numerics")
    setting, outcome = gpu.Setting("cpu", gpu.gpu_networks.TINY), gpu.Outcome()
    for factor, failures in ((1.0, 0), (1.1, 1)):

        def compiled(network: torch.nn.Module, _: object, factor: float = factor) -> Callable[[Tensor], Any]:
            def run(x: Tensor) -> Any:  # from its first call on, as the eager network runs before
                network.get_parameter(WRONG).register_hook(lambda gradient: factor * gradient)
                return network(x)

            return run

        monkeypatch.setattr(numerics, "_compiled", compiled)
        numerics._check_compiled("SSHUNet TSM", "training", setting, outcome)
        assert len(outcome.failures) == failures
    assert WRONG in outcome.failures[0]


def test_gradients_are_compared_where_they_matter(gpu: ModuleType) -> None:
    compare = importlib.import_module("gpu_numerics").compare
    expected = {"large": torch.tensor([3.0, 4.0]), "rounding": torch.tensor([1e-7, 0.0])}
    close = compare({"large": torch.tensor([3.0, 4.0]), "rounding": torch.tensor([-1e-7, 0.0])}, expected)
    assert close.cosine == pytest.approx(1)
    assert close.difference == 0
    assert compare({}, expected).cosine == 0
    nan = compare({**expected, "rounding": torch.tensor([0.0, torch.nan])}, expected)
    assert (nan.cosine, nan.cosine_of) == (-1, "rounding")
    with pytest.raises(ValueError, match="nothing can be compared"):
        compare({}, {})


def test_a_failing_piece_is_named_and_the_others_go_on(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(setting: object) -> None:
        raise RuntimeError("no such kernel")

    monkeypatch.setitem(gpu.PIECES, "compile", broken)
    monkeypatch.setitem(gpu.PIECES, "amp", lambda setting: gpu.Outcome(rows=[["fine"]], header=[""]))
    assert gpu.main(["-o", str(tmp_path), "--device", "cpu", "--tiny", "--piece", "compile", "amp"]) == 1
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert report["compile"]["failures"] == ["compile: RuntimeError: no such kernel"]
    assert report["amp"]["rows"] == [["fine"]]
    assert "## compile: FAILED" in capsys.readouterr().out


def test_a_compilation_error_names_the_place(gpu: ModuleType) -> None:
    import gpu_setting

    error = RuntimeError('Data-dependent branching\n\nfrom user code:\n  File "net.py", line 3, in f\n    if x:\n')
    assert gpu_setting.cause(error) == 'Data-dependent branching File "net.py", line 3, in f if x:'
