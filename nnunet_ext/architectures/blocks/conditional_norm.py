"""OSS-Net's conditional batch norm: one mean and one variance for all points and features, scale and shift by item.

H. de Vries et al., Modulating early visual processing by language, NeurIPS 2017; in OSS-Net the batch norm has a
single channel (``specs/ossnet.md`` 1.5), which published weights need.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional

from nnunet_ext.architectures.blocks.precision import at_least_float32, without_autocast


class ConditionalBatchNorm(nn.Module):
    """gamma(z) * batch_norm(h) + beta(z); at first gamma is one and beta zero, whatever z is.

    In training backward keeps h alone; in eval mode the norm is one scale and one shift an item. Statistics are float32
    at least. Where nnU-Net has made a SyncBatchNorm of `normalization`, they are those of all processes.

    Args:
        latent_features: numbers L of the latent vector.
        features: F of the points.
    """

    def __init__(self, latent_features: int, features: int) -> None:
        super().__init__()
        self.linear_gamma = nn.Linear(latent_features, features)
        self.linear_beta = nn.Linear(latent_features, features)
        self.normalization = nn.BatchNorm1d(1, affine=False)
        for layer, bias in ((self.linear_gamma, 1.0), (self.linear_beta, 0.0)):
            nn.init.zeros_(layer.weight)
            nn.init.constant_(layer.bias, bias)

    def forward(self, h: Tensor, latent: Tensor) -> Tensor:
        """(B, N, F) normalised by everything, scaled and shifted by `latent` (B, L) of its item; h's dtype."""
        with without_autocast(latent):
            latent = at_least_float32(latent)
            gamma, beta = self.linear_gamma(latent)[:, None], self.linear_beta(latent)[:, None]
        norm = self.normalization
        if not self.training:
            scale = gamma * torch.rsqrt(cast(Tensor, norm.running_var) + norm.eps)
            shift = beta - scale * cast(Tensor, norm.running_mean)
            return torch.addcmul(shift, at_least_float32(h), scale).to(h.dtype)
        outputs, mean, variance, count = _Normalise.apply(h, gamma, beta, norm.eps, _group(norm))
        _track(norm, mean, variance, count)
        return cast(Tensor, outputs)


def _group(norm: nn.Module) -> Any:
    """The processes that share statistics; None: this one alone."""
    if not isinstance(norm, nn.SyncBatchNorm) or not (dist.is_available() and dist.is_initialized()):
        return None
    group = norm.process_group or dist.group.WORLD
    return group if dist.get_world_size(group) > 1 else None


def _track(norm: nn.BatchNorm1d, mean: Tensor, variance: Tensor, count: Tensor) -> None:
    """Update the running statistics as torch does, with the unbiased variance."""
    with torch.no_grad():
        unbiased = variance * count / (count - 1).clamp(min=1)
        momentum = cast(float, norm.momentum)
        for buffer, value in ((norm.running_mean, mean), (norm.running_var, unbiased)):
            cast(Tensor, buffer).lerp_(value.to(cast(Tensor, buffer).dtype), momentum)
        cast(Tensor, norm.num_batches_tracked).add_(1)


class _Normalise(torch.autograd.Function):
    """(h - mean) / sqrt(variance + eps) * gamma + beta; keeps h, and recomputes the rest."""

    @staticmethod
    def forward(
        ctx: Any, h: Tensor, gamma: Tensor, beta: Tensor, eps: float, group: Any
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        wide = at_least_float32(h)
        variance, mean = torch.var_mean(wide, correction=0)
        count = torch.full((), h.numel(), dtype=wide.dtype, device=h.device)
        if group is not None:
            mean, variance, count = _of_all(mean, variance, count, group)
        inverse = torch.rsqrt(variance + eps)
        scale = gamma * inverse
        ctx.save_for_backward(h, gamma, mean, inverse, count)
        ctx.group = group
        ctx.mark_non_differentiable(mean, variance, count)
        return torch.addcmul(beta - scale * mean, wide, scale).to(h.dtype), mean, variance, count

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> Any:
        h, gamma, mean, inverse, count = ctx.saved_tensors
        grad = at_least_float32(grad)
        normal = (at_least_float32(h) - mean) * inverse
        grad_beta = grad.sum(1, keepdim=True)
        grad_gamma = (grad * normal).sum(1, keepdim=True)
        scaled = torch.stack([(grad_beta * gamma).sum(), (grad_gamma * gamma).sum()])
        if ctx.group is not None:
            dist.all_reduce(scaled, group=ctx.group)
        constant, slope = scaled / count
        grad_h = (grad * gamma - constant - normal * slope) * inverse
        return grad_h.to(h.dtype), grad_gamma.to(gamma.dtype), grad_beta.to(gamma.dtype), None, None


def _of_all(mean: Tensor, variance: Tensor, count: Tensor, group: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, variance and number of values of all processes."""
    own = torch.stack([count, count * mean, count * (variance + mean.square())]).double()
    dist.all_reduce(own, group=group)
    total = own[0]
    center = own[1] / total
    spread = (own[2] / total - center.square()).clamp(min=0)
    return center.to(mean.dtype), spread.to(mean.dtype), total.to(mean.dtype)


def affine_linear(layer: nn.Linear, varying: Tensor, constant: Tensor) -> Tensor:
    """`layer` of the concatenation of `varying` (B, N, V) and `constant` (B, C), which belongs to all N; (B, N, out).

    The constant's part is computed once an item, not once a point.
    """
    columns = varying.shape[-1]
    once = functional.linear(constant, layer.weight[:, columns:], layer.bias)
    return functional.linear(varying, layer.weight[:, :columns]) + once[:, None]
