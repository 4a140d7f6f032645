"""Alice's steps: what learns, what follows, what is saved, and that processes agree."""

from __future__ import annotations

import io
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import alice_step
import pytest
import torch
from alice_step import alice, step, views
from torch import nn
from torch.multiprocessing.spawn import spawn

from nnunet_ext.errors import UserError
from nnunet_ext.pretraining.alice_network import capped, follow
from nnunet_ext.pretraining.alice_options import ORIGINAL, AliceOptions, alice_options
from nnunet_ext.pretraining.unused import freeze_unused

HEADS = ["adapter.network.seg_layers.0.weight", "adapter.network.seg_layers.0.bias"]


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two nested states are equal to the bit."""
    return one.keys() == other.keys() and all(
        same(value, other[key])
        if isinstance(value, dict)
        else torch.equal(value, other[key])
        if isinstance(value, torch.Tensor)
        else value == other[key]
        for key, value in one.items()
    )


@pytest.mark.parametrize("fidelity", ["ours", "original"])
def test_a_step_gives_every_trained_parameter_a_gradient(fidelity: str) -> None:
    method = alice(fidelity)
    assert freeze_unused(method.student, 2, alice_step.PATCH) == HEADS
    values = method.losses(method.student, views(), 5)
    values["loss"].backward()
    assert all((p.grad is not None) == p.requires_grad for p in method.student.parameters())
    assert all(value.dtype == torch.float32 and value.ndim == 0 for value in values.values())
    assert [name for name, value in values.items() if value.requires_grad] == ["loss"]


def test_the_loss_is_the_weighted_sum() -> None:
    method = alice(weights=(2.0, 3.0, 4.0))
    v = method.losses(method.student, views(), 0)
    wanted = 2 * v["cls"] + 3 * (v["patch"] + v["patch_across"]) + 4 * v["reconstruction"]
    torch.testing.assert_close(v["loss"].detach(), wanted)
    assert 0 < v["overlap"] < 0.5  # of the first pair only
    assert v["two_volumes"] == 0.5
    assert v["momentum"] == pytest.approx(0.9)
    assert v["temperature"] == pytest.approx(0.04)
    original = alice("original")
    v = original.losses(original.student, views(), 0)
    assert "patch_across" not in v
    torch.testing.assert_close(v["loss"].detach(), v["cls"] + v["patch"] + 10 * v["reconstruction"])


def test_visible_voxels_do_not_count() -> None:
    """The published code's mask is not used in its loss (specification alice 6.2.6)."""
    given = views()
    hidden = alice_step.views().hidden.repeat_interleave(4, 2).repeat_interleave(4, 3).repeat_interleave(4, 4)
    changed = replace(given, clean=torch.where(hidden, given.clean, given.clean + 5))
    method, published = alice(), alice("original")
    losses = [method.losses(method.student, v, 0)["reconstruction"] for v in (given, changed)]
    torch.testing.assert_close(losses[0], losses[1], rtol=0, atol=0)
    all_voxels = [published.losses(published.student, v, 0)["reconstruction"] for v in (given, changed)]
    assert all_voxels[1] > all_voxels[0] + 1


def test_who_sees_what() -> None:
    """The student sees augmented images with holes, the teacher whole ones."""
    seen: dict[str, torch.Tensor] = {}
    for augmentation in (True, False):
        method = alice(augmentation=augmentation, fill=(0.0, 7.0))
        for name, network in (("student", method.network), ("teacher", method.teacher)):
            network.adapter.register_forward_pre_hook(lambda _, x, name=name: seen.update({name: x[0]}))
        given = views()
        method.losses(method.student, given, 0)
        assert torch.equal(seen["teacher"], given.clean)
        corner = given.hidden[0, 0, 0, 0, 0]
        pixel = seen["student"][0, :, 0, 0, 0]
        shown = given.images if augmentation else given.clean
        assert torch.equal(pixel, torch.tensor([0.0, 7.0]) if corner else shown[0, :, 0, 0, 0])
        voxels = (seen["student"] == torch.tensor([0.0, 7.0]).view(1, 2, 1, 1, 1)).all(1).float().mean()
        assert voxels == pytest.approx(0.75)


def test_the_teacher_follows_and_stays_in_eval_mode() -> None:
    method = alice(dropout=0.5)
    before = deepcopy(method.teacher.state_dict())
    method.student.train()
    step(method, views(), 0)
    assert not any(module.training for module in method.teacher.modules())
    assert all(p.grad is None and not p.requires_grad for p in method.teacher.parameters())
    after, student, momentum = method.teacher.state_dict(), method.network.state_dict(), 0.9
    for name, value in after.items():
        wanted = before[name] * momentum + student[name] * (1 - momentum) if value.is_floating_point() else value
        if "running" in name or "num_batches" in name or "scale" in name:
            wanted = student[name]
        torch.testing.assert_close(value, wanted, msg=name)
    x = views().clean
    first, second = (method.teacher.project(x)[1] for _ in range(2))
    assert torch.equal(first.cls, second.cls)  # no dropout


def test_losses_change_nothing() -> None:
    method = alice()
    freezing = deepcopy(method.state_dict())
    alice_step.freeze_norm(method)  # running statistics are the network's own
    method.losses(method.student, views(), 0)
    assert same(method.state_dict(), freezing)
    method.after_step(0)
    assert not same(method.state_dict()["centres"], freezing["centres"])


def test_prototypes_do_not_learn_in_the_first_steps() -> None:
    method = alice(frozen_prototypes=0.01)
    before = method.network.head.patch_prototypes.weight.detach().clone()
    step(method, views(), 0)
    assert torch.equal(method.network.head.patch_prototypes.weight, before)
    step(method, views(), 1)
    assert not torch.equal(method.network.head.patch_prototypes.weight, before)


