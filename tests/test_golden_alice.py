"""Alice's backbone: parameters, names, the corrected index, and that every weight has a place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import golden_alice
import golden_tools as golden
import pytest
import torch

from nnunet_ext.weights import nnformer

GOLDEN = Path(__file__).parent / "golden" / "alice"


@pytest.fixture
def small() -> tuple[dict[str, Any], Any]:
    """The smallest fixture: 32 voxels, where two stages shrink their windows."""
    return golden.load(GOLDEN / "nnformer_masked")


def test_parameters() -> None:
    """Specification alice 5: the published network, its parts, and 251 entries with index buffers."""
    spec, _ = golden.load(GOLDEN / "nnformer_full")
    state = golden_alice.weights_of(spec)
    network = golden_alice.import_backbone(state, (64, 64, 64))
    assert sum(value.numel() for value in state.values()) == 9_725_763
    parts = {name: sum(p.numel() for p in part.parameters()) for name, part in network.named_children()}
    unused = state["model_down.mask_token"].numel()
    heads = [sum(p.numel() for p in head.parameters()) for head in network.decoder.seg_layers]
    assert parts["encoder"] + unused == 7_651_668
    assert parts["decoder"] - sum(heads) == 2_071_404
    assert heads[:0:-1] == [385, 769, 1_537]
    assert len(state) + 14 == 251  # an index for each block


@pytest.mark.parametrize("name", ["nnformer_full", "nnformer_masked"])
def test_every_weight_has_a_place(name: str) -> None:
    spec, _ = golden.load(GOLDEN / name)
    state = golden_alice.weights_of(spec)
    network = golden_alice.import_backbone(state, tuple(spec["constructor"]["img_size"]))
    names, ours = nnformer.key_map(network), network.state_dict()
    assert set(state) - set(names) == {"model_down.mask_token"}
    for key, own in names.items():
        assert torch.equal(ours[own], state[key])
    assert len(set(names.values())) == len(names)


def test_the_corrected_index_gives_the_same(small: tuple[dict[str, Any], Any]) -> None:
    """Tables rewritten for one row an offset, all else loaded: the published function."""
    spec, expected = small
    state = golden_alice.weights_of(spec)
    inputs = {entry["name"]: torch.from_numpy(golden.make_input(entry)) for entry in spec["inputs"]}
    configuration = nnformer.infer_configuration(state)
    network = golden_alice.build(configuration, (32, 32, 32), relative_index="aligned")
    _, changes = nnformer.initialise(network, state)
    assert any("corrected index" in change for change in changes)
    golden_alice.set_positions(network, inputs["absolute_pos_embed"])
    image = golden_alice.hide(inputs["image"], inputs["mask_scores"])
    with torch.no_grad():
        outputs = golden_alice.outputs_of(network.eval().features(image))
    for name in ("cls_token", "neck", "decoder_feature"):
        assert golden.compare(name, outputs[name].numpy(), spec, expected) < 1e-4


def test_a_changed_weight_is_noticed(small: tuple[dict[str, Any], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    spec, expected = small
    state = golden_alice.weights_of(spec)
    state["decoder.layers.2.blocks.1.attn.relative_position_bias_table"] *= 1.5
    monkeypatch.setattr(golden_alice, "weights_of", lambda _: state)
    inputs = {entry["name"]: torch.from_numpy(golden.make_input(entry)) for entry in spec["inputs"]}
    with torch.no_grad():
        outputs = golden_alice.run_backbone(spec, inputs)
    assert golden.compare("neck", outputs["neck"].numpy(), spec, expected) < 1e-4
    assert golden.compare("decoder_feature", outputs["decoder_feature"].numpy(), spec, expected) > 1e-3
