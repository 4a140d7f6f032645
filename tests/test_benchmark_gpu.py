"""`benchmarks/gpu.py` without a GPU: it says so; its pieces run on the CPU on toy networks."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch

from nnunet_ext import registry

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


def test_every_registered_network_is_measured(gpu: ModuleType) -> None:
    measured = {network for network, _ in gpu.gpu_networks.VARIANTS.values()}
    assert set(registry.NETWORKS) == measured == set(gpu.gpu_networks.ARCHITECTURES)


def test_pieces_run_on_the_cpu_and_reports_add_up(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SSHUNet GSM", "SSHUNet TSM VFN"):
        monkeypatch.delitem(gpu.gpu_networks.VARIANTS, name)  # the time of a test run is short
    arguments = ["-o", str(tmp_path), "--device", "cpu", "--tiny", "--rounds", "1"]
    for piece in ("amp", "memory", "speed"):
        assert gpu.main([*arguments, "--piece", piece]) == 0
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert set(report) == {"amp", "memory", "speed"}
    rows = {row[0] for row in report["memory"]["rows"]}
    assert rows == {gpu.gpu_networks.PLAIN, *gpu.gpu_networks.VARIANTS}
    text = (tmp_path / "gpu.md").read_text()
    assert "## memory: ok" in text
    assert "| SSHUNet GSF" in text


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
    import gpu_pieces

    error = RuntimeError('Data-dependent branching\n\nfrom user code:\n  File "net.py", line 3, in f\n    if x:\n')
    assert gpu_pieces._cause(error) == 'Data-dependent branching File "net.py", line 3, in f if x:'
