"""Alice: masked reconstruction, and a teacher's view of the same anatomy (specification alice 1.1, 1.7, 4.4)."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from nnunet_ext.errors import UserError
from nnunet_ext.losses.alice import (
    Centres,
    across_loss,
    cls_loss,
    exchange_views,
    patch_loss,
    teacher_distribution,
    token_mean,
    tokens_of_other_view,
)
from nnunet_ext.losses.masked_reconstruction import masked_error, voxels_of, whole_error
from nnunet_ext.pretraining import monitors
from nnunet_ext.pretraining.adapters import Adapter
from nnunet_ext.pretraining.alice_network import AliceNetwork, AliceOutputs, broadcast, follow, share_statistics
from nnunet_ext.pretraining.alice_options import AliceOptions
from nnunet_ext.pretraining.masking import fill_values, masked_images
from nnunet_ext.pretraining.schedules import teacher_momentum, teacher_temperature
from nnunet_ext.pretraining.views import Views

WATCH_EVERY = 10
"""Steps between two looks at the monitors, each of which waits for the device."""


class Taught(NamedTuple):
    """The teacher's outputs, without gradient.

    Attributes:
        neck: (2*B, C_n, *grid), features.
        cls: (2*B, K) logits of whole views.
        aligned: (2*B, L_q, K) logits of aligned tokens.
    """

    neck: Tensor
    cls: Tensor
    aligned: Tensor


class Alice:
    """A masked student, and a teacher that is its moving average and sees everything; implements `Objective`.

    Args:
        adapter: around the plans' network; the student trains it.
        total_steps: length of the schedules.
        options: see `AliceOptions`.
        warn: told when the monitors say that training may have collapsed.

    Attributes:
        teacher: always in eval mode, without gradients.
        centres: of the teacher's logits.
    """

    views = 2

    def __init__(
        self,
        adapter: Adapter,
        total_steps: int,
        options: AliceOptions | None = None,
        warn: Callable[[str], object] = warnings.warn,
    ) -> None:
        self.options = options or AliceOptions()
        self.total_steps = total_steps
        self.network = AliceNetwork(adapter, self.options).to(next(adapter.parameters()).device)
        self.student: nn.Module = self.network
        self.teacher = make_teacher(self.network, self.options)
        self.centres = Centres.zeros(self.options.prototypes)
        self.watcher = monitors.Watcher(self.options.prototypes)
        self.warn = warn
        self._prototypes_learn = True
        self._is_alike = False
        self._means: tuple[Tensor, Tensor] | None = None
        self._watched: dict[str, Tensor] = {}
        for prototypes in (self.network.head.cls_prototypes, self.network.head.patch_prototypes):
            prototypes.weight.register_hook(self._gate)

    def losses(self, student: nn.Module, views: Views, step: int) -> dict[str, Tensor]:
        """Losses and monitors of a step; see `Objective.losses`.

        Raises:
            ValueError: another number of views than two for each shift.
        """
        if len(views.images) != 2 * len(views.shift):
            raise ValueError(f"two views of {len(views.shift)} samples are needed, got {len(views.images)} images")
        self._move(views.images.device)
        self._prototypes_learn = step >= round(self.options.frozen_prototypes * self.total_steps)
        hidden = voxels_of(views.hidden, views.images.shape[2:])
        images = views.images if self.options.augmentation else views.clean
        fill = fill_values(self.options.fill, images.shape[1])
        outputs: AliceOutputs = student(masked_images(images, hidden, fill))
        taught = self._teach(views.clean, outputs.encoder)
        targets = self._targets(taught, step)
        parts = self._parts(outputs, taught, targets, views, step)
        parts["reconstruction"] = self._reconstruction(outputs.reconstruction, views.clean, hidden)
        weights = self.options.weights
        patches = parts["patch"] + parts["patch_across"] if self.options.across_views else parts["patch"]
        loss = weights[0] * parts["cls"] + weights[1] * patches + weights[2] * parts["reconstruction"]
        self._means = token_mean(taught.cls), token_mean(taught.aligned)
        self._watched = {
            "entropy_cls": monitors.entropy(targets[0]),
            "entropy_patch": monitors.entropy(targets[1]),
            "spread": monitors.feature_spread(taught.neck.movedim(1, -1).flatten(0, -2)),
        }
        return {
            "loss": loss,
            **{name: part.detach() for name, part in parts.items()},
            **self._watched,
            "divergence_cls": monitors.divergence_from_uniform(targets[0]),
            "divergence_patch": monitors.divergence_from_uniform(targets[1]),
            "agreement": monitors.agreement(exchange_views(targets[0]), outputs.cls),
            "two_volumes": views.shift.isnan().any(1).float().mean(),
            "temperature": torch.tensor(self.temperature(step)),
            "momentum": torch.tensor(self._momentum(step)),
        }

    def after_step(self, step: int) -> None:
        """Centres and teacher follow; see `Objective.after_step`."""
        if self._means is not None:
            self.centres.update(*self._means, momentum=self.options.centre_momentum)
        follow(self.teacher, self.network, self._momentum(step))
        share_statistics(self.teacher)
        if step % WATCH_EVERY == 0 and self._watched:
            values = torch.stack(list(self._watched.values())).tolist()
            for message in self.watcher.update(step, dict(zip(self._watched, values, strict=True))):
                self.warn(message)
        self._means, self._watched = None, {}

    def temperature(self, step: int) -> float:
        """The teacher's temperature at a step."""
        warm_up = round(self.options.temperature_warm_up * self.total_steps)
        return teacher_temperature(step, warm_up, *self.options.teacher_temperatures)

    def _momentum(self, step: int) -> float:
        return teacher_momentum(step, self.total_steps, self.options.teacher_momentum)

    def state_dict(self) -> dict[str, Any]:
        """Both networks with their heads and CASAs, centres, monitors; see `Objective.state_dict`."""
        return {
            "method": "alice",
            "options": asdict(self.options),
            "student": self.network.state_dict(),
            "teacher": self.teacher.state_dict(),
            "centres": {"cls": self.centres.cls, "patch": self.centres.patch},
            "watcher": self.watcher.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue with a `state_dict`; see `Objective.load_state_dict`."""
        if state.get("method") != "alice":
            raise UserError(f"the training to continue has method {state.get('method')!r}, this one has 'alice'")
        ours, theirs = asdict(self.options), dict(state["options"])
        different = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
        if different:
            raise UserError(
                f"the training to continue was begun with other options: {', '.join(different)} = "
                f"{[theirs.get(name) for name in different]}, now {[ours.get(name) for name in different]}; continue "
                "with those that it was begun with"
            )
        self.network.load_state_dict(state["student"])
        self.teacher.load_state_dict(state["teacher"])
        device = next(self.teacher.parameters()).device
        centres = {name: value.to(device, copy=True) for name, value in state["centres"].items()}
        self.centres = Centres(**centres)
        self.watcher.load_state_dict(state["watcher"])

    def exported(self) -> dict[str, dict[str, Tensor]]:
        """The plans' network of student and teacher; see `Objective.exported`."""
        return {
            "student": self.network.adapter.network.state_dict(),
            "teacher": self.teacher.adapter.network.state_dict(),
        }

    @torch.no_grad()
    def _teach(self, clean: Tensor, queries: Tensor) -> Taught:
        """The teacher's outputs for whole images; `queries` (2*B, L_q, K) are the student's."""
        features, projections = self.teacher.project(clean)
        casa = self.teacher.casa if self.options.average_casa else self.network.casa
        aligned = self.options.aligned_scale * casa(queries, projections.decoder)
        return Taught(features.neck, projections.cls, aligned)

    def _targets(self, taught: Taught, step: int) -> tuple[Tensor, Tensor]:
        """The teacher's distributions of views (2*B, K) and of aligned tokens (2*B, L_q, K)."""
        temperature = self.temperature(step)
        return (
            teacher_distribution(taught.cls, self.centres.cls, temperature),
            teacher_distribution(taught.aligned, self.centres.patch, temperature),
        )

    def _parts(
        self, outputs: AliceOutputs, taught: Taught, targets: tuple[Tensor, Tensor], views: Views, step: int
    ) -> dict[str, Tensor]:
        """The distributions' losses; between the views of pairs from one volume too, with the part that overlaps."""
        temperature = self.options.student_temperature
        parts = {
            "cls": cls_loss(targets[0], outputs.cls, temperature),
            "patch": patch_loss(targets[1], outputs.aligned, temperature),
        }
        if self.options.across_views:
            grid, patch_size = taught.neck.shape[2:], views.clean.shape[2:]
            there, valid = tokens_of_other_view(taught.aligned, grid, views.shift, patch_size)
            temperatures = (self.temperature(step), temperature)
            parts["patch_across"] = across_loss(there, outputs.aligned, valid, self.centres.patch, temperatures)
            parts["overlap"] = valid.float().mean()
        return parts

    def _reconstruction(self, prediction: Tensor, clean: Tensor, hidden: Tensor) -> Tensor:
        if self.options.reconstruction == "all":
            return whole_error(prediction, clean)
        return masked_error(prediction, clean, hidden, self.options.visible_weight, self.options.scale)

    def _gate(self, gradient: Tensor) -> Tensor:
        """The prototypes' gradient, 0 in the first steps."""
        return gradient if self._prototypes_learn else torch.zeros_like(gradient)

    def _move(self, device: torch.device) -> None:
        """Teacher and centres go where the student was moved to, and the first process's teacher to all others."""
        if next(self.teacher.parameters()).device != device:
            self.teacher.to(device)
        self.centres.to(device)
        if not self._is_alike:  # DistributedDataParallel has made the students alike only
            broadcast(self.teacher)
            self._is_alike = True


def make_teacher(student: AliceNetwork, options: AliceOptions) -> AliceNetwork:
    """A copy of the student, in eval mode and without gradients, with the published teacher's parts on demand."""
    teacher = deepcopy(student).requires_grad_(False).eval()
    if options.shared_teacher_head:
        teacher.head.share_prototypes()
    if not options.average_casa:
        teacher.casa = nn.Identity()
    return teacher
