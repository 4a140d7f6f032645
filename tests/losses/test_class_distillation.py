"""The experimental distillation between deep-supervision outputs, against torch's Kullback-Leibler divergence."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from nnunet_ext.losses.class_distillation import class_distillation


def outputs(classes: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = [(8, 12), (4, 6), (2, 3)]
    return [torch.randn(2, classes, *size, generator=generator).requires_grad_() for size in sizes]


def test_it_is_the_divergence_from_the_pooled_probabilities() -> None:
    logits = outputs()
    teacher = logits[0].detach().softmax(1)
    wanted = torch.stack(
        [
            functional.kl_div(
                y.log_softmax(1), functional.adaptive_avg_pool2d(teacher, (y.shape[2], y.shape[3])), reduction="none"
            )
            .sum(1)
            .mean()
            for y in logits[1:]
        ]
    ).mean()
    value = class_distillation(logits)
    torch.testing.assert_close(value, wanted)
    value.backward()
    assert logits[0].grad is None
    assert all(y.grad is not None and y.grad.abs().sum() > 0 for y in logits[1:])


@pytest.mark.parametrize("regions", [True, False])
def test_equal_outputs_have_none(regions: bool) -> None:
    constant = torch.tensor([0.5, -1.0, 2.0])[None, :, None, None]
    same = [constant.expand(2, 3, n, n).clone() for n in (8, 4, 2)]
    torch.testing.assert_close(class_distillation(same, regions), torch.zeros(()), atol=1e-6, rtol=0)
    assert class_distillation(outputs(), regions) > 0.1


def test_one_output_has_none() -> None:
    assert class_distillation(outputs()[:1]) == 0
