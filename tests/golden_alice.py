"""Alice's fixtures: the backbone goes through the importer of published weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from golden_tools import reference_state
from torch import Tensor, nn
from torch.nn import functional

from nnunet_ext.weights import nnformer, transfer

POSITION_SCALE = 0.02
HIDDEN_BELOW = 0.75  # of the fixtures' mask scores


def weights_of(spec: dict[str, Any]) -> dict[str, Tensor]:
    """The weights that a fixture's names and shapes stand for."""
    return {key: torch.from_numpy(np.asarray(value)) for key, value in reference_state(spec).items()}


def import_backbone(state: dict[str, Tensor], patch_size: tuple[int, ...], **options: Any) -> Any:
    """Our network for published weights, loaded and in eval mode.

    Args:
        state: by published names.
        patch_size: (D, H, W) voxels.
        **options: changes to the published network's arguments.
    """
    network = build(nnformer.infer_configuration(state), patch_size, **options)
    nnformer.load_weights(network, state)
    return network.eval()


def build(configuration: nnformer.Configuration, patch_size: tuple[int, ...], **options: Any) -> Any:
    """Our network, not yet loaded; arguments as of `import_backbone`."""
    architecture = configuration.architecture(patch_size, **options)
    made: nn.Module = transfer.build_network(
        architecture, configuration.input_channels, configuration.outputs or configuration.input_channels
    )
    return made


def set_positions(network: Any, positions: Tensor) -> None:
    """Put a fixture's position table, (1, tokens, C), which the reference keeps outside of its state, in its place."""
    network.encoder.absolute_pos_embed.copy_(POSITION_SCALE * positions)


def hide(image: Tensor, scores: Tensor) -> Tensor:
    """The image without its hidden blocks."""
    hidden = (scores < HIDDEN_BELOW).float()
    return image * (1 - functional.interpolate(hidden, image.shape[2:]))


def outputs_of(features: Any) -> dict[str, Tensor]:
    """What the reference's backbone returns, in its layout.

    There the decoder's feature is (B, S, H, W, C) with axes 1 and 4 exchanged (specification alice 1.5).
    """
    return {
        "cls_token": features.neck.mean((2, 3, 4)),
        "neck": features.neck,
        "decoder_feature": features.context.permute(0, 1, 3, 4, 2),
        "reconstruction": features.output,
    }


def run_backbone(spec: dict[str, Any], inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The outputs of a fixture of kind "backbone"."""
    if spec["mode"] != "eval":
        raise ValueError(f"the fixture's network must be in eval mode, got {spec['mode']!r}")
    image = inputs["image"]
    network = import_backbone(weights_of(spec), tuple(spec["constructor"]["img_size"]))
    set_positions(network, inputs["absolute_pos_embed"])
    if "mask_scores" in inputs:
        image = hide(image, inputs["mask_scores"])
    return {name: value.contiguous() for name, value in outputs_of(network.features(image)).items()}
