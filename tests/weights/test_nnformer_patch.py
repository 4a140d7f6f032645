from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nnunet_ext.architectures.nnformer_plans import nnformer_architecture, nnformer_strides
from nnunet_ext.weights.nnformer_patch import adapt_patch_size
from nnunet_ext.weights.transfer import build_network

PATCH = (16, 16, 32)


def network_for(patch: tuple[int, ...], **options: Any) -> tuple[nn.Module, dict[str, Any]]:
    """Two stages of tokens with windows of at most 4, which 8 x 8 x 16 and 4 x 4 x 8 tokens fill."""
    strides = nnformer_strides(PATCH, stages=2)
    block = nnformer_architecture(patch, strides, base_width=8, **options)
    network = build_network(block, 1, 2)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    return network.eval(), block


def tables(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if key.endswith("bias_table")}


def test_windows_that_stay_and_windows_that_shrink() -> None:
    network, block = network_for(PATCH)
    state = network.state_dict()
    larger = adapt_patch_size(state, block, PATCH, (32, 16, 32))
    assert all(value is state[key] for key, value in tables(larger).items())
    assert larger["encoder.absolute_pos_embed"].shape == (1, 16 * 8 * 16, 8)
    patch = (8, 16, 32)  # 4 x 8 x 16 and 2 x 4 x 8 tokens
    smaller = adapt_patch_size(state, block, PATCH, patch)
    other, _ = network_for(patch)
    other.load_state_dict(smaller, strict=True)
    changed = [key for key, value in tables(smaller).items() if value is not state[key]]
    assert changed
    assert all(".stages.1." in key or key.startswith("decoder") for key in changed)
    for key in changed:  # the ends and the middle of the offsets are those of before
        old, new = state[key].reshape(7, 7, 7, -1), smaller[key].reshape(3, 7, 7, -1)
        torch.testing.assert_close(new, old[::3])


def test_what_stays_is_the_same_function() -> None:
    network, block = network_for(PATCH)
    again, _ = network_for(PATCH)
    again.load_state_dict(adapt_patch_size(network.state_dict(), block, PATCH, PATCH))
    image = torch.randn(1, 1, *PATCH)
    with torch.no_grad():
        assert torch.equal(network(image), again(image))


def test_the_published_index_is_refused_where_a_window_changes() -> None:
    network, block = network_for(PATCH, relative_index="legacy")
    with pytest.raises(ValueError, match="relative_index 'legacy' in the plans: set it to 'aligned'"):
        adapt_patch_size(network.state_dict(), block, PATCH, (8, 8, 16))
