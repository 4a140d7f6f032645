"""The embedding's losses against values by hand, and what must not enter them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from nnunet_ext.losses.anatomical_embedding import (
    Cells,
    Distances,
    Sampling,
    ViewCells,
    coarse_terms,
    embedding_loss,
    fine_terms,
)

SAMPLING = Sampling(temperature=0.5)


def row(xs: list[float], vectors: Tensor) -> Cells:
    """Cells along x."""
    points = torch.tensor([[x, 0.0, 0.0] for x in xs])
    return Cells(F.normalize(vectors, dim=1), points, torch.ones(len(xs), dtype=torch.bool))


def view(cells: Cells) -> ViewCells:
    return ViewCells(cells, torch.zeros(len(cells.points), 1), cells)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_fine_value_by_hand() -> None:
    """One positive 1 mm away, two negatives; what is nearer than 20 mm does not count, whatever it is."""
    first = row([0.0, 10.0, 50.0], torch.tensor([[1.0, 0], [1, 0], [0, 1]]))
    second = row([1.0, -15.0, 60.0], torch.tensor([[1.0, 1], [1, 0], [1, 0]]))
    second.valid[1] = True
    # only the query at 0 has a counterpart nearer than 2 mm
    terms = fine_terms(view(first), view(second), Distances(), SAMPLING, generator())
    assert len(terms) == 1
    positive, negatives = math.cos(math.pi / 4) / 0.5, [0.0, 1 / 0.5]
    expected = math.log(math.exp(positive) + sum(map(math.exp, negatives))) - positive
    assert float(terms[0]) == pytest.approx(expected, rel=1e-5)


def test_invalid_cells_are_neither_positive_nor_negative() -> None:
    first = row([0.0, 50.0], torch.eye(2))
    second = row([0.0, 60.0, -40.0], torch.tensor([[1.0, 0], [1, 1], [0, 1]]))
    second.valid[1] = False
    first.valid[1] = False
    terms = fine_terms(view(first), view(second), Distances(), SAMPLING, generator())
    assert float(terms[0]) == pytest.approx(math.log(math.exp(2) + 1) - 2, rel=1e-5)
    second.valid[0] = False
    assert len(fine_terms(view(first), view(second), Distances(), SAMPLING, generator())) == 0


def test_the_hardest_negatives_are_those_that_are_used() -> None:
    """A thousand easy negatives and two hard ones: with two negatives, the hard ones make the loss."""
    xs = [0.0] + [100.0 + i for i in range(1000)]
    easy, hard = [-1.0, 0.01], [1.0, 0.0]
    vectors = torch.tensor([[1.0, 0.0]] + [hard if i in (400, 600) else easy for i in range(1000)])
    first, second = row([0.0], torch.tensor([[1.0, 0.0]])), row(xs, vectors)
    few = Sampling(hardest=2, negatives=2, temperature=0.5)
    assert float(fine_terms(view(first), view(second), Distances(), few, generator())[0]) == pytest.approx(math.log(3))


def test_coarse_limits_and_foreign_negatives() -> None:
    points = torch.tensor([[0.0, 0, 0], [0, 0, 7.0], [20.0, 0, 2.0]])
    key = Cells(torch.eye(3), points, torch.ones(3, dtype=torch.bool))
    query = Cells(torch.eye(3)[2:], torch.tensor([[10.0, 0, 8.5]]), torch.ones(1, dtype=torch.bool))
    # the second is nearest, but 20 mm aside the third differs by 6.5 mm in z; the first by 8.5
    terms = coarse_terms(query, key, [], Distances(), SAMPLING, generator())
    expected = math.log(1 + 1 + math.exp(2))  # cosines: positive 0, negatives 0 and 1 (the third)
    assert float(terms[0]) == pytest.approx(expected, rel=1e-5)
    foreign = Cells(torch.eye(3)[2:].repeat(2, 1), torch.zeros(2, 3), torch.tensor([True, False]))
    more = coarse_terms(query, key, [foreign], Distances(), SAMPLING, generator())
    assert float(more[0]) == pytest.approx(math.log(math.exp(expected) + math.exp(2)), rel=1e-5)


def test_loss_carries_a_gradient_even_without_overlap() -> None:
    weights = torch.randn(3, 4, requires_grad=True)
    near, far = row([0.0, 30.0, 60.0], weights), row([0.5, 30.5, 60.5], weights)
    losses = embedding_loss([(view(near), view(far))], Distances(), SAMPLING, generator())
    assert losses["pairs"] == 6
    losses["loss"].backward(retain_graph=True)
    assert weights.grad is not None
    assert bool(weights.grad.abs().sum() > 0)
    apart = row([500.0, 600.0, 700.0], weights)
    nothing = embedding_loss([(view(near), view(apart))], Distances(), SAMPLING, generator())
    assert float(nothing["loss"].detach()) == 0
    weights.grad.zero_()
    nothing["loss"].backward()
    assert float(weights.grad.abs().sum()) == 0


def test_distances_in_proportion() -> None:
    assert Distances().scaled(0.5) == Distances(1.0, 10.0, 12.5, 3.0, 2.5)