@pytest.mark.parametrize("fidelity", ["ours", "original"])
def test_a_continued_training_is_the_same_to_the_bit(fidelity: str) -> None:
    whole, first = alice(fidelity), alice(fidelity)
    for number in range(4):
        step(whole, views(seed=number), number)
    for number in range(2):
        step(first, views(seed=number), number)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second = alice(fidelity)
    second.load_state_dict(torch.load(file, weights_only=True))
    for number in range(2, 4):
        step(second, views(seed=number), number)
    assert same(second.state_dict(), whole.state_dict())
    assert same(second.exported(), whole.exported())
    assert set(whole.exported()) == {"student", "teacher"}
    assert set(whole.exported()["teacher"]) == set(alice_step.Tiny().state_dict())


def test_other_states_are_refused() -> None:
    method = alice()
    with pytest.raises(UserError, match="'mae'"):
        method.load_state_dict({"method": "mae"})
    with pytest.raises(UserError, match=r"student_temperature = \[0.2\], now \[0.1\]"):
        method.load_state_dict(alice(student_temperature=0.2).state_dict())
    with pytest.raises(ValueError, match="two views of 2 samples"):
        method.losses(method.student, replace(views(), images=views().images[:2]), 0)


def test_the_published_teacher() -> None:
    """One matrix, which begins as the student's for positions and follows the one for views; CASA is the student's."""
    method = alice("original")
    ours = method.network.head
    assert method.teacher.head.patch_prototypes is method.teacher.head.cls_prototypes
    assert torch.equal(method.teacher.head.cls_prototypes.weight, ours.patch_prototypes.weight)
    assert not list(method.teacher.casa.parameters())
    follow(method.teacher, method.network, 0.0)
    torch.testing.assert_close(method.teacher.head.patch_prototypes.weight, ours.cls_prototypes.weight)


def test_two_processes_do_what_one_does_with_both_samples(tmp_path: Path) -> None:
    other = spawn(alice_step.other_process, (str(tmp_path),), nprocs=1, join=False)
    found = alice_step.parallel_steps(0, str(tmp_path))
    assert other.join(timeout=60)
    wanted = alice()
    alice_step.freeze_norm(wanted)
    for number in range(2):
        step(wanted, views(seed=number), number)
    for part in ("centres", "student", "teacher"):
        torch.testing.assert_close(found.state_dict()[part], wanted.state_dict()[part], rtol=1e-4, atol=1e-5)


def test_teachers_have_one_batch_norm(tmp_path: Path) -> None:
    """A checkpoint holds the first process's: were they different, a resumed training would not be the same."""
    other = spawn(alice_step.other_statistics, (str(tmp_path),), nprocs=1, join=False)
    first, second = alice_step.statistics(0, str(tmp_path))
    assert other.join(timeout=60)
    assert torch.equal(first, second)
    assert not torch.equal(first, torch.ones_like(first))


def test_a_collapse_is_told() -> None:
    told: list[str] = []
    method = alice(total=2000)
    method.warn = told.append
    with torch.no_grad():
        for network in (method.network, method.teacher):
            deep: Any = network.adapter.network
            nn.init.zeros_(deep.deep.weight)
    given = views()
    for number in range(0, 510, 10):
        values = method.losses(method.student, given, number)
        method.after_step(number)
    assert values["spread"] < 0.1
    assert any("one direction" in message for message in told)
    assert method.state_dict()["watcher"]["spread"] == 500


def test_large_maps_are_averaged() -> None:
    x = torch.randn(1, 2, 5, 12, 8)
    assert capped(x, 480) is x
    assert capped(x, 479).shape == (1, 2, 5, 6, 8)
    assert capped(x, 100).shape[2:] == (5, 3, 4)
    torch.testing.assert_close(capped(torch.ones(1, 1, 5, 5, 5), 30), torch.ones(1, 1, 3, 3, 3))
    method = alice(token_cap=4)
    assert method.losses(method.student, views(), 0)["loss"].isfinite()


def test_options() -> None:
    assert alice_options() == AliceOptions()
    published = alice_options("original", clip=1.0)
    assert published.clip == 1
    assert all(getattr(published, name) == value != getattr(AliceOptions(), name) for name, value in ORIGINAL.items())
    for bad, message in (
        ({"fidelity": "theirs"}, "'ours', 'original'"),
        ({"temperature": 1}, "no options"),
        ({"reconstruction": "none"}, "'hidden', 'all'"),
        ({"student_temperature": 0.0}, "above 0"),
        ({"weights": (0.0, 0.0, 0.0)}, "three weights"),
        ({"prototypes": 100}, "8 heads"),
        ({"prototypes": 1.5}, "prototypes is 1.5; wanted: a whole number above 0"),
        ({"teacher_temperatures": 0.04}, "teacher_temperatures is 0.04; wanted: 2 numbers, separated by commas"),
        ({"weights": (1, 1)}, "wanted: 3 numbers"),
        ({"weights": (1, 1, -1)}, "three weights"),
        ({"augmentation": 1}, "wanted: true or false"),
        ({"clip": "much"}, "clip is 'much'; wanted: a number"),
        ({"mask_style": 3}, "wanted: a word"),
        ({"dropout": 2}, "dropout is 2; wanted: from 0 to 1"),
        ({"teacher_momentum": 2}, "teacher_momentum is 2; wanted: from 0 to 1"),
        ({"fidelity": "original", "visible_weight": 0.1}, "all voxels are reconstructed anyway"),
    ):
        with pytest.raises(UserError, match=message):
            alice_options(**bad)
    with pytest.raises(UserError, match="3 fill values for 2 image channels"):
        alice(fill=(0.0, 1.0, 2.0)).losses(nn.Identity(), views(), 0)
