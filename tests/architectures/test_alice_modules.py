"""Alice's head and CASA beside their golden fixtures."""

from __future__ import annotations

import published_alice as weights_of
import pytest
import torch
from torch import nn

from nnunet_ext.architectures.alice_head import AliceHead, Prototypes
from nnunet_ext.architectures.casa import CASA


def test_only_the_prototypes_directions_matter() -> None:
    prototypes, x = Prototypes(4, 6), torch.randn(3, 4)
    before = prototypes(x)
    with torch.no_grad():
        prototypes.weight.mul_(3)
    torch.testing.assert_close(prototypes(x), before)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(prototypes(x), prototypes(x.float()))
    assert [name for name, _ in prototypes.named_parameters()] == ["weight"]


def test_logits_are_cosines() -> None:
    head = AliceHead(6, 5, 8, 16, 4, 10)
    neck, context = torch.randn(2, 6, 2, 3, 1), torch.randn(2, 5, 4, 3, 2)
    found = head(neck.flatten(2).mean(2), neck, context)
    assert [tuple(x.shape) for x in found] == [(2, 10), (2, 6, 10), (2, 24, 10)]
    assert all(x.abs().max() <= 1 + 1e-6 for x in found)
    alone = head(neck.flatten(2).mean(2), neck[..., 1:2, :], context)
    torch.testing.assert_close(alone.encoder, found.encoder[:, [1, 4]])  # tokens are in the grid's order


def test_the_mean_feature_has_a_layer_only_where_it_must() -> None:
    assert isinstance(AliceHead(8, 5, 8, 16, 4, 10).cls_projection, nn.Identity)
    assert isinstance(AliceHead(6, 5, 8, 16, 4, 10).cls_projection, nn.Linear)


def test_every_published_name_has_its_place() -> None:
    head, casa = AliceHead(384, 192), CASA()
    assert sorted(weights_of.head_key_map().values()) == sorted(head.state_dict())
    assert sorted(weights_of.casa_key_map().values()) == sorted(casa.state_dict())


def test_casa_takes_its_memory_in_any_order() -> None:
    casa, queries, memory = CASA(8, 2, 16).eval(), torch.randn(2, 3, 8), torch.randn(2, 7, 8)
    torch.testing.assert_close(casa(queries, memory.flip(1)), casa(queries, memory))
    casa.train()
    assert not torch.equal(casa(queries, memory), casa(queries, memory))  # dropout
    with pytest.raises(ValueError, match="3 heads do not divide"):
        CASA(8, 3)
