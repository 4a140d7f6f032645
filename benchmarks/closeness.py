"""How close the gradients of one network are to another's, parameter by parameter."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

RELEVANT = 1e-3  # gradients below this part of the whole one's norm are rounding (a bias before normalisation) or idle

Gradients = dict[str, Tensor]


@dataclass(frozen=True)
class Closeness:
    """How close the gradients of the parameters are to the expected ones, the worst parameter of each measure.

    Attributes:
        cosine: the least cosine similarity; -1 if one is not finite.
        cosine_of: the parameter with it.
        difference: the largest norm of the difference over the expected norm; infinite if one is not finite.
        difference_of: the parameter with it.
    """

    cosine: float
    cosine_of: str
    difference: float
    difference_of: str


def gradients(network: nn.Module) -> Gradients:
    """Copies in main memory, as what stays on a GPU would count in its peaks."""
    return {name: p.grad.detach().cpu() for name, p in network.named_parameters() if p.grad is not None}


def compare(found: Gradients, expected: Gradients, relevant: float = RELEVANT) -> Closeness:
    """Compare every parameter whose expected gradient has a norm that matters; one without a gradient counts as 0."""
    whole = math.sqrt(sum(float(gradient.double().square().sum()) for gradient in expected.values()))
    cosines, differences = {}, {}
    for name, gradient in expected.items():
        reference = gradient.double().flatten()
        norm = float(reference.norm())
        other = found[name].double().flatten() if name in found else torch.zeros_like(reference)
        if not other.isfinite().all():
            cosines[name], differences[name] = -1.0, math.inf
        elif norm > relevant * whole:
            cosines[name] = float(reference @ other) / (norm * max(float(other.norm()), 1e-300))
            differences[name] = float((other - reference).norm()) / norm
    if not cosines:
        raise ValueError("The expected gradients are all 0 or there are none: nothing can be compared with them.")
    least, largest = min(cosines, key=cosines.__getitem__), max(differences, key=differences.__getitem__)
    return Closeness(cosines[least], least, differences[largest], largest)
