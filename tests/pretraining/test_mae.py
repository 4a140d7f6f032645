"""Masked autoencoding: one view, hidden voxels only, and a student that is saved whole."""

from __future__ import annotations

import alice_step
import pytest
import torch
from alice_step import adapter, step, views

from nnunet_ext.errors import UserError
from nnunet_ext.pretraining.mae import MaskedAutoencoder
from nnunet_ext.pretraining.masking import fill_values, masked_images
from nnunet_ext.pretraining.unused import freeze_unused


def test_it_learns_to_reconstruct() -> None:
    method = MaskedAutoencoder(adapter(), fill=(0.0, 1.0))
    frozen = freeze_unused(method.student, 2, alice_step.PATCH)
    assert frozen == ["adapter.network.seg_layers.0.weight", "adapter.network.seg_layers.0.bias"]
    given = views(4, number=1)
    losses = [float(step(method, given, number)["reconstruction"]) for number in range(30)]
    assert losses[-1] < losses[0]
    assert all((p.grad is not None) == p.requires_grad for p in method.student.parameters())


def test_a_state_goes_around() -> None:
    method, other = (MaskedAutoencoder(adapter(), 0.1) for _ in range(2))
    step(method, views(number=1), 0)
    other.load_state_dict(method.state_dict())
    exported = other.exported()
    assert set(exported) == {"student"}
    for name, value in method.adapter.network.state_dict().items():
        assert torch.equal(exported["student"][name], value)
    with pytest.raises(UserError, match=r"visible weight 0\.1"):
        MaskedAutoencoder(adapter()).load_state_dict(method.state_dict())


def test_holes_are_filled() -> None:
    images = torch.randn(1, 2, 1, 1, 2)
    hidden = torch.tensor([True, False]).view(1, 1, 1, 1, 2)
    found = masked_images(images, hidden, fill_values((3.0,), 2))
    assert found[..., 0].flatten().tolist() == [3.0, 3.0]
    assert torch.equal(found[..., 1], images[..., 1])
    with pytest.raises(UserError, match="3 fill values for 2"):
        fill_values((1.0, 2.0, 3.0), 2)


def test_the_error_is_in_units_of_the_images() -> None:
    """CT-normalised air lies ten deviations away; to predict the mean still costs about 1 (specification alice 4.4)."""
    from nnunet_ext.losses.masked_reconstruction import masked_error

    torch.manual_seed(0)
    target = torch.randn(2, 2, 8, 8, 8) * torch.tensor([5.0, 0.5]).view(1, 2, 1, 1, 1)
    hidden = torch.rand(2, 1, 8, 8, 8) < 0.75
    assert float(masked_error(torch.zeros_like(target), target, hidden, scale=(5.0, 0.5))) == pytest.approx(1, abs=0.1)
    assert float(masked_error(torch.zeros_like(target), target, hidden)) > 10
