"""Alice's losses: which view teaches which, where the views' tokens meet, and centres."""

from __future__ import annotations

import pytest
import torch

from nnunet_ext.losses import alice

GRID, PATCH = (2, 3, 4), (8, 12, 8)
CELL = torch.tensor([4.0, 4.0, 2.0])


def places(centre: torch.Tensor) -> torch.Tensor:
    """(24, 3) voxels: centres of a view's tokens in the volume."""
    axes = [(torch.arange(n) + 0.5) * size / n - size / 2 for n, size in zip(GRID, PATCH, strict=True)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, 2) + centre


def tokens() -> torch.Tensor:
    return torch.randn(4, 24, 5, generator=torch.Generator().manual_seed(0))


def test_without_shift_tokens_meet_their_equals() -> None:
    values = tokens()
    there, valid = alice.tokens_of_other_view(values, GRID, torch.zeros(2, 3), PATCH)
    assert valid.all()
    torch.testing.assert_close(there, values[[2, 3, 0, 1]])
    student, centre = tokens().flip(1), torch.zeros(1, 1, 5)
    target = alice.teacher_distribution(alice.exchange_views(values), centre, 0.04)
    wanted = alice.patch_loss(target, student)
    torch.testing.assert_close(alice.across_loss(there, student, valid, centre, (0.04, 0.1)), wanted)


@pytest.mark.parametrize("shift", [(4.0, 0.0, 0.0), (0.0, -3.0, 1.0), (1.5, 2.0, -3.0)])
def test_tokens_hold_what_is_at_their_place(shift: tuple[float, ...]) -> None:
    """A map that tells where it is, is the same in both views, wherever the other view has tokens around."""
    centres = torch.stack([torch.tensor([50.0, 60.0, 70.0]), torch.tensor([50.0, 60.0, 70.0]) + torch.tensor(shift)])
    maps = torch.stack([places(centre) for centre in centres])
    there, valid = alice.tokens_of_other_view(maps, GRID, torch.tensor([shift]), PATCH)
    other = centres.flip(0)[:, None]
    size = torch.tensor(PATCH, dtype=torch.float32)
    torch.testing.assert_close(valid, ((maps - other).abs() <= size / 2).all(-1))
    inner = ((maps - other).abs() <= (size - CELL) / 2).all(-1)
    assert inner.any()
    torch.testing.assert_close(there[inner], maps[inner])


def test_pairs_of_two_volumes_have_no_such_tokens() -> None:
    values, student = tokens(), tokens().requires_grad_()
    shift = torch.tensor([[torch.nan] * 3, [2.0, 0.0, 0.0]])
    there, valid = alice.tokens_of_other_view(values, GRID, shift, PATCH)
    assert there.isfinite().all()
    assert valid.any(1).tolist() == [False, True, False, True]
    loss = alice.across_loss(there, student, valid, torch.zeros(1, 1, 5), (0.04, 0.1))
    loss.backward()
    assert student.grad is not None
    assert student.grad.isfinite().all()
    assert not student.grad[0].any()
    far = alice.tokens_of_other_view(values, GRID, torch.full((2, 3), 40.0), PATCH)
    assert alice.across_loss(far[0], student, far[1], torch.zeros(1, 1, 5), (0.04, 0.1)) == 0


def test_views_teach_each_other() -> None:
    target = torch.eye(4)
    right = alice.cls_loss(target, 5 * torch.eye(4)[[2, 3, 0, 1]])
    assert right < alice.cls_loss(target, 5 * torch.eye(4))
    assert alice.patch_loss(target[:, None], 5 * torch.eye(4)[:, None]) == pytest.approx(float(right))


def test_distributions_are_float32_and_detached() -> None:
    logits = torch.randn(2, 3, 8, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        target = alice.teacher_distribution(logits.bfloat16(), torch.zeros(1, 1, 8), 0.01)
        loss = alice.patch_loss(target, logits.bfloat16())
    assert target.dtype == loss.dtype == torch.float32
    assert loss.requires_grad
    assert not target.requires_grad


def test_centres() -> None:
    centres = alice.Centres.zeros(5)
    logits = tokens()
    centres.update(alice.token_mean(logits[:, 0]), alice.token_mean(logits), 0.8)
    torch.testing.assert_close(centres.cls, 0.2 * logits[:, 0].mean(0, keepdim=True))
    torch.testing.assert_close(centres.patch, 0.2 * logits.mean((0, 1), keepdim=True))
    centres.to(torch.device("meta"))
    assert centres.cls.is_meta
    assert centres.patch.is_meta
