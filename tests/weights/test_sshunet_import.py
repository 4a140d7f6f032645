"""Second names, the configuration read off the weights, and what was loaded where."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from golden_adapter import gate_choice
from published_sshunet import State, aliases, fixture_state
from sshunet_baseline import PublishedSSHUNet

from nnunet_ext.weights.loading import CheckpointError
from nnunet_ext.weights.sshunet import build_network, canonical_state, key_map, load_weights
from nnunet_ext.weights.sshunet_configuration import GateChoice, from_constructor, gate_flags, infer_configuration

NETWORKS = (
    *("tsm_small", "gsm_small", "gsf_small", "tsm_vfn_small", "tsm_view_strides"),
    *("gsf_train_deepsup", "tsm_plain_decoder", "gsm_decoder_last_gate"),
)


def levels_of(constructor: dict[str, Any]) -> int:
    return len(constructor["strides"])


def without(state: State, start: str) -> State:
    return {key: value for key, value in state.items() if not key.startswith(start)}


def test_names_of_aliases() -> None:
    state = {
        "input_block.conv1.conv.weight": torch.zeros(1),
        "downsamples.1.conv1.conv.weight": torch.zeros(1),
        "bottleneck.norm1.weight": torch.zeros(1),
        "upsamples.0.transp_conv.conv.bias": torch.zeros(1),
        "upsamples.2.conv_block.shift.conv3D.bias": torch.zeros(1),
        "deep_supervision_heads.0.conv.conv.bias": torch.zeros(1),
        "output_block.conv.conv.bias": torch.zeros(1),
    }
    assert list(aliases(state, 4)) == [
        "skip_layers.downsample.conv1.conv.weight",
        "skip_layers.next_layer.next_layer.downsample.conv1.conv.weight",
        "skip_layers.next_layer.next_layer.next_layer.norm1.weight",
        "skip_layers.next_layer.next_layer.upsample.transp_conv.conv.bias",
        "skip_layers.upsample.conv_block.shift.conv3D.bias",
        "skip_layers.next_layer.super_head.conv.conv.bias",
    ]


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("only", [False, True], ids=["both names", "second names only"])
def test_aliases(name: str, only: bool) -> None:
    state, constructor = fixture_state(name)
    second = aliases(state, levels_of(constructor))
    stored = {**{k: v for k, v in state.items() if not only or k.startswith("output_block.")}, **second}
    canonical, dropped = canonical_state(stored)
    assert set(dropped) == set(second)
    assert set(canonical) == set(state)
    assert all(torch.equal(canonical[key], state[key]) for key in state)


@pytest.mark.parametrize(
    "key", ["input_block.conv1.conv.weight", "bottleneck.conv2.conv.weight", "upsamples.1.transp_conv.conv.bias"]
)
def test_disagreeing_aliases(key: str) -> None:
    state, _ = fixture_state("tsm_small")
    second = aliases(state, 4)
    group = key.split(".")[0]
    with pytest.raises(CheckpointError, match=rf"checkpoint keys skip_layers\.\* disagree with {group}\.\*: {key}"):
        canonical_state({**state, key: state[key] + 1e-6, **second})


def test_unknown_alias_is_reported() -> None:
    state, constructor = fixture_state("tsm_small")
    canonical, _ = canonical_state({**state, **aliases(state, 4), "skip_layers.heads.0": torch.zeros(1)})
    configuration = from_constructor(constructor)
    with pytest.raises(CheckpointError, match=r"1 unexpected: skip_layers\.heads\.0"):
        load_weights(build_network(configuration), canonical, configuration)


@pytest.mark.parametrize("name", NETWORKS)
def test_inferred_configuration(name: str) -> None:
    state, constructor = fixture_state(name)
    expected = from_constructor(constructor)
    assert infer_configuration(state, gate_choice(constructor)) == expected
    if expected.gate != "tsm":
        assert infer_configuration(state) == expected, "gates with parameters need not be told"


def test_what_is_inferred() -> None:
    configuration = infer_configuration(fixture_state("gsf_train_deepsup")[0])
    assert configuration.features == (8, 12, 16, 24, 32)
    assert configuration.levels == 5
    assert (configuration.input_channels, configuration.num_classes, configuration.heads) == (1, 4, 2)
    assert (configuration.gate, configuration.vfn, configuration.affine) == ("gsf", False, False)
    assert infer_configuration(fixture_state("tsm_vfn_small")[0]).vfn
    mixed = infer_configuration(fixture_state("tsm_view_strides")[0])
    assert mixed.strides == ((1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 2))
    assert mixed.kernel_sizes == ((1, 3, 3), (1, 3, 3), (1, 3, 3), (3, 3, 3))
    plain = infer_configuration(fixture_state("tsm_plain_decoder")[0])
    assert (plain.affine, plain.basic_decoder, plain.transpconv_bias) == (True, True, False)
    assert plain.gate_decoder == (False, False, False), "basic blocks have no gates"


def test_settings_of_gates_without_parameters() -> None:
    state, _ = fixture_state("tsm_small")
    published = infer_configuration(state)
    assert (published.gate, published.gate_stages) == ("tsm", (True,) * 4)
    assert published.gate_decoder == (True, True, False)
    told = infer_configuration(state, GateChoice("tsm", (1,), bottleneck=False, decoder=False))
    assert told.gate_stages == (True, False, True, False)
    assert told.gate_decoder == (False, False, False)
    none = infer_configuration(state, GateChoice("none"))
    assert (none.gate, set(none.gate_stages), set(none.gate_decoder)) == ("none", {False}, {False})


@pytest.mark.parametrize(
    ("name", "choice", "message"),
    [
        ("gsm_small", GateChoice("tsm"), r"checkpoint has gate 'gsm' \(shift.conv3D found\) but the plans say 'tsm'"),
        ("gsf_small", GateChoice("gsm"), r"gate 'gsf' \(shift.channel_conv1 found\) but the plans say 'gsm'"),
        ("tsm_small", GateChoice("gsm"), r"no gate parameters \(shift.conv3D not found\) but the plans say 'gsm'"),
        ("gsm_small", GateChoice(positions=(0,)), r"gates at positions \[0, 1\] but the plans say \[0\]"),
        ("gsm_small", GateChoice(bottleneck=False), "a gate in the bottleneck but the plans say otherwise"),
        ("gsm_small", GateChoice(decoder=False), r"gates in the decoder blocks \[0, 1\]"),
        ("gsm_small", GateChoice(positions=(0, 1, 2)), "gate position 2 does not exist; 4 levels have 0 to 1"),
        ("tsm_small", GateChoice(positions=(2,)), "gate position 2 does not exist; 4 levels have 0 to 1"),
        ("tsm_small", GateChoice("none", positions=(0,)), "gate 'none' goes without"),
        ("tsm_plain_decoder", GateChoice(decoder=True), "basic decoder blocks"),
    ],
)  # fmt: skip
def test_contradictory_gates(name: str, choice: GateChoice, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        infer_configuration(fixture_state(name)[0], choice)


def test_unknown_gate() -> None:
    with pytest.raises(CheckpointError, match="gate 'xyz' unknown; choose tsm, gsm, gsf or none"):
        GateChoice("xyz")


def test_last_gate_quirk_is_visible_in_the_file() -> None:
    configuration = infer_configuration(fixture_state("gsm_decoder_last_gate")[0], GateChoice(positions=(-1,)))
    assert (configuration.gate_stages, configuration.gate_decoder) == gate_flags(4, [-1], True, True)


def test_mixed_gates() -> None:
    state, _ = fixture_state("gsf_small")
    with pytest.raises(CheckpointError, match="mixes gates"):
        infer_configuration(without(state, "bottleneck.shift.channel_conv1"))


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"vit.patch.weight": torch.zeros(1), "encoder1.layer.conv1.conv.weight": torch.zeros(1)}, "vit.patch"),
        ({"encoder.stages.0.0.convs.0.conv.weight": torch.zeros(1)}, "look like nnU-Net's own networks"),
        ({"unetr_pp_encoder.downsample_layers.0.0.conv.weight": torch.zeros(1)}, "not an SSH-UNet checkpoint"),
        (without(fixture_state("tsm_small")[0], "output_block.conv1"), "look like MONAI's DynUNet"),
        (without(fixture_state("tsm_small")[0], "bottleneck."), "bottleneck.conv1.conv.weight is missing"),
        (without(fixture_state("tsm_small")[0], "downsamples.0"), "downsamples has the indices 1"),
        (without(fixture_state("tsm_small")[0], "upsamples.2"), "2 downsamples and 2 upsamples"),
        (without(fixture_state("tsm_small")[0], "upsamples.1.transp_conv"), "upsamples.1.transp_conv.conv.weight is"),
    ],
)  # fmt: skip
def test_other_networks_and_incomplete_files(state: State, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        infer_configuration(state)


def test_kernels_that_disagree() -> None:
    state, _ = fixture_state("tsm_view_strides")
    state["upsamples.0.conv_block.conv1.conv.weight"] = torch.zeros(16, 32, 1, 3, 3)
    with pytest.raises(CheckpointError, match=r"upsamples.0 has \(1, 3, 3\), its level has \(3, 3, 3\)"):
        infer_configuration(state)


def test_two_dimensional_weights() -> None:
    state, _ = fixture_state("tsm_small")
    state["input_block.conv1.conv.weight"] = torch.zeros(8, 2, 3, 3)
    with pytest.raises(CheckpointError, match="must have 5 axes"):
        infer_configuration(state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"spatial_dims": 2}, "spatial_dims must be 3"),
        ({"gate_type": "shift"}, "gate 'shift' unknown"),
        ({"norm_name": "batch"}, "only instance norm"),
        ({"norm_name": ["group", {"num_groups": 4}]}, "only instance norm"),
        ({"gate_pos": [5]}, "gate position 5 does not exist"),
    ],
)
def test_constructors_without_equivalent(change: dict[str, Any], message: str) -> None:
    _, constructor = fixture_state("tsm_small")
    with pytest.raises(CheckpointError, match=message):
        from_constructor({**constructor, **change})


def test_report_and_filled_heads() -> None:
    state, constructor = fixture_state("tsm_small")
    configuration = from_constructor(constructor)
    network, again = build_network(configuration, seed=7), build_network(configuration, seed=7)
    fresh = {name: value.clone() for name, value in network.state_dict().items()}
    report = load_weights(network, state, configuration)
    assert len(report.loaded) == len(state)
    assert set(report.filled) == {
        f"decoder.{kind}.{j}.{p}" for kind in ("fusion", "seg_layers") for j in (0, 1) for p in ("weight", "bias")
    }
    assert "loaded   31 weights" in report.summary()
    assert "absent from the file: decoder.fusion.0.bias" in report.summary()
    loaded = network.state_dict()
    assert all(torch.equal(loaded[name], fresh[name]) for name in report.filled), "filled afresh, not with zeros"
    assert all(torch.equal(again.state_dict()[name], fresh[name]) for name in report.filled), "from the seed alone"
    other = build_network(configuration, seed=8).state_dict()
    weight = "decoder.seg_layers.0.weight"
    assert not torch.equal(other[weight], fresh[weight])
    names = key_map(configuration)
    assert all(torch.equal(loaded[names[key]], state[key]) for key in state)


def test_building_leaves_the_global_random_state() -> None:
    before = torch.random.get_rng_state()
    build_network(from_constructor(fixture_state("tsm_small")[1]))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_deep_supervision_heads_are_loaded() -> None:
    state, constructor = fixture_state("gsf_train_deepsup")
    configuration = from_constructor(constructor)
    network = build_network(configuration)
    report = load_weights(network, state, configuration)
    head = network.state_dict()["decoder.seg_layers.2.weight"]
    assert torch.equal(head, state["deep_supervision_heads.0.conv.conv.weight"])
    assert {name.split(".")[2] for name in report.filled} == {"0"}


def test_every_head_of_a_supervised_vfn_network_is_a_fusion_net() -> None:
    """No fixture covers it: compared with the published network, formulated plainly."""
    constructor: dict[str, Any] = {"in_channels": 1, "out_channels": 3, "gate_pos": (0, 1), "filters": (8, 12, 16, 24)}
    strides = ((1, 1, 1), *((2, 2, 2),) * 3)
    original = PublishedSSHUNet(
        **constructor, kernel_size=((1, 3, 3),) * 4, strides=strides, vfn=True, supervised=1
    ).train()
    state = original.state_dict()
    configuration = infer_configuration(state)
    network = build_network(configuration, axes="zyx", stacked_supervision=1)
    report = load_weights(network, state, configuration)
    network.decoder.deep_supervision = True  # type: ignore[union-attr]
    x = torch.randn((1, 1, 32, 32, 32), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(network.train()(x), original(x), rtol=1e-3, atol=1e-3)
    assert {name.split(".")[2] for name in report.filled} == {"0"}


def test_weights_that_do_not_fit() -> None:
    state, constructor = fixture_state("tsm_small")
    configuration = from_constructor(constructor)
    network = build_network(configuration)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    wrong = without(state, "downsamples.1.conv2") | {
        "extra": torch.zeros(1),
        "output_block.conv.conv.bias": torch.zeros(9),
    }
    with pytest.raises(CheckpointError) as error:
        load_weights(network, wrong, configuration)
    assert "1 missing: downsamples.1.conv2.conv.weight" in str(error.value)
    assert "1 unexpected: extra" in str(error.value)
    assert "1 of another shape: output_block.conv.conv.bias is (9,), expected (3,)" in str(error.value)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items()), "nothing was loaded"


def test_a_hundred_missing_weights_make_a_short_message() -> None:
    state, constructor = fixture_state("gsf_small")
    configuration = from_constructor(constructor)
    with pytest.raises(CheckpointError) as error:
        load_weights(build_network(configuration), {"x": torch.zeros(1)}, configuration)
    assert len(str(error.value)) < 450
    assert f"{len(state)} missing" in str(error.value)


def test_published_axes_and_quirks_are_in_the_plans() -> None:
    configuration = replace(from_constructor(fixture_state("tsm_vfn_small")[1]), affine=True)
    kwargs = configuration.architecture()["arch_kwargs"]
    assert (kwargs["axes"], kwargs["stride_space"], kwargs["vfn_alignment"]) == ("xyz", "view", "legacy")
    assert kwargs["norm_op_kwargs"]["affine"] is True
    assert kwargs["stacked_supervision"] == 0
