"""The golden fixtures of Swin-Unet and of the plain 2D U-Net, computed by way of the importers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from nnunet_ext.losses.points import KDPoint
from nnunet_ext.weights import swinunet, unet2d
from nnunet_ext.weights.loading import CheckpointError


def import_swinunet(spec: dict[str, Any], weights: Mapping[str, Tensor]) -> nn.Module:
    """Our network with the fixture's weights, for its images."""
    state, _ = swinunet.canonical_state(weights)
    configuration, constructor = swinunet.infer_configuration(state), spec["constructor"]
    inferred = {
        "in_chans": configuration.input_channels,
        "num_classes": configuration.num_classes,
        "embed_dim": configuration.width,
        "depths": list(configuration.blocks),
        "num_heads": list(configuration.heads),
        "window_size": configuration.window,
        "mlp_ratio": configuration.mlp_ratio,
    }
    _require_equal(inferred, constructor)
    _, channels, *size = spec["inputs"][0]["shape"]
    network = swinunet.build_network(configuration, tuple(size), channels)
    swinunet.load_weights(network, state)
    return network.train(spec["mode"] == "train")


def import_unet(spec: dict[str, Any], weights: Mapping[str, Tensor]) -> nn.Module:
    """Our network with the fixture's weights."""
    configuration = unet2d.infer_configuration(weights)
    inferred = {
        "n_channels": configuration.input_channels,
        "n_classes": configuration.num_classes,
        "bilinear": configuration.upsampling == "bilinear",
    }
    _require_equal(inferred, spec["constructor"])
    network = unet2d.build_network(configuration)
    unet2d.load_weights(network, weights)
    return network.train(spec["mode"] == "train")


def _require_equal(inferred: dict[str, Any], constructor: Mapping[str, Any]) -> None:
    different = {key: value for key, value in inferred.items() if constructor.get(key, value) != value}
    if different:
        raise CheckpointError(f"the importer inferred {different}, the original was built with {constructor}")


def run(spec: dict[str, Any], network: Any, image: Tensor) -> dict[str, Tensor]:
    """Logits, and the feature maps that self-regularisation takes, by the fixture's names."""
    outputs: dict[str, Tensor] = {}

    def store(name: str, point: KDPoint) -> None:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            outputs[name] = output if point.select is None else point.select(output)

        network.get_submodule(point.module).register_forward_hook(hook)

    points = network.kd_points()
    for part, stages in (("enc", points.encoder), ("dec", points.decoder)):
        for i, maps in enumerate(stages):
            if hasattr(network, "inc"):
                store(f"{part}{i}", maps[0])
            else:  # one and the same where a stage has one block
                store(f"{part}{i}.first", maps[0])
                store(f"{part}{i}.last", maps[-1])
    store("final", points.teacher)
    if hasattr(network, "inc"):
        store("stem", KDPoint("inc"))
    outputs["logits"] = network(image)
    return {entry["name"]: outputs[entry["name"]] for entry in spec["outputs"]}
