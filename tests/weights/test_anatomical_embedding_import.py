"""Files like SAM.pth: what is in them is loaded, what does not fit is named, nothing is executed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nnunet_ext.architectures.anatomical_embedding import SAMEmbedding
from nnunet_ext.weights.anatomical_embedding import build_network, canonical_state, load_weights, read_embedding
from nnunet_ext.weights.loading import CheckpointError

SHIFT = "layer1.0.conv1.bn.bias"


@pytest.fixture(scope="module")
def published() -> dict[str, Tensor]:
    """A state dict with UAE's names, mostly zeros, in half precision."""
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in SAMEmbedding(semantic=True).state_dict().items()}
    state = {key: torch.zeros(shape, dtype=torch.float16) for key, shape in shapes.items()}
    for key in state:
        if key.endswith("num_batches_tracked"):
            state[key] = torch.tensor(7)
        elif key.endswith(("bn.weight", "running_var")):
            state[key] += 1
    state[f"backbone.{SHIFT}"] += 0.5
    return state


def without_head(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if not key.startswith("semantic_head")}


class Foreign:
    """What a file may hold that is no plain data."""


def test_file_of_mmcv(published: dict[str, Tensor], tmp_path: Path) -> None:
    content: dict[str, Any] = {
        "meta": {"env_info": "torch 1.9", "epoch": 3, "seed": None},
        "state_dict": {f"module.{key}": value for key, value in published.items()},
        "optimizer": {"state": {}, "param_groups": [{"lr": 0.02, "params": [0, 1]}]},
    }
    torch.save(content, tmp_path / "SAMv2_iter_20000.pth")
    network, report = read_embedding(tmp_path / "SAMv2_iter_20000.pth")
    assert network.semantic_head is not None
    assert not network.training
    assert len(report.loaded) == len(published)
    assert not report.filled
    assert float(network.state_dict()[f"backbone.{SHIFT}"][0]) == 0.5

    content["meta"]["config"] = Foreign()
    content["state_dict"] = {}
    torch.save(content, tmp_path / "foreign.pth")
    with pytest.raises(CheckpointError, match=r"asks for Python objects.*nothing was executed.*save its weights alone"):
        read_embedding(tmp_path / "foreign.pth")


def test_head_is_found_by_its_keys_and_counters_may_be_absent(published: dict[str, Tensor]) -> None:
    state = canonical_state(without_head(published))
    kept = {key: value.float() for key, value in state.items() if not key.endswith("num_batches_tracked")}
    network = build_network(kept)
    assert network.semantic_head is None
    load_weights(network, kept)


def test_what_does_not_fit_is_named(published: dict[str, Tensor]) -> None:
    state = canonical_state(without_head(published))
    del state["layer4.1.conv2.conv.weight"]
    state["extra.weight"] = torch.zeros(1)
    state[SHIFT] = torch.zeros(32)
    expected = (
        r"1 missing: layer4\.1\.conv2\.conv\.weight; 1 unexpected: extra\.weight; 1 of another shape: "
        r"layer1\.0\.conv1\.bn\.bias is \(32,\), expected \(64,\)"
    )
    with pytest.raises(CheckpointError, match=expected):
        load_weights(build_network(state), state)
    with pytest.raises(CheckpointError, match="not an anatomical embedding"):
        build_network({"conv1.weight": torch.zeros(64, 3, 7, 7)})
