"""Our networks reproduce the authors' outputs, and have their parameter counts."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import golden_adapter
import golden_ossnet
import golden_slices
import golden_tools as golden
import pytest
import torch
from golden_adapter import import_sshunet, import_unetrpp, reference_weights, run_fixture
from torch import nn

from nnunet_ext.architectures.grids import token_grids
from nnunet_ext.architectures.unetrpp_plans import PRESETS
from nnunet_ext.weights import ossnet, swinunet, unet2d, unetrpp
from nnunet_ext.weights.ossnet_configuration import HEAD
from nnunet_ext.weights.ossnet_configuration import Configuration as OSSNetConfiguration
from nnunet_ext.weights.sshunet import build_network, key_map
from nnunet_ext.weights.sshunet_configuration import from_constructor, gate_flags, infer_configuration
from nnunet_ext.weights.unetrpp_configuration import Configuration as UNETRPPConfiguration
from nnunet_ext.weights.unetrpp_configuration import infer_configuration as infer_unetrpp

GOLDEN = Path(__file__).parent / "golden"
FIXTURES = sorted(
    path.relative_to(GOLDEN).with_suffix("") for path in GOLDEN.glob("*/*.json") if path.parent.name != "metrics"
)
NETWORKS = [f for f in FIXTURES if golden.load(GOLDEN / f)[0]["kind"] in ("network", "swinunet", "unet", "model")]
TOLERANCES = {"sshunet": 1e-4, "unetrpp": 2e-4, "selfreg": 2e-4, "ossnet": 1e-4, "alice": 2e-4}
"""Method -> largest difference, as a part of the output's standard deviation."""
OSSNET_TOLERANCE = 2e-4
"""The same for whole OSS-Nets: in float32 the original differs from its own float64 values by 1.1e-4."""
STEP_TOLERANCE = 1e-3
"""The same for a whole step of pre-training with its gradients."""
LOSS_TOLERANCE = 1e-5
"""The same for self-regularisation's losses and their gradients."""


def published(gate: str = "tsm", vfn: bool = False, classes: int = 14, **changes: Any) -> dict[str, Any]:
    """Constructor arguments of the published BTCV networks."""
    spec, _ = golden.load(GOLDEN / "sshunet" / "tsm_full_btcv")
    return {**spec["constructor"], "gate_type": gate, "vfn": vfn, "out_channels": classes, **changes}


def test_fixtures_are_there() -> None:
    for method, number in (("sshunet", 16), ("unetrpp", 11), ("selfreg", 15), ("ossnet", 25), ("alice", 14)):
        assert len([f for f in FIXTURES if f.parts[0] == method]) == number


@pytest.mark.parametrize("fixture", FIXTURES, ids=str)
def test_outputs_equal_the_authors(fixture: Path) -> None:
    spec, expected = golden.load(GOLDEN / fixture)
    outputs = run_fixture(fixture.parts[0], spec, golden.given_arrays(spec, expected))
    wanted = {entry["name"] for entry in spec["outputs"]} - set(spec["given"])
    tolerance = TOLERANCES[fixture.parts[0]]
    if spec["kind"].startswith("kd_"):
        tolerance = LOSS_TOLERANCE
    elif spec["kind"] == "model":
        tolerance = OSSNET_TOLERANCE
    elif spec["kind"] == "pretrain_step":
        tolerance = STEP_TOLERANCE
    assert set(outputs) == wanted
    for name in wanted:
        assert golden.compare(name, outputs[name], spec, expected) <= tolerance, name


@pytest.mark.parametrize("fixture", NETWORKS, ids=str)
def test_every_weight_matters(fixture: Path) -> None:
    """A fixture would notice weights that were loaded into the wrong place or not at all: each of them has a place."""
    spec, _ = golden.load(GOLDEN / fixture)
    names, network = named_weights(fixture.parts[0], spec)
    ours = network.state_dict()
    for key, value in reference_weights(spec).items():
        expected = value.mT if key.endswith("epa_block.EF") else value
        if key == swinunet.COLOURS:
            expected = value.sum(1, keepdim=True)  # the one-channel image was repeated
        if fixture.parts[0] == "ossnet" and key == HEAD:
            expected = torch.cat([torch.zeros_like(value), value])  # the background has the logit 0
        torch.testing.assert_close(ours[names[key]], expected, rtol=0, atol=0)
    assert len(set(names.values())) == len(names)
    assert {key for key in names if not key.endswith("num_batches_tracked")} == {key for key, *_ in spec["state"]}


def named_weights(method: str, spec: dict[str, Any]) -> tuple[dict[str, str], nn.Module]:
    """The importer's map of names for a fixture, and the network that it made."""
    if method == "sshunet":
        sshunet, gates = import_sshunet(spec)
        return key_map(gates), sshunet
    if method == "selfreg":
        kind: Any = swinunet if spec["kind"] == "swinunet" else unet2d
        load = golden_slices.import_swinunet if kind is swinunet else golden_slices.import_unet
        loaded = load(spec, reference_weights(spec))
        return kind.key_map(loaded), loaded
    if method == "ossnet":
        oss_net = golden_ossnet.import_ossnet(spec, reference_weights(spec))
        return ossnet.key_map(oss_net), oss_net
    network, configuration = import_unetrpp(spec)
    return unetrpp.key_map(configuration), network


