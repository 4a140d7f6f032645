"""The reconstruction's loss counts what was hidden."""

from __future__ import annotations

import pytest
import torch

from nnunet_ext.losses.masked_reconstruction import masked_error, voxels_of, whole_error


def example() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Prediction, target (2, 3, 4, 6, 8) and hidden voxels in blocks of (2, 3, 4)."""
    generator = torch.Generator().manual_seed(0)
    prediction, target = torch.randn(2, 2, 3, 4, 6, 8, generator=generator)
    grid = torch.rand(2, 1, 2, 2, 2, generator=generator) < 0.6
    return prediction, target, voxels_of(grid, (4, 6, 8))


def test_visible_voxels_do_not_count() -> None:
    prediction, target, hidden = example()
    loss = masked_error(prediction, target, hidden)
    chosen = hidden.expand_as(prediction)
    torch.testing.assert_close(loss, (prediction - target)[chosen].square().mean())
    assert torch.equal(masked_error(prediction, torch.where(hidden, target, 9.0), hidden), loss)
    assert masked_error(prediction, torch.where(hidden, 9.0, target), hidden) > loss + 1


def test_visible_voxels_count_by_their_weight() -> None:
    prediction, target, hidden = example()
    parts = [masked_error(prediction, target, mask) for mask in (hidden, ~hidden)]
    torch.testing.assert_close(masked_error(prediction, target, hidden, 0.1), parts[0] + 0.1 * parts[1])


def test_gradients_and_nothing_hidden() -> None:
    prediction, target, hidden = example()
    prediction.requires_grad_()
    masked_error(prediction, target, hidden).backward()
    assert prediction.grad is not None
    assert torch.equal(prediction.grad != 0, hidden.expand_as(prediction))
    assert masked_error(prediction, target, torch.zeros_like(hidden)) == 0


def test_all_voxels_as_published() -> None:
    prediction, target, _ = example()
    torch.testing.assert_close(whole_error(prediction, target), torch.nn.functional.mse_loss(prediction, target) / 2)


def test_it_is_float32_under_autocast() -> None:
    prediction, target, hidden = example()
    with torch.autocast("cpu", torch.bfloat16):
        assert masked_error(prediction.bfloat16(), target, hidden).dtype == torch.float32
        assert whole_error(prediction.bfloat16(), target).dtype == torch.float32


def test_blocks_become_voxels() -> None:
    grid = torch.tensor([True, False, False, True]).view(1, 1, 1, 2, 2)
    voxels = voxels_of(grid, (3, 2, 4))
    assert voxels.shape == (1, 1, 3, 2, 4)
    assert voxels[0, 0, 1].tolist() == [[True, True, False, False], [False, False, True, True]]
    with pytest.raises(ValueError, match="cannot be divided"):
        voxels_of(grid, (3, 2, 5))
