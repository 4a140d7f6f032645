"""The benchmark of the Padé activation: its baseline gives the authors' numbers, and it measures what it says."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import golden_tools as golden
import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
GOLDEN = Path(__file__).parent / "golden" / "ossnet"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("ossnet_pade")


@pytest.mark.parametrize("name", ["pau_leaky_init", "pau_filled", "pau_negative_denominator"])
def test_the_naive_form_is_the_authors(benchmark: ModuleType, name: str) -> None:
    spec, expected = golden.load(GOLDEN / name)
    state = golden.reference_state(spec)
    pair = [spec["constructor"].get(key, state.get(f"weight_{key}")) for key in ("numerator", "denominator")]
    x, upstream = (torch.from_numpy(golden.make_input(entry)) for entry in spec["inputs"])
    leaves = [(4 * x).requires_grad_(), *(torch.tensor(c, dtype=torch.float32).requires_grad_() for c in pair)]
    y = benchmark.naive_pade(*leaves)
    found = [y, *torch.autograd.grad(y, leaves, upstream)]
    names = ("y", "grad_x", "grad_numerator", "grad_denominator")
    for output, value in zip(names, found, strict=True):
        assert golden.compare(output, value.detach().numpy(), spec, expected) < 1e-5, output


def test_times_and_bytes_are_measured(benchmark: ModuleType) -> None:
    threads = torch.get_num_threads()
    try:
        rows = benchmark.pade_rows({"points": (30, 8), "map": (1, 2, 4, 4, 4)}, rounds=1, compiled=False)
    finally:
        torch.set_num_threads(threads)
    assert [row.name for row in rows] == ["points: eager", "points: kept", "map: eager", "map: kept"]
    kept = {row.name: row for row in rows}["points: kept"]
    assert (kept.ours, kept.target) == (30 * 8 * 4 / 1e6, 0.4)
    assert kept.naive > 5 * kept.ours
    assert "at most 0.4: met" in benchmark.table(rows)


def test_another_function_is_noticed(benchmark: ModuleType) -> None:
    naive = benchmark.pass_of(benchmark.naive_pade, benchmark.example((30, 8)))
    with pytest.raises(RuntimeError, match="'twice'"):
        benchmark.check_equal({"naive": naive, "twice": lambda: [2 * t for t in naive()]})
