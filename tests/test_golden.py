"""Our networks reproduce the authors' outputs, and have their parameter counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import golden_adapter
import golden_tools as golden
import pytest
import torch
from golden_adapter import import_fixture, reference_weights, run_fixture

from nnunet_ext.weights.sshunet import build_network, key_map
from nnunet_ext.weights.sshunet_configuration import from_constructor, gate_flags, infer_configuration

GOLDEN = Path(__file__).parent / "golden"
FIXTURES = sorted(path.relative_to(GOLDEN).with_suffix("") for path in GOLDEN.glob("*/*.json"))
NETWORKS = [f for f in FIXTURES if golden.load(GOLDEN / f)[0]["kind"] == "network"]
TOLERANCE = 1e-4
"""Largest difference, as a part of the output's standard deviation."""


def published(gate: str = "tsm", vfn: bool = False, classes: int = 14, **changes: Any) -> dict[str, Any]:
    """Constructor arguments of the published BTCV networks."""
    spec, _ = golden.load(GOLDEN / "sshunet" / "tsm_full_btcv")
    return {**spec["constructor"], "gate_type": gate, "vfn": vfn, "out_channels": classes, **changes}


def test_fixtures_are_there() -> None:
    assert len([f for f in FIXTURES if f.parts[0] == "sshunet"]) == 16


@pytest.mark.parametrize("fixture", FIXTURES, ids=str)
def test_outputs_equal_the_authors(fixture: Path) -> None:
    spec, expected = golden.load(GOLDEN / fixture)
    outputs = run_fixture(fixture.parts[0], spec, golden.given_arrays(spec, expected))
    wanted = {entry["name"] for entry in spec["outputs"]} - set(spec["given"])
    assert set(outputs) == wanted
    for name in wanted:
        assert golden.compare(name, outputs[name], spec, expected) <= TOLERANCE, name


@pytest.mark.parametrize("fixture", NETWORKS, ids=str)
def test_every_weight_matters(fixture: Path) -> None:
    """A fixture would notice weights that were loaded into the wrong place or not at all: each of them has a place."""
    spec, _ = golden.load(GOLDEN / fixture)
    network, configuration = import_fixture(spec)
    names = key_map(configuration)
    ours = network.state_dict()
    for key, value in reference_weights(spec).items():
        torch.testing.assert_close(ours[names[key]], value, rtol=0, atol=0)
    assert len(set(names.values())) == len(names) == len(spec["state"])


def test_a_changed_weight_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison can fail: one per cent on one small tensor is far beyond the tolerance."""
    spec, expected = golden.load(GOLDEN / "sshunet" / "gsf_module_enc")
    weights = reference_weights(spec)
    weights["channel_conv2.weight"] *= 1.01
    monkeypatch.setattr(golden_adapter, "reference_weights", lambda _: weights)
    assert golden.compare("y", run_fixture("sshunet", spec, {})["y"], spec, expected) > TOLERANCE


@pytest.mark.parametrize(("method", "kind"), [("sshunet", "loss"), ("nobody", "network")])
def test_unknown_fixture_is_refused(method: str, kind: str) -> None:
    with pytest.raises(ValueError, match="no code for fixtures"):
        run_fixture(method, {"kind": kind}, {})


@pytest.mark.parametrize(
    ("constructor", "count"),
    [
        (published("tsm"), 6_480_142),
        (published("gsm"), 6_513_854),
        (published("gsf"), 6_488_886),
        (published("tsm", vfn=True), 11_096_076),
        (published("gsm", vfn=True), 11_129_788),
        (published("gsf", vfn=True), 11_104_820),
        (published("tsm", classes=16), 6_480_208),
        (published("tsm", vfn=True, classes=16), 12_509_504),
        (published(norm_name=["INSTANCE", {"affine": True}]), 6_487_822),
        (published(trans_bias=False), 6_479_662),
        (published(deep_supervision=True), 6_503_530),
        (published(kernel_size=[[3, 3, 3]] * 5), 16_839_502),
    ],
)
def test_parameter_count(constructor: dict[str, Any], count: int) -> None:
    """Without heads that the published model lacks (specification sshunet 3.1)."""
    configuration = from_constructor(constructor)
    with torch.device("meta"):
        network = build_network(configuration)
    shapes = {name: tensor.numel() for name, tensor in network.state_dict().items()}
    assert sum(shapes[name] for name in key_map(configuration).values()) == count


def test_number_of_keys() -> None:
    """Specification sshunet 2.2: canonical keys and their aliases (the output block has none)."""
    for gate, vfn, total in (
        ("tsm", False, 74),
        ("gsm", False, 106),
        ("gsf", False, 170),
        ("tsm", True, 89),
        ("gsm", True, 121),
    ):
        keys = key_map(from_constructor(published(gate, vfn)))
        aliased = [key for key in keys if not key.startswith("output_block.")]
        assert len(keys) + len(aliased) == total, (gate, vfn)


def test_last_gate_quirk() -> None:
    assert gate_flags(5, [0, 1, 2], True, True) == ((True,) * 5, (True, True, True, False))
    assert gate_flags(4, [-1], True, True) == ((True, False, False, True), (False, False, True))
    assert gate_flags(4, [-1], False, False) == ((True, False, False, False), (False, False, False))


def test_tsm_without_being_told_is_the_published_setting() -> None:
    spec, _ = golden.load(GOLDEN / "sshunet" / "tsm_full_btcv")
    assert infer_configuration(reference_weights(spec)) == from_constructor(spec["constructor"])
