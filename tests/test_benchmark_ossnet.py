"""The benchmark of OSS-Net: its pieces measure what they say, and it refuses networks and counts that are not right."""

from __future__ import annotations

import importlib
import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("ossnet")


@pytest.fixture
def decoding(benchmark: ModuleType) -> ModuleType:
    return importlib.import_module("ossnet_decoding")


def test_measures_and_writes(benchmark: ModuleType, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    try:
        pieces = ["memory", "decoding", "pade"]
        for some in (pieces[:1], pieces[1:]):  # the second run keeps what the first has found
            assert benchmark.main(["--tiny", "--pieces", *some, "-o", str(tmp_path)]) == 0
    finally:
        torch.set_num_threads(threads)
    found = json.loads((tmp_path / "ossnet.json").read_text())
    assert set(found) == {"environment", *pieces}
    (toy,) = found["decoding"]
    assert 0 < toy["evaluated"] < 0.5
    assert 0 < toy["foreground"] < 0.5
    assert toy["different"] < 0.001 * 40**3
    assert all(abs(difference) < 0.01 for difference in found["memory"]["estimates"].values())
    text = (tmp_path / "ossnet.md").read_text()
    assert "Adaptive against dense" in text
    assert "points: kept" in text


def test_the_plain_network_keeps_what_the_specification_counted(benchmark: ModuleType) -> None:
    row = benchmark.kept_at(256)
    assert row.plain == pytest.approx(benchmark.PLAIN_KEEPS[256], rel=benchmark.SPECIFIED)
    assert row.local / row.plain <= benchmark.TARGET
    assert row.faithful / row.plain <= benchmark.TARGET


def test_an_estimate_that_is_off_is_refused(benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    estimate = benchmark.saved_bytes
    monkeypatch.setattr(benchmark, "saved_bytes", lambda *given: int(1.02 * estimate(*given)))
    with pytest.raises(RuntimeError, match="local: the estimate at 16 voxels an edge differs by"):
        benchmark.check_estimate("local", 16, 3)


def test_a_network_that_has_found_nothing_is_refused(decoding: ModuleType, tmp_path: Path) -> None:
    recipe = replace(decoding.RECIPES["OSSNetLocal"], trainer="OSSNetTrainer")
    summary = decoding.model_folder(tmp_path, recipe) / "fold_0" / "validation" / "summary.json"
    summary.parent.mkdir(parents=True)
    for dice, fine in ((0.7, True), (0.3, False)):
        summary.write_text(json.dumps({"foreground_mean": {"Dice": dice}}))
        if fine:
            assert decoding.trained(tmp_path, recipe, 1)[1] == dice
        else:
            with pytest.raises(RuntimeError, match=r"has a Dice of 0\.30"):
                decoding.trained(tmp_path, recipe, 1)


def test_a_case_is_padded_or_cut_alike_on_both_sides(decoding: ModuleType) -> None:
    x = torch.arange(1.0, 7.0).expand(1, 1, 2, 6)
    wanted = torch.tensor([[0, 0, 0, 0], [2, 3, 4, 5], [2, 3, 4, 5], [0, 0, 0, 0]])
    assert torch.equal(decoding.centred(x, [4, 4])[0, 0].long(), wanted)


def test_wrong_classes_and_slow_decoding_are_told(benchmark: ModuleType, decoding: ModuleType) -> None:
    seconds = {"dense": [3.0, 8.0, 9.0], "adaptive": [1.0, 2.0, 1.0]}
    facts: dict[str, Any] = {"evaluated": 0.1, "foreground": 0.05, "different": 2, "target": 8.0}
    row = decoding.Timing("x", dice=None, patch=(8, 8, 8), edge=10, seconds=seconds, **facts)
    assert row.faster == 4
    assert row.equal == 0.998
    text = benchmark.decoding_text([row])
    assert "at least 8: not met" in text
    assert "99.8000% (at least 99.9%: not met)" in text


def test_memory_that_differs_in_any_row_is_told(benchmark: ModuleType) -> None:
    megabyte = 2**20
    extras = {128: 93, 256: 77, 512: 78}  # the smallest output needs the most
    rows = [
        {"edge": edge, "extra": extra * megabyte, "peak": (900 + extra) * megabyte, "seconds": 1}
        for edge, extra in extras.items()
    ]
    text = importlib.import_module("ossnet_volume").report(rows)
    assert "beyond start **1.21** (at most 1.10: not met), of the process **1.02** (at most 1.10: met)" in text
