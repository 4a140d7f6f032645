"""The benchmark of KD: its baseline is the authors' loss, and it measures every network."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import golden_kd
import golden_tools
import pytest
import torch

from nnunet_ext.losses.self_regularisation import Features

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
GOLDEN = Path(__file__).parent / "golden" / "selfreg"
TERMS = ("inter_equal", "inter_teacher_pooled_nondivisible", "inter_student_pooled", "intra_even", "intra_odd")


@pytest.fixture
def baseline(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("kd_baseline")


def error(spec: dict[str, Any], expected: Any, value: torch.Tensor, leaves: dict[str, torch.Tensor]) -> float:
    """Largest difference of the first loss and of all gradients, in standard deviations."""
    found = golden_kd.gradients(value, leaves, "grad.")
    wanted = float(expected["losses"][0])
    differences = [golden_tools.compare(name, grad.numpy(), spec, expected) for name, grad in found.items()]
    return max(*differences, abs(float(value.detach()) / wanted - 1))


def load(name: str) -> tuple[dict[str, Any], Any, dict[str, torch.Tensor], golden_kd.Indices]:
    spec, expected = golden_tools.load(GOLDEN / f"kd_{name}")
    leaves = {
        entry["name"]: torch.from_numpy(golden_tools.make_input(entry)).requires_grad_() for entry in spec["inputs"]
    }
    drawn = {c["student"]: (torch.tensor(c["idx_s"]), torch.tensor(c["idx_t"])) for c in spec.get("channels", [])}
    return spec, expected, leaves, drawn


@pytest.mark.parametrize("name", TERMS)
def test_a_term_is_the_authors(baseline: ModuleType, name: str) -> None:
    spec, expected, leaves, drawn = load(name)
    if spec["kind"] == "kd_intra":
        value = baseline.feature_distillation(leaves["feature"])
    else:
        value = baseline.semantic_consistency(leaves["student"], leaves["teacher"], drawn["student"])
    assert error(spec, expected, value, leaves) < 1e-5


def test_the_whole_loss_is_the_authors(baseline: ModuleType) -> None:
    spec, expected, leaves, drawn = load("total_one_a_stage")
    features: Features = golden_kd.features(leaves)
    value = baseline.published_loss(features, spec["constructor"]["lambda_x"], golden_kd.chosen(drawn))
    assert error(spec, expected, value, leaves) < 1e-5


@pytest.mark.parametrize("network", ["PlainConvUNet 2d", "SSH-UNet"])
def test_measures_and_writes(baseline: ModuleType, tmp_path: Path, network: str) -> None:
    bench: Any = importlib.import_module("kd")
    assert bench.main(["--tiny", "--repeats", "1", "--networks", network, "-o", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "kd.json").read_text())["results"][network]
    assert found["difference"] < bench.TOLERANCE
    assert found["kept"]["None"] < found["kept"]["mean"] < found["kept"]["published"]
    assert network in (tmp_path / "kd.md").read_text()


def test_another_loss_is_noticed(baseline: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    bench: Any = importlib.import_module("kd")
    monkeypatch.setattr(bench, "published_loss", lambda *given: 1.01 * baseline.published_loss(*given))
    with pytest.raises(RuntimeError, match="the published one differ by"):
        bench.main(["--tiny", "--repeats", "1", "--networks", "PlainConvUNet 2d"])
