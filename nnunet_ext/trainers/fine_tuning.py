"""Fine-tuning of pre-trained weights (specification alice 4.5): what the suffix ``_FineTune`` puts before a trainer."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from nnunet_ext.trainers import pretrained_weights
from nnunet_ext.trainers.base import BaseTrainer

RATE = 0.1  # times the learning rate from scratch
WARMUP_SHARE = 0.05  # of the epochs: 50 of nnU-Net's 1000
_FACTOR = "rate_factor"  # entry of a parameter group


class FineTuneMixin(BaseTrainer):
    """A tenth of the trainer's learning rate, after a linear warm-up over 5 % of the epochs; all else as without it.

    So the control from scratch is the same name without the suffix. The weights come from nnU-Net's own
    ``-pretrained_weights``. Rates depend on epoch and iteration alone: a resumed training continues exactly.

    Attributes:
        encoder_rate_factor: the learning rate of ``network.encoder`` is so many times that of the rest. 1 by default:
            the recipe that this one follows (nnssl's: 1e-3, 50 epochs of warm-up) trains all at one rate, and the
            control differs in fewer things. The specification's option is 0.3.
        freeze_epochs: for so many epochs ``network.encoder`` is not trained: no gradient, no weight decay, evaluation
            mode. It counts after that as if training began anew, with the schedule where it is by then.
    """

    encoder_rate_factor: ClassVar[float] = 1.0
    freeze_epochs: ClassVar[int] = 0
    initial_lr: float

    def initialize(self) -> None:
        """As without the suffix, at other learning rates.

        Raises:
            ValueError: attributes out of range, or an encoder is to be treated apart and the network has none.
        """
        self._require_possible()
        scratch: float = self.initial_lr
        self.initial_lr = RATE * scratch
        iterations = round(WARMUP_SHARE * self.num_epochs * self.num_iterations_per_epoch)
        self.warmup_iterations = max(self.warmup_iterations, iterations)
        super().initialize()
        if self.freeze_epochs:
            self._attach_freezing()
        apart = [f"encoder at {self.encoder_rate_factor:g} times that"] if self.encoder_rate_factor != 1 else []
        apart += [f"encoder frozen for {self.freeze_epochs} epochs"] if self.freeze_epochs else []
        self.print_to_log_file(
            f"Fine-tuning: learning rate {self.initial_lr:g} ({RATE:g} of {scratch:g} from scratch), "
            f"{', '.join([f'rising over the first {self.warmup_iterations} iterations', *apart])}."
        )

    def on_train_start(self) -> None:
        """As without the suffix; says so when there is nothing to be fine-tuned."""
        super().on_train_start()
        if self.current_epoch == 0 and pretrained_weights.file_of(self.network) is None:
            name = type(self).__name__
            self.print_to_log_file(
                f"WARNING: {name} is fine-tuning, but no -pretrained_weights were given: it starts from random weights "
                f"at a tenth of their learning rate. From scratch, train with {name.replace('_FineTune', '', 1)}."
            )

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, Any]:
        """The trainer's, with groups of the encoder's parameters apart where their rate differs."""
        optimizer, schedule = super().configure_optimizers()
        if self.encoder_rate_factor != 1:
            theirs = {id(parameter) for parameter in self._encoder().parameters()}
            for group in list(optimizer.param_groups):
                inside = [p for p in group["params"] if id(p) in theirs]
                group["params"] = [p for p in group["params"] if id(p) not in theirs]
                same = {key: value for key, value in group.items() if key != "params"}
                optimizer.add_param_group({**same, "params": inside, _FACTOR: self.encoder_rate_factor})
        return optimizer, schedule

    def is_frozen(self) -> bool:
        """Whether the encoder is not trained in this epoch."""
        return self.current_epoch < self.freeze_epochs

    def _require_possible(self) -> None:
        if self.encoder_rate_factor <= 0 or self.freeze_epochs < 0:
            raise ValueError(
                f"{type(self).__name__}: encoder_rate_factor must be above 0 and freeze_epochs not below 0; got "
                f"{self.encoder_rate_factor} and {self.freeze_epochs}."
            )

    def _encoder(self) -> nn.Module:
        encoder = getattr(self.bare_network(), "encoder", None)
        if not isinstance(encoder, nn.Module):
            raise ValueError(
                f"{type(self.bare_network()).__name__} has no part called encoder: leave encoder_rate_factor at 1 and "
                "freeze_epochs at 0."
            )
        return encoder

    def _begin_epoch(self) -> None:
        """Rates of the groups, from what the schedule has set for all; a frozen encoder in evaluation mode."""
        for group in self.optimizer.param_groups:
            group["lr"] *= group.get(_FACTOR, 1.0)
        super()._begin_epoch()
        if self.is_frozen():
            self._encoder().eval()

    def _attach_freezing(self) -> None:
        """While frozen, gradients are zero for clipping (and for DDP, which waits for them), and no step is made."""
        parameters = [p for p in self._encoder().parameters() if p.requires_grad]

        def silence(gradient: Tensor) -> Tensor | None:
            return torch.zeros_like(gradient) if self.is_frozen() else None

        def skip(*_: Any) -> None:
            if self.is_frozen():
                for parameter in parameters:
                    parameter.grad = None

        for parameter in parameters:
            parameter.register_hook(silence)
        self.optimizer.register_step_pre_hook(skip)
