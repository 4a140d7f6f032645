"""Computes the golden fixtures' outputs with this package's code, from a fixture's description alone.

Whole networks go through the importer that loads published checkpoints, single modules through its map of names.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

try:
    import golden_alice
    import golden_alice_modules
    import golden_embedding
    import golden_kd
    import golden_metrics
    import golden_ossnet
    import golden_slices
    import golden_tools as golden
except ModuleNotFoundError:  # loaded by its path, outside of pytest
    sys.path.append(str(Path(__file__).parent))
    import golden_alice
    import golden_alice_modules
    import golden_embedding
    import golden_kd
    import golden_metrics
    import golden_ossnet
    import golden_slices
    import golden_tools as golden

from nnunet_ext.architectures.blocks.gates import make_gate
from nnunet_ext.architectures.blocks.paired_attention import PairedAttention
from nnunet_ext.architectures.blocks.transformer_block import BlockOptions, TransformerBlock
from nnunet_ext.weights import sshunet, transfer, unetrpp, unetrpp_configuration
from nnunet_ext.weights.loading import CheckpointError
from nnunet_ext.weights.sshunet_configuration import Configuration, GateChoice, from_constructor, infer_configuration

Arrays = dict[str, np.ndarray]
run_metrics = golden_metrics.run_metrics
run_lesionwise = golden_metrics.run_lesionwise


def run_fixture(method: str, spec: dict[str, Any], given: dict[str, np.ndarray]) -> Arrays:
    """Compute the outputs that a fixture names.

    Args:
        method: the fixture's folder ("sshunet", "unetrpp", "selfreg", "ossnet", "alice").
        spec: the fixture's description: `kind`, `constructor`, `mode`, `state`, `inputs`, `outputs`.
        given: stored arrays that are inputs of the fixture, by name; they replace generated inputs of the same name.

    Returns:
        Output name -> float32 array.

    Raises:
        ValueError: a method or kind of fixture that this package has no code for.
    """
    runners: dict[tuple[str, str], Callable[[dict[str, Any], dict[str, Tensor]], dict[str, Tensor]]] = {
        ("sshunet", "network"): _sshunet_network,
        ("sshunet", "gate"): _sshunet_gate,
        ("unetrpp", "network"): _unetrpp_network,
        ("unetrpp", "epa"): _unetrpp_epa,
        ("unetrpp", "block"): _unetrpp_block,
        ("selfreg", "swinunet"): lambda spec, inputs: _slices(spec, inputs, golden_slices.import_swinunet),
        ("selfreg", "unet"): lambda spec, inputs: _slices(spec, inputs, golden_slices.import_unet),
        **{("selfreg", kind): golden_kd.run for kind in ("kd_inter", "kd_intra", "kd_total", "kd_general")},
        **{("ossnet", kind): _ossnet for kind in golden_ossnet.RUNNERS},
        ("alice", "backbone"): golden_alice.run_backbone,
        **{("alice", kind): _embedding for kind in golden_embedding.RUNNERS},
        **{("alice", kind): _alice_modules for kind in golden_alice_modules.RUNNERS},
    }
    runner = runners.get((method, spec["kind"]))
    if runner is None:
        raise ValueError(
            f"no code for fixtures of method {method!r} and kind {spec['kind']!r}; there is: {sorted(runners)}"
        )
    inputs = {entry["name"]: torch.from_numpy(golden.make_input(entry)) for entry in spec["inputs"]}
    inputs |= {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in given.items()}
    with torch.no_grad():
        outputs = runner(spec, inputs)
    return {name: value.numpy() for name, value in outputs.items()}


def reference_weights(spec: dict[str, Any]) -> dict[str, Tensor]:
    """The fixture's weights by the original's names."""
    return {key: torch.from_numpy(value) for key, value in golden.reference_state(spec).items()}


def gate_choice(constructor: Mapping[str, Any]) -> GateChoice:
    """What a user would tell the importer about the network that `constructor` describes."""
    return GateChoice(
        constructor["gate_type"] or "none",
        tuple(constructor["gate_pos"]),
        constructor["gate_in_bottleneck"],
        constructor["gate_dec"],
    )


def import_sshunet(spec: dict[str, Any]) -> tuple[nn.Module, Configuration]:
    """Our network with the fixture's weights, by way of the importer, and its configuration."""
    constructor = spec["constructor"]
    state, _ = sshunet.canonical_state(reference_weights(spec))
    configuration = infer_configuration(state, gate_choice(constructor))
    if configuration != from_constructor(constructor):
        raise CheckpointError(f"the importer inferred {configuration}, the original was built with {constructor}")
    heads = configuration.heads if spec["mode"] == "train" else 0
    network = sshunet.build_network(configuration, axes="zyx", stacked_supervision=heads)
    sshunet.load_weights(network, state, configuration)
    network.train(spec["mode"] == "train")
    decoder: Any = network.decoder
    decoder.deep_supervision = heads > 0
    return network, configuration


