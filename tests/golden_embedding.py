"""The anatomical embedding's golden fixtures: its network by way of the importer, and the published matching."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from published_matching import Side, match_voxels
from torch import Tensor
from torch.nn import functional as F

from nnunet_ext.architectures.anatomical_embedding import Embedding, SAMEmbedding
from nnunet_ext.weights import anatomical_embedding as weights_of
from nnunet_ext.weights.loading import CheckpointError

Spec = dict[str, Any]
Tensors = dict[str, Tensor]


def run(spec: Spec, weights: Tensors, inputs: Tensors) -> Tensors:
    """The outputs of a fixture.

    Args:
        spec: the fixture's description.
        weights: by the original's names.
        inputs: by name.
    """
    return RUNNERS[spec["kind"]](spec, weights, inputs)


def import_embedding(spec: Spec, weights: Tensors) -> SAMEmbedding:
    """Our network with the fixture's weights, by way of the importer; in eval mode."""
    state = weights_of.canonical_state(weights)
    network = weights_of.build_network(state)
    if (network.semantic_head is not None) != spec["constructor"]["semantic_head"]:
        raise CheckpointError(f"the importer inferred another head than the original's {spec['constructor']}")
    weights_of.load_weights(network, state)
    return network.eval()


def _network(spec: Spec, weights: Tensors, inputs: Tensors) -> Tensors:
    network = import_embedding(spec, weights)
    embedding = network(inputs["image"])
    outputs = {
        "fine": embedding.fine,
        "coarse": embedding.coarse,
        "backbone_last": network.backbone(inputs["image"])[3],
    }
    return outputs if embedding.semantic is None else {**outputs, "semantic": embedding.semantic}


def _matching(spec: Spec, _: Tensors, inputs: Tensors) -> Tensors:
    given = spec["constructor"]
    unit = {name: F.normalize(value, dim=1) for name, value in inputs.items()}
    query, key = (
        Side(Embedding(unit[f"{side}_fine"], unit[f"{side}_coarse"]), given[f"norm_ratio_{side}"], (200, 200, 200))
        for side in ("query", "key")
    )
    points = np.asarray(given["query_points_xyz"])
    found, scores = match_voxels(query, key, points, given["local_emb_stride"], given["multi_pt_infer"])
    return {"points_xyz": torch.from_numpy(found.astype(np.float32)), "scores": torch.from_numpy(scores)}


RUNNERS = {"embedding": _network, "matching": _matching}
