"""Both terms: the matchings' relation, options, shapes that the published code cannot do, and what is refused."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from nnunet_ext.losses.self_regularisation import Features, Options, SelfRegularisation, Teacher, Terms, draw


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def u_net(dtype: torch.dtype = torch.float64, scale: float = 1.0) -> Features:
    """Maps of a 3D network whose strides and patch differ along the axes; an odd number of channels."""
    sizes = {0: (4, 8, 12), 1: (4, 4, 6), 2: (2, 2, 3)}
    maps = {level: scale * normal(2, 5 + 2 * level, *size, seed=level, dtype=dtype) for level, size in sizes.items()}
    student = [[maps[level].clone().requires_grad_()] for level in (1, 2)]
    return Features(
        [[s] for s in student], [[[maps[1].flip(1).clone().requires_grad_()]]], [maps[0].clone().requires_grad_()]
    )


def taught(features: Features) -> list[Tensor]:
    return [f for stage in (*features.encoder, *features.decoder) for pieces in stage for f in pieces]


def alone(student: Tensor, teacher: Tensor, **options: Any) -> Terms:
    return SelfRegularisation(Options(**options))(Features([[[student]]], [], [teacher]))


# ------------------------------------------------------------------------------------------------------------ matching


def test_mean_is_the_average_of_random_but_for_a_constant() -> None:
    """Loss and gradient over many draws, in standard errors (specification selfreg 1.7, 4.1)."""
    student, teacher = normal(2, 3, 4, 4), normal(2, 5, 8, 8, seed=1)
    leaf = student.clone().requires_grad_()
    mean = alone(leaf, teacher).scr
    (expected,) = torch.autograd.grad(mean, leaf)
    pooled = functional.avg_pool2d(teacher, 2)
    constant = (pooled - pooled.mean(1, keepdim=True)).square().mean()
    generator, regularise = torch.Generator().manual_seed(3), SelfRegularisation(Options(matching="random"))
    values, gradients = [], []
    for _ in range(1500):
        value = regularise(Features([[[leaf]]], [], [teacher]), generator).scr
        values.append(value.detach())
        gradients.append(torch.autograd.grad(value, leaf)[0])
    drawn, slopes = torch.stack(values), torch.stack(gradients)
    error = drawn.std() / len(drawn) ** 0.5
    assert abs(drawn.mean() - mean.detach() - constant) < 3 * error
    assert ((slopes.mean(0) - expected).norm() / expected.norm()) < 0.05
    assert ((slopes - expected).flatten(1).norm(dim=1) / expected.norm()).mean() > 0.2  # a single draw is far off


@pytest.mark.parametrize(("students", "teachers"), [(6, 4), (4, 6), (5, 5)])
def test_draws_are_distinct_channels_of_both(students: int, teachers: int) -> None:
    of_student, of_teacher = draw(students, teachers, torch.Generator().manual_seed(0))
    least = min(students, teachers)
    for indices, count in ((of_student, students), (of_teacher, teachers)):
        assert len(set(indices.tolist())) == least
        assert set(indices.tolist()) <= set(range(count))


def test_random_matching_leaves_the_global_generators_alone() -> None:
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # type: ignore[index]
    SelfRegularisation(Options(matching="random"))(u_net(), torch.Generator().manual_seed(0))
    assert random.getstate() == states[0]
    assert np.random.get_state()[1].tolist() == states[1]  # type: ignore[index]
    assert torch.equal(torch.get_rng_state(), states[2])


def test_random_matching_repeats_with_its_generator() -> None:
    regularise = SelfRegularisation(Options(matching="random"))
    first, second, other = (regularise(u_net(), torch.Generator().manual_seed(s)).scr for s in (1, 1, 2))
    assert first == second
    assert first != other


def test_attention_compares_energies_whatever_the_scale() -> None:
    student, teacher = normal(2, 3, 4, 4), normal(2, 5, 8, 8, seed=1)

    def energy(f: Tensor) -> Tensor:
        return functional.normalize(f.flatten(1), dim=1)

    wanted = energy(student.square().mean(1)) - energy(functional.avg_pool2d(teacher.square().mean(1), 2))
    found = alone(student, teacher, matching="attention").scr
    torch.testing.assert_close(found, wanted.square().sum(1).mean())
    torch.testing.assert_close(alone(7 * student, teacher / 3, matching="attention").scr, found)
    torch.testing.assert_close(alone(teacher, teacher, matching="attention").scr, torch.zeros((), dtype=torch.float64))


# ------------------------------------------------------------------------------------------------------------- options


@pytest.mark.parametrize("matching", ["mean", "random", "attention"])
def test_normalised_terms_do_not_depend_on_the_scale_of_a_channel(matching: str) -> None:
    channels = {("encoder", i, "last"): draw(7 + 2 * i, 5, torch.Generator().manual_seed(i)) for i in range(2)}
    channels |= {("decoder", 0, "last"): channels["encoder", 0, "last"]}
    regularise = SelfRegularisation(Options(matching=matching, normalise=True))
    one, other = (regularise(u_net(scale=scale), channels=channels) for scale in (1.0, 50.0))
    torch.testing.assert_close((one.scr, one.ifd), (other.scr, other.ifd), rtol=1e-5, atol=1e-8)
    assert one.ifd != SelfRegularisation(Options(matching=matching))(u_net(), channels=channels).ifd


def test_normalised_terms_are_those_of_maps_divided_by_their_root_mean_square() -> None:
    student, teacher = 3 * normal(2, 4, 4, 4), normal(2, 5, 8, 8, seed=1)

    def scaled(f: Tensor) -> Tensor:
        return f / (f.square().mean((2, 3), keepdim=True) + 1e-12).sqrt()

    found, wanted = alone(student, teacher, normalise=True), alone(scaled(student), scaled(teacher))
    torch.testing.assert_close((found.scr, found.ifd), (wanted.scr, wanted.ifd))


def test_a_detached_top_gets_no_gradient_of_distillation() -> None:
    student = normal(2, 7, 4, 4).requires_grad_()
    for detach_top, silent in ((False, 1), (True, 4)):
        terms = alone(student, normal(2, 5, 8, 8), detach_top=detach_top)
        (gradient,) = torch.autograd.grad(terms.ifd, student)
        assert int((gradient.abs().sum((0, 2, 3)) < 1e-12).sum()) == silent  # the middle rank; and the upper three


def test_the_total_is_weighted() -> None:
    regularise = SelfRegularisation(Options(0.25, 0.5))
    terms = regularise(u_net())
    torch.testing.assert_close(regularise.total(terms), 0.25 * terms.scr + 0.5 * terms.ifd)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"scr_weight": -0.1}, r"KD weights must not be negative; got -0\.1 \(SCR\), 0\.015 \(IFD\)\."),
        ({"ifd_weight": -1.0}, r"must not be negative; got 0\.015 \(SCR\), -1\.0"),
        ({"matching": "nearest"}, r"KD matching 'nearest' unknown; choose mean, random, attention\."),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Options(**options)


# ------------------------------------------------------------------------------------------------------- shapes, types


@pytest.mark.parametrize("matching", ["mean", "random", "attention"])
@pytest.mark.parametrize(
    ("student", "teacher"), [((8, 12), (4, 6)), ((8, 4), (4, 8)), ((7, 5), (3, 9)), ((4, 8, 6), (4, 4, 12))]
)
def test_a_student_larger_than_its_teacher_is_pooled(
    student: tuple[int, ...], teacher: tuple[int, ...], matching: str
) -> None:
    f, t = normal(2, 4, *student).requires_grad_(), normal(2, 4, *teacher, seed=1)
    size = [min(a, b) for a, b in zip(student, teacher, strict=True)]
    pool: Any = {2: functional.adaptive_avg_pool2d, 3: functional.adaptive_avg_pool3d}[len(size)]
    value = alone(f, t, matching=matching).scr
    if matching == "mean":
        torch.testing.assert_close(value, (pool(f, size) - pool(t, size).mean(1, keepdim=True)).square().mean())
    (gradient,) = torch.autograd.grad(value, f)
    assert gradient.abs().sum() > 0


@pytest.mark.parametrize("channels", [1, 3])
def test_maps_of_one_and_of_three_channels(channels: int) -> None:
    student = normal(2, channels, 4, 4).requires_grad_()
    terms = alone(student, normal(2, 5, 8, 8, seed=1))
    assert (terms.ifd == 0) == (channels == 1)
    torch.autograd.grad(terms.scr + terms.ifd, student)
    assert torch.isfinite(terms.scr)


def test_two_stages_have_a_single_map() -> None:
    features = Features([[[normal(2, 6, 4, 4)]]], [], [normal(2, 4, 8, 8)])
    both = SelfRegularisation()(features)
    assert min(both.scr, both.ifd) > 0


def test_terms_are_means_over_maps_and_sums_over_sets() -> None:
    """Encoder and decoder halves of IFD are added, SCR is a mean over all; two sets add, a single map is in both."""
    first, last, single = (normal(2, 4, 4, 4, seed=s) for s in range(3))
    teacher = normal(2, 5, 8, 8, seed=9)
    found = SelfRegularisation()(Features([[[first], [last]]], [[[single]]], [teacher]))
    one, two, three = (alone(f, teacher) for f in (first, last, single))
    torch.testing.assert_close(found.ifd, one.ifd + two.ifd + 2 * three.ifd)
    torch.testing.assert_close(found.scr, (one.scr + two.scr) / 2 + three.scr)


@pytest.mark.parametrize("matching", ["mean", "attention"])
def test_pieces_of_other_shapes_are_one_batch(matching: str) -> None:
    """SSH-UNet's views: the same volume turned about, so that the pieces' axes differ."""
    whole, teacher = normal(2, 6, 2, 4, 3).requires_grad_(), normal(2, 5, 4, 8, 6, seed=1)
    pieces = [whole[:1], whole[1:].transpose(2, 4)]
    teachers = [teacher[:1], teacher[1:].transpose(2, 4)]
    regularise = SelfRegularisation(Options(matching=matching))
    one = regularise(Features([[[whole]]], [], [teacher]))
    parts = regularise(Features([[pieces]], [], teachers))
    torch.testing.assert_close((one.scr, one.ifd), (parts.scr, parts.ifd))
    gradients = [torch.autograd.grad(t.scr + t.ifd, whole)[0] for t in (one, parts)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("matching", ["mean", "random", "attention"])
def test_bfloat16_under_autocast_is_finite_and_close(matching: str, normalise: bool) -> None:
    regularise = SelfRegularisation(Options(matching=matching, normalise=normalise))
    half, exact = u_net(torch.bfloat16), u_net()
    with torch.autocast("cpu", torch.bfloat16):
        value = regularise.total(regularise(half, torch.Generator().manual_seed(0)))
    wanted = regularise.total(regularise(exact, torch.Generator().manual_seed(0)))
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), wanted, rtol=1e-2, atol=0)
    gradients = torch.autograd.grad(value, taught(half))
    assert all(g.dtype == torch.bfloat16 and torch.isfinite(g).all() for g in gradients)


@pytest.mark.parametrize("matching", ["mean", "random", "attention"])
def test_the_teacher_gets_no_gradient(matching: str) -> None:
    features = u_net()
    regularise = SelfRegularisation(Options(matching=matching))
    regularise.total(regularise(features, torch.Generator().manual_seed(0))).backward()
    assert features.teacher[0].grad is None
    assert all(f.grad is not None and f.grad.abs().sum() > 0 for f in taught(features))


def test_levels_of_the_teacher_are_exact() -> None:
    """From a pooled level where sizes divide, directly otherwise."""
    full = normal(1, 3, 12, 20)
    teacher = Teacher([full], "mean")
    for size in [(6, 10), (3, 5), (4, 5), (5, 7)]:
        wanted = functional.adaptive_avg_pool2d(full.mean(1, keepdim=True), size)
        torch.testing.assert_close(teacher.level(0, size), wanted)


def test_pooled_teachers_do_not_depend_on_other_maps() -> None:
    """70 x 54 to 4 x 3 by way of 8 x 6, which itself has overlapping bins, would be another map."""
    final = torch.randn(1, 5, 70, 54)
    teacher = Teacher([final], "mean")
    for size in ((35, 27), (17, 13), (8, 6), (4, 3)):
        wanted = torch.nn.functional.adaptive_avg_pool2d(final.mean(1, keepdim=True), size)
        torch.testing.assert_close(teacher.level(0, size), wanted)