def test_a_changed_weight_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison can fail: one per cent on one small tensor is far beyond the tolerance."""
    spec, expected = golden.load(GOLDEN / "sshunet" / "gsf_module_enc")
    weights = reference_weights(spec)
    weights["channel_conv2.weight"] *= 1.01
    monkeypatch.setattr(golden_adapter, "reference_weights", lambda _: weights)
    assert golden.compare("y", run_fixture("sshunet", spec, {})["y"], spec, expected) > TOLERANCES["sshunet"]


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


def published_unetrpp(name: str) -> UNETRPPConfiguration:
    """The configuration of a published UNETR++, at its published widths."""
    preset = PRESETS[name]
    sizes = (64, 64, 64, 32)
    return UNETRPPConfiguration(
        input_channels=preset.input_channels,
        num_classes=preset.classes,
        features=(16, 32, 64, 128, 256),
        strides=tuple(tuple(stride) for stride in preset.strides),
        tokens=tuple(math.prod(grid) for grid in token_grids(preset.patch_size, preset.strides)),
        blocks=(3, 3, 3, 3),
        blocks_decoder=(3, 3, 3),
        heads=(4, 4, 4, 4),
        heads_decoder=(4, 4, 4),
        proj_size=sizes,
        proj_size_decoder=sizes[:3],
        projections=preset.options["projections"],
        fusion=preset.options["fusion"],
        residual_blocks=preset.options["n_res_blocks"],
        supervised=True,
    )


@pytest.mark.parametrize(
    ("name", "parameters", "keys"),
    [
        ("synapse", 42_952_850, 636),
        ("acdc", 66_796_404, 888),
        ("lung", 121_174_798, 888),
        ("brats", 42_647_604, 489),
    ],
)
def test_unetrpp_counts(name: str, parameters: int, keys: int) -> None:
    """Without the head that the published model lacks (specification unetrpp 3, 2.1)."""
    configuration = published_unetrpp(name)
    assert configuration.variant == name
    with torch.device("meta"):
        network = unetrpp.build_network(configuration, PRESETS[name].patch_size)
    shapes = {key: parameter.numel() for key, parameter in network.named_parameters()}
    names = unetrpp.key_map(configuration)
    assert sum(shapes[ours] for ours in names.values() if ours in shapes) == parameters
    assert set(shapes) - set(names.values()) == {"decoder.seg_layers.0.weight", "decoder.seg_layers.0.bias"}
    second_names = [key for key in names if ".E." in key] if configuration.projections == "tied" else []
    assert len(names) + len(second_names) == keys


def test_inferred_unetrpp_is_the_published_one() -> None:
    spec, _ = golden.load(GOLDEN / "unetrpp" / "synapse_full")
    state, _ = unetrpp.canonical_state(reference_weights(spec))
    assert infer_unetrpp(state) == published_unetrpp("synapse")


@pytest.mark.parametrize("name", ["epa_synapse", "block_tumor", "acdc_small"])
def test_unetrpp_in_training_mode_is_refused(name: str) -> None:
    spec, _ = golden.load(GOLDEN / "unetrpp" / name)
    with pytest.raises(ValueError, match="must be in eval mode"):
        run_fixture("unetrpp", {**spec, "mode": "train"}, {})


PUBLISHED_OSSNETS = {"brats2020": (4, (16, 32, 64, 128), 320), "lits": (1, (8, 16, 32, 64, 128), 512)}
"""Data set -> channels, features of the blocks, numbers of a latent vector."""
OSSNET_PARTS = {
    "onet_narrow": (False, False, False, False, False),
    "onet": (False, False, False, False, False),
    "A": (True, False, False, False, False),
    "B": (True, True, False, False, False),
    "C": (True, False, True, True, False),
    "D": (True, True, True, True, False),
    "C1": (True, False, True, False, False),
    "C2": (True, True, True, False, False),
    "D1": (True, False, False, False, True),
    "D2": (True, True, False, False, True),
}
"""Configuration -> patches, large patches, skip encoder, coarse head, Fourier features."""


@pytest.mark.parametrize(
    ("name", "brats", "lits"),
    [
        ("onet_narrow", 3_309_313, 4_394_453),
        ("onet", 6_890_753, 9_057_237),
        ("A", 7_245_438, 9_409_177),
        ("B", 7_254_358, 9_409_520),
        ("C", 8_695_733, 10_866_490),
        ("D", 8_704_653, 10_866_833),
        ("C1", 8_679_733, 10_850_490),
        ("C2", 8_688_653, 10_850_833),
        ("D1", 7_278_206, 9_441_945),
        ("D2", 7_287_126, 9_442_288),
    ],
)
def test_ossnet_parameter_count(name: str, brats: int, lits: int) -> None:
    """Without the background's logit, which the published models lack (specification ossnet 5.1)."""
    width = 256 if name == "onet_narrow" else 512
    for (data_set, (channels, features, latent)), count in zip(PUBLISHED_OSSNETS.items(), (brats, lits), strict=True):
        configuration = OSSNetConfiguration(channels, features, latent, width, 5, *OSSNET_PARTS[name])
        assert configuration.data_set == data_set
        with torch.device("meta"):
            network = ossnet.build_network(configuration)
        assert sum(parameter.numel() for parameter in network.parameters()) - width == count


@pytest.mark.parametrize(
    ("name", "brats", "lits"), [("onet", 190, 207), ("A", 198, 215), ("B", 198, 215), ("C", 231, 256), ("D", 231, 256)]
)
def test_ossnet_entries(name: str, brats: int, lits: int) -> None:
    """Specification ossnet 4: entries of the published files."""
    for (channels, features, latent), entries in zip(PUBLISHED_OSSNETS.values(), (brats, lits), strict=True):
        configuration = OSSNetConfiguration(channels, features, latent, 512, 5, *OSSNET_PARTS[name])
        assert configuration.variant == {"onet": "ONet"}.get(name, name)
        with torch.device("meta"):
            assert len(ossnet.key_map(ossnet.build_network(configuration))) == entries
