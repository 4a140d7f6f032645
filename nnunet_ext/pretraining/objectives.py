"""What the training loop knows of a method of pre-training."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor, nn

from nnunet_ext.pretraining.views import Views


class Objective(Protocol):
    """A method: its networks, its losses, and what changes after a step.

    Attributes:
        views: how many views of a sample it wants: 1 for masked autoencoding, 2 for Alice.
        student: the module that is trained, and wrapped by `DistributedDataParallel` where there are several
            processes: it is called once a step, and its parameters that need a gradient are all that is optimised.
    """

    views: int
    student: nn.Module

    def losses(self, student: nn.Module, views: Views, step: int) -> dict[str, Tensor]:
        """The losses of a step; nothing that a resumed training needs changes here.

        Args:
            student: `self.student`, perhaps wrapped.
            views: on the student's device.
            step: counted from 0.

        Returns:
            Scalars in float32: "loss" carries the gradient; its parts ("reconstruction", "cls", "patch", ...) and
            what is watched are detached.
        """
        ...

    def after_step(self, step: int) -> None:
        """Change what the optimiser does not: teacher and centres. Only after a step that the optimiser has made."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """All that an exact continuation needs, but for the optimiser: tensors and plain Python values."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue with a `state_dict`.

        Raises:
            UserError: the state of another method, or of other options.
        """
        ...

    def exported(self) -> dict[str, dict[str, Tensor]]:
        """State dicts of the plans' network: "student", and "teacher" where there is one."""
        ...
