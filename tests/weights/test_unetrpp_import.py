"""Tied projections, the configuration read off the weights, patch sizes, and what was loaded where."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import golden_tools as golden
import pytest
import torch
from golden_adapter import import_unetrpp, reference_weights
from published_unetrpp import CHANNELS, CLASSES, SMALL, State, published_network, small_state

from nnunet_ext.architectures.grids import token_grids
from nnunet_ext.architectures.unetrpp_plans import PRESETS
from nnunet_ext.errors import UserError
from nnunet_ext.weights.loading import CheckpointError
from nnunet_ext.weights.unetrpp import build_network, canonical_state, key_map, load_weights
from nnunet_ext.weights.unetrpp_configuration import Configuration, infer_configuration

FIRST = "unetr_pp_encoder.stages.0.0"


def configured(kind: str = "tied", **changes: torch.Tensor) -> tuple[State, Configuration]:
    state, _ = canonical_state({**small_state(kind), **changes})
    return state, infer_configuration(state)


def without(state: State, part: str) -> State:
    return {key: value for key, value in state.items() if part not in key}


@pytest.mark.parametrize("kind", SMALL)
def test_outputs_equal_the_plain_formulation(kind: str) -> None:
    state, configuration = configured(kind)
    network = build_network(configuration, SMALL[kind].patch).eval()
    load_weights(network, state, configuration)
    x = torch.randn((1, CHANNELS[kind], *SMALL[kind].patch), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = published_network(kind)(x)[0]
        torch.testing.assert_close(network(x), expected, rtol=0, atol=2e-4 * float(expected.std()))


def test_what_is_inferred() -> None:
    tied, separate, no_bias = (configured(kind)[1] for kind in ("tied", "separate", "no_bias"))
    assert tied.strides == ((1, 1, 1), (2, 4, 4), (2, 2, 2), (2, 2, 2), (2, 2, 2))
    assert tied.features == (4, 8, 16, 32, 64)
    assert tied.tokens == (2048, 256, 32, 4)
    assert (tied.blocks, tied.blocks_decoder) == ((1, 2, 1, 1), (3, 3, 3))
    assert (tied.heads, tied.heads_decoder) == ((4, 4, 4, 4), (4, 4, 4))
    assert (tied.proj_size, tied.proj_size_decoder) == ((64, 64, 64, 32), (64, 64, 64))
    assert (tied.input_channels, tied.num_classes, tied.supervised) == (1, CLASSES, True)
    styles = [(c.projections, c.fusion, c.residual_blocks) for c in (tied, separate, no_bias)]
    assert styles == [("tied", "concat", 1), ("separate", "concat", 2), ("no_bias", "sum", 1)]
    assert (no_bias.input_channels, no_bias.strides[1]) == (4, (4, 4, 4))
    assert no_bias.proj_size == (64, 64, 64, 32)
    assert {c.variant for c in (tied, separate, no_bias)} == {None}, "patches that nobody published"


@pytest.mark.parametrize(
    ("fixture", "variant"),
    [("synapse_small", "synapse"), ("acdc_small", "acdc"), ("lung_small", "lung"), ("tumor_small", "brats")],
)
def test_published_variants(fixture: str, variant: str, pytestconfig: pytest.Config) -> None:
    spec, _ = golden.load(pytestconfig.rootpath / "tests" / "golden" / "unetrpp" / fixture)
    state, _ = canonical_state(reference_weights(spec))
    assert infer_configuration(state).variant == variant


def test_published_layout_and_dropout_are_in_the_plans() -> None:
    for kind, rate in (("tied", 0.15), ("separate", 0.1), ("no_bias", 0.1)):
        kwargs = configured(kind)[1].architecture(SMALL[kind].patch)["arch_kwargs"]
        assert kwargs["sa_layout"] == "legacy"
        assert kwargs["attention_dropout"] == [rate, rate]
        assert kwargs["patch_size"] == list(SMALL[kind].patch)


def test_second_names_of_tied_projections() -> None:
    state = small_state("tied")
    canonical, dropped = canonical_state(state)
    assert len(dropped) == 2 * 14
    assert all(".epa_block.F." in key for key in dropped)
    assert set(canonical) == set(state) - set(dropped)
    assert canonical_state(without(state, ".F."))[0].keys() == canonical.keys(), "they need not be listed"
    assert canonical_state(small_state("separate"))[1] == (), "two modules there"


def test_edited_projections() -> None:
    state = small_state("tied")
    state["decoder4.decoder_block.0.1.epa_block.F.weight"][0, 0] += 1e-6
    with pytest.raises(CheckpointError, match=r"damaged or edited: .* differ in decoder4\.decoder_block\.0\.1;"):
        canonical_state(state)


def test_parameter_is_transposed() -> None:
    state = small_state("no_bias")
    parameter = state[f"{FIRST}.epa_block.EF"]
    assert torch.equal(canonical_state(state)[0][f"{FIRST}.epa_block.EF"], parameter.T)


@pytest.mark.parametrize(
    ("patch_size", "message"),
    [
        ((16, 64, 72), "patch size 16 x 64 x 72 is not divisible by the strides of these weights, 16 x 32 x 32"),
        ((16, 64, 96), r"makes 8 x 16 x 24 = 3072 tokens in stage 1, these weights are for 2048"),
        ((0, 64, 64), "not divisible"),
    ],
)
def test_patch_sizes(patch_size: tuple[int, ...], message: str) -> None:
    _, configuration = configured()
    configuration.check_patch_size((16, 64, 64))
    configuration.check_patch_size((16, 32, 128))  # as many tokens: only the plans or the user can tell
    with pytest.raises(UserError, match=message):
        configuration.check_patch_size(patch_size)


def test_published_patch_is_named(pytestconfig: pytest.Config) -> None:
    spec, _ = golden.load(pytestconfig.rootpath / "tests" / "golden" / "unetrpp" / "acdc_small")
    configuration = infer_configuration(canonical_state(reference_weights(spec))[0])
    with pytest.raises(UserError, match=r"; the published acdc network has patches of 16 160 160 \(z y x\)"):
        configuration.check_patch_size((16, 192, 192))


@pytest.mark.parametrize(
    ("name", "mistaken"),
    [("synapse", (128, 128, 64)), ("synapse", (64, 64, 256)), ("lung", (192, 192, 32)), ("brats", (64, 128, 256))],
)
def test_as_many_tokens_as_published(name: str, mistaken: tuple[int, ...]) -> None:
    """A patch typed in the order x, y, z, say; how the blocks are built does not matter."""
    preset = PRESETS[name]
    strides = tuple(tuple(stride) for stride in preset.strides)
    tokens = tuple(math.prod(grid) for grid in token_grids(preset.patch_size, strides))
    configuration = replace(configured("no_bias")[1], strides=strides, tokens=tokens, residual_blocks=2)
    assert (configuration.variant, configuration.same_tokens) == (None, name)
    configuration.check_published_patch(preset.patch_size)
    configuration.check_patch_size(mistaken)
    sizes = [" x ".join(map(str, size)) for size in (mistaken, preset.patch_size)]
    message = rf"{sizes[0]} \(z, y, x\) is not that of the published {name} network, {sizes[1]}, .*--unpublished-patch$"
    with pytest.raises(UserError, match=message):
        configuration.check_published_patch(mistaken)


def test_tokens_that_nobody_published() -> None:
    configured()[1].check_published_patch((16, 32, 128))


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"vit.patch_embedding.x": torch.zeros(1)}, "not a UNETR\\+\\+ checkpoint: .* found vit.*look like UNETR$"),
        ({"model_down.layers.0.blocks.0.norm1.weight": torch.zeros(1)}, "names look like nnFormer .import-weights nn"),
        ({"encoder.stages.0.0.convs.0.conv.weight": torch.zeros(1)}, "look like nnU-Net's own networks"),
        ({"conv_blocks_context.0.blocks.0.conv.weight": torch.zeros(1)}, "look like nnU-Net v1's own networks"),
        ({"a": torch.zeros(1)}, "found a$"),
        (without(small_state("tied"), "out1."), "out1.conv.conv.weight is missing"),
        (without(small_state("tied"), "downsample_layers.3"), "it has 3 unetr_pp_encoder.downsample_layers"),
        (without(small_state("tied"), "decoder4.decoder_block"), "decoder4.decoder_block.0 has the indices none"),
        (without(small_state("tied"), "stages.1.0."), "stages.1 has the indices 1"),
        (without(small_state("tied"), f"{FIRST}.pos_embed"), "stages.0.0.pos_embed is missing"),
        ({**small_state("tied"), "out1.conv.conv.weight": torch.zeros(4, 4)}, "must have 5 axes"),
        (
            {**small_state("tied"), "decoder3.decoder_block.0.0.pos_embed": torch.zeros(1, 9, 8)},
            "contradicts itself: decoder3.decoder_block.0 has 9 tokens, the encoder's stage 2048",
        ),
        (
            {**small_state("tied"), "encoder1.conv1.conv.weight": torch.zeros(4, 2, 3, 3, 3)},
            "contradicts itself: encoder1 takes 2 channels, the patch embedding 1",
        ),
    ],
)
def test_other_networks_and_incomplete_files(state: State, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        infer_configuration(state)


def test_weights_that_do_not_fit() -> None:
    state, configuration = configured()
    network = build_network(configuration, SMALL["tied"].patch)
    wrong = {**without(state, f"{FIRST}.gamma"), "extra": torch.zeros(1), "out1.conv.conv.bias": torch.zeros(9)}
    with pytest.raises(CheckpointError) as error:
        load_weights(network, wrong, configuration)
    assert f"1 missing: {FIRST}.gamma" in str(error.value)
    assert "1 unexpected: extra" in str(error.value)
    assert "1 of another shape: out1.conv.conv.bias is (9,), expected (4,)" in str(error.value)


def test_report() -> None:
    state, configuration = configured()
    network = build_network(configuration, SMALL["tied"].patch)
    report = load_weights(network, state, configuration)
    assert len(report.loaded) == len(state) == len(key_map(configuration))
    assert report.zeroed == ("decoder.seg_layers.0.weight", "decoder.seg_layers.0.bias")
    assert report.filled == ()
    ours: dict[str, Any] = network.state_dict()
    assert not any(bool(ours[name].any()) for name in report.zeroed)
    assert ours["encoder.stages.0.0.residual.0.norm1.num_batches_tracked"] == 250_000


def test_network_without_deep_supervision() -> None:
    """The reference leaves two heads out where it is built with `do_ds=False`; counters may be missing as well."""
    state = {key: value for key, value in small_state("tied").items() if not key.startswith(("out2", "out3"))}
    state, _ = canonical_state(without(state, "num_batches_tracked"))
    configuration = infer_configuration(state)
    assert not configuration.supervised
    report = load_weights(build_network(configuration, SMALL["tied"].patch), state, configuration)
    assert {name.split(".")[2] for name in report.zeroed} == {"0", "1", "2"}


def test_the_adapter_compares_with_the_constructor(pytestconfig: pytest.Config) -> None:
    spec, _ = golden.load(pytestconfig.rootpath / "tests" / "golden" / "unetrpp" / "synapse_small")
    with pytest.raises(CheckpointError, match=r"the importer inferred .'depths'"):
        import_unetrpp({**spec, "constructor": {**spec["constructor"], "depths": [9, 9, 9, 9]}})