def _sshunet_network(spec: dict[str, Any], inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    network: Any
    network, _ = import_sshunet(spec)
    compute = {"logits": network, "view_features": network.view_features}
    return {entry["name"]: compute[entry["name"]](inputs["x"].clone()) for entry in spec["outputs"]}


def _sshunet_gate(spec: dict[str, Any], inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    constructor, x = spec["constructor"], inputs["x"]
    kind = constructor["class"].lower()
    options: dict[str, Any] = {"decoder": bool(constructor.get("decoder", False))}
    if "channels_division" in constructor:
        options["fold_div"] = constructor["channels_division"]
    if "gsf_ch_ratio" in constructor:
        options["ratio"] = constructor["gsf_ch_ratio"] / 100
    gate: Any = make_gate(kind, constructor.get("fPlane", x.shape[1]), **options)
    names = sshunet.gate_key_map(kind)
    gate.load_state_dict({names[key]: value for key, value in reference_weights(spec).items()}, strict=True)
    gate.train(spec["mode"] == "train")
    wanted = {entry["name"] for entry in spec["outputs"]}
    outputs = {"y": gate(x.clone(), 0)} if "y" in wanted else {}
    return outputs | ({"gate": gate.gate_map(x.clone(), 0)} if "gate" in wanted else {})


def import_unetrpp(spec: dict[str, Any]) -> tuple[nn.Module, unetrpp_configuration.Configuration]:
    """Our network with the fixture's weights, by way of the importer, and its configuration."""
    _only_eval(spec)
    state, _ = unetrpp.canonical_state(reference_weights(spec))
    configuration = unetrpp_configuration.infer_configuration(state)
    inferred = {
        "in_channels": configuration.input_channels,
        "out_channels": configuration.num_classes,
        "feature_size": configuration.features[0],
        "dims": list(configuration.features[1:]),
        "depths": list(configuration.blocks),
        "num_heads": configuration.heads[0],
        "norm_name": "instance",
        "do_ds": configuration.supervised,
    }
    different = {key: value for key, value in inferred.items() if spec["constructor"].get(key, value) != value}
    if different:
        raise CheckpointError(f"the importer inferred {different}, the original was built with {spec['constructor']}")
    network = unetrpp.build_network(configuration, spec["inputs"][0]["shape"][2:])
    unetrpp.load_weights(network, state, configuration)
    return network.eval(), configuration


def _slices(spec: dict[str, Any], inputs: dict[str, Tensor], load: Callable[..., nn.Module]) -> dict[str, Tensor]:
    return golden_slices.run(spec, load(spec, reference_weights(spec)), inputs["image"])


def _ossnet(spec: dict[str, Any], inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return golden_ossnet.run(spec, reference_weights(spec), inputs)


def _only_eval(spec: dict[str, Any]) -> None:
    if spec["mode"] != "eval":
        raise ValueError(f"fixtures of UNETR++ must be in eval mode (it has random dropout), got mode {spec['mode']!r}")


def _alice_modules(spec: dict[str, Any], inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return golden_alice_modules.run(spec, reference_weights(spec), inputs)


def _embedding(spec: dict[str, Any], inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    _only_eval(spec)
    return golden_embedding.run(spec, reference_weights(spec), inputs)


def _unetrpp_network(spec: dict[str, Any], inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    network: Any
    network, configuration = import_unetrpp(spec)
    wanted = {entry["name"]: int(entry["name"].removeprefix("out")) - 1 for entry in spec["outputs"]}
    if not configuration.supervised and set(wanted.values()) != {0}:
        raise ValueError(f"a network without deep supervision has the output out1, got {sorted(wanted)}")
    network.decoder.deep_supervision = True
    outputs = network(inputs["x"])
    return {name: outputs[index] for name, index in wanted.items()}


def _unetrpp_epa(spec: dict[str, Any], inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    _only_eval(spec)
    state, _ = unetrpp.canonical_state(reference_weights(spec))
    style = unetrpp_configuration.attention_style(state, "")
    projection = state["EF" if style["projections"] == "no_bias" else "E.weight"]
    heads, channels = state["temperature"].shape[0], state["qkvv.weight"].shape[1]
    attention = PairedAttention(projection.shape[1], channels, projection.shape[0], heads, **style, layout="legacy")
    transfer.load_weights(attention, state, unetrpp.attention_key_map(**style))
    return {"out": attention.eval()(inputs["x"])}


def _unetrpp_block(spec: dict[str, Any], inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    _only_eval(spec)
    state, _ = unetrpp.canonical_state(reference_weights(spec))
    style = unetrpp_configuration.block_style(state, "")
    projection = state[f"epa_block.{'EF' if style['projections'] == 'no_bias' else 'E.weight'}"]
    heads, channels = state["epa_block.temperature"].shape[0], state["gamma"].shape[0]
    size, tokens = projection.shape
    state.setdefault("pos_embed", torch.zeros(1, tokens, channels))  # where the original was built without
    options = BlockOptions(
        nn.BatchNorm3d,
        projections=style["projections"],
        fusion=style["fusion"],
        n_res_blocks=style["residual_blocks"],
        sa_layout="legacy",
    )
    block = TransformerBlock(3, tokens, channels, size, heads, options)
    names = unetrpp.block_key_map(**style)
    transfer.load_weights(block, state, names, optional=[key for key in names if key.endswith("num_batches_tracked")])
    return {"out": block.eval()(inputs["x"])}
