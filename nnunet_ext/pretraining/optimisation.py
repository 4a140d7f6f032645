"""Optimiser, schedules and gradient scaler of a step (specification alice 4.4)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from nnunet_ext.errors import UserError
from nnunet_ext.pretraining import schedules
from nnunet_ext.pretraining.settings import Settings

SGD_DECAY = 3e-5
ADAMW_DECAY = (0.04, 0.4)  # of masked autoencoding, at the first and at the last step; Alice has options
LEAST_SCALE = 2.0**-14  # a scaler that begins at 2**16 falls below it by 31 steps in a row without a finite gradient


def has_attention(network: nn.Module) -> bool:
    """Whether it is a transformer: those are trained by AdamW."""
    return any(isinstance(module, nn.LayerNorm | nn.MultiheadAttention) for module in network.modules())


def default_optimiser(method: str, network: nn.Module, batch_size: int) -> tuple[str, float, float]:
    """Name, highest learning rate and clipping of a method for a network.

    Masked autoencoding of convolutions follows nnssl: SGD as in nnU-Net, gradients clipped at 12. Everything else gets
    AdamW at 3e-4 for batches of eight and more, less in proportion for smaller ones, clipped at 3.
    """
    if method == "mae" and not has_attention(network):
        return "sgd", 1e-2, 12.0
    return "adamw", 3e-4 * min(1.0, batch_size / 8), 3.0


class Optimisation:
    """Makes steps; everything about a step but its gradients follows from its number.

    Args:
        module: its parameters that need a gradient are trained.
        settings: of the training.
        device: whose mixed precision is used.
    """

    def __init__(self, module: nn.Module, settings: Settings, device: torch.device) -> None:
        self.settings, self.device = settings, device
        self.parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self.optimiser = self._make()
        self.scaler = _scaler(device) if settings.precision == "fp16" else None

    def _make(self) -> torch.optim.Optimizer:
        rate = self.settings.learning_rate
        if self.settings.optimiser == "sgd":
            return torch.optim.SGD(self.parameters, rate, momentum=0.99, nesterov=True, weight_decay=SGD_DECAY)
        groups = [
            {"params": [p for p in self.parameters if p.ndim > 1], "decays": True},
            {"params": [p for p in self.parameters if p.ndim <= 1], "decays": False},
        ]
        return torch.optim.AdamW([group for group in groups if group["params"]], rate, betas=(0.9, 0.999))

    def autocast(self) -> AbstractContextManager[Any]:
        """Mixed precision, if the settings want it."""
        types = {"bf16": torch.bfloat16, "fp16": torch.float16}
        precision = types.get(self.settings.precision)
        return nullcontext() if precision is None else torch.autocast(self.device.type, precision)

    def step(self, loss: Tensor, number: int) -> tuple[bool, float]:
        """Backward pass and the optimiser's step.

        Args:
            loss: a scalar.
            number: of the step, from 0.

        Returns:
            Whether the weights changed (a scaler skips steps whose gradients overflow), and the gradients' norm.

        Raises:
            UserError: gradients overflow however small the scale: the training has diverged.
        """
        for key, value in self.scheduled(number):
            for group in self.optimiser.param_groups:
                group[key] = value if key == "lr" or group.get("decays", False) else 0.0
        self.optimiser.zero_grad(set_to_none=True)
        if self.scaler is None:
            loss.backward()
        else:
            self.scaler.scale(loss).backward()
            self.scaler.unscale_(self.optimiser)
        norm = self._clip()
        if self.scaler is None:
            self.optimiser.step()
            return True, norm
        before = self.scaler.get_scale()
        self.scaler.step(self.optimiser)
        self.scaler.update()
        after = self.scaler.get_scale()
        if after < LEAST_SCALE:
            raise UserError(
                f"step {number}, and those before it, had gradients that are not finite in half precision: begin again "
                f"with --amp bf16 or --amp off, or with a lower --learning-rate (now {self.settings.learning_rate:g}); "
                "or continue from a checkpoint that was kept."
            )
        return after >= before, norm

    def _clip(self) -> float:
        """Clip the gradients, all together or, as published for Alice, each by itself; returns the norm before."""
        if not self.settings.alice.get("clip_per_tensor", False):
            return float(torch.nn.utils.clip_grad_norm_(self.parameters, self.settings.clip))
        norms = [torch.nn.utils.clip_grad_norm_(one, self.settings.clip) for one in self.parameters]
        return float(torch.stack(norms).norm())

    def scheduled(self, number: int) -> Iterator[tuple[str, float]]:
        """What the schedules say for a step."""
        total, rate = self.settings.steps, self.settings.learning_rate
        if self.settings.optimiser == "sgd":
            yield "lr", schedules.polynomial(number, total, rate)
            return
        minimum = self.settings.alice.get("minimum_rate", 1e-6)
        if self.settings.alice.get("rate_may_rise", False):  # as published
            yield "lr", schedules.cosine(number, total, rate, minimum, round(schedules.WARM_UP * total))
        else:
            yield "lr", schedules.learning_rate(number, total, rate, minimum)
        yield (
            "weight_decay",
            schedules.weight_decay(number, total, *self.settings.alice.get("weight_decay", ADAMW_DECAY)),
        )

    def state_dict(self) -> dict[str, Any]:
        """Of optimiser and scaler."""
        return {
            "optimiser": self.optimiser.state_dict(),
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue with a `state_dict`."""
        self.optimiser.load_state_dict(state["optimiser"])
        if self.scaler is not None:
            self.scaler.load_state_dict(state["scaler"])


def _scaler(device: torch.device) -> Any:
    if hasattr(torch.amp, "GradScaler"):
        return torch.amp.GradScaler(device.type)
    return torch.cuda.amp.GradScaler()  # torch before 2.3
