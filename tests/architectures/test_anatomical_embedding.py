"""The anatomical embedding's networks: sizes, strides, vectors of length 1."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nnunet_ext.architectures.anatomical_embedding import SAMEmbedding, SmallEmbedding


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_published_sizes() -> None:
    """Specification alice 3.1."""
    with torch.device("meta"):
        plain, semantic = SAMEmbedding(), SAMEmbedding(semantic=True)
    assert parameters(plain) == 32_832_960
    parts = (plain.backbone, plain.neck, plain.read_out_head)
    assert [parameters(part) for part in parts] == [31_824_576, 500_224, 508_160]
    assert len(plain.state_dict()) == 138
    assert parameters(semantic) == 32_832_960 + 500_224
    with torch.no_grad():
        maps = semantic.eval()(torch.empty(1, 1, 16, 64, 32, device="meta"))
    assert [tuple(each.shape) for each in maps] == [(1, 128, 8, 32, 16), (1, 128, 4, 4, 2), (1, 128, 8, 32, 16)]


def test_small_network() -> None:
    network = SmallEmbedding(2)
    assert 500_000 < parameters(network) < 2_000_000
    fine, coarse, semantic = network(torch.randn(2, 2, 16, 24, 32))
    assert fine.shape == (2, 32, 8, 12, 16)
    assert coarse.shape == (2, 32, 2, 3, 4)
    assert semantic is None
    for each in (fine, coarse):
        torch.testing.assert_close(each.norm(dim=1), torch.ones_like(each[:, 0]))


def test_small_network_does_not_look_at_the_rest_of_the_batch() -> None:
    network = SmallEmbedding(1, (4, 4, 8, 8), 4, 4).train()
    volumes = torch.randn(2, 1, 16, 16, 16)
    torch.testing.assert_close(network(volumes).fine[:1], network(volumes[:1]).fine)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"multiples of \(8, 8, 8\), got \(16, 20, 16\)"):
        SmallEmbedding(1, (4, 4, 8, 8))(torch.randn(1, 1, 16, 20, 16))
    with pytest.raises(ValueError, match="four stages"):
        SmallEmbedding(1, (4, 4, 8))
