"""Masked autoencoding: the plans' network reconstructs what was hidden from it (specification alice 4.4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from nnunet_ext.errors import UserError
from nnunet_ext.losses.masked_reconstruction import masked_error, voxels_of
from nnunet_ext.pretraining.adapters import Adapter
from nnunet_ext.pretraining.masking import fill_values, masked_images
from nnunet_ext.pretraining.views import Views


class Reconstructing(nn.Module):
    """An adapter whose output is the reconstruction alone, so that all of its parameters get a gradient."""

    def __init__(self, adapter: Adapter) -> None:
        super().__init__()
        self.adapter = adapter

    def forward(self, images: Tensor) -> Tensor:
        """Reconstruct (B, C, *patch) from masked images of that shape."""
        reconstruction: Tensor = self.adapter(images).reconstruction
        return reconstruction


class MaskedAutoencoder:
    """Dense masking and the mean squared error over hidden voxels; implements `Objective`.

    Args:
        adapter: around the plans' network.
        visible_weight: factor of the mean squared error over visible voxels.
        fill: what hidden voxels are filled with: one value or one for each channel.
        scale: unit of the error, as many values; see `masked_error`.
    """

    views = 1

    def __init__(
        self,
        adapter: Adapter,
        visible_weight: float = 0.0,
        fill: Sequence[float] = (0.0,),
        scale: Sequence[float] = (1.0,),
    ) -> None:
        self.student: nn.Module = Reconstructing(adapter)
        self.adapter = adapter
        self.visible_weight = visible_weight
        self.fill, self.scale = tuple(fill), tuple(scale)

    def losses(self, student: nn.Module, views: Views, step: int) -> dict[str, Tensor]:
        """The reconstruction's loss; see `Objective.losses`."""
        hidden = voxels_of(views.hidden, views.images.shape[2:])
        fill = fill_values(self.fill, views.images.shape[1])
        reconstruction = student(masked_images(views.images, hidden, fill))
        loss = masked_error(reconstruction, views.clean, hidden, self.visible_weight, self.scale)
        return {"loss": loss, "reconstruction": loss.detach()}

    def after_step(self, step: int) -> None:
        """Nothing is left to change."""

    def state_dict(self) -> dict[str, Any]:
        """The student alone; see `Objective.state_dict`."""
        return {"method": "mae", "visible_weight": self.visible_weight, "student": self.student.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue with a `state_dict`; see `Objective.load_state_dict`."""
        method, weight = state.get("method"), state.get("visible_weight")
        if method != "mae" or weight != self.visible_weight:
            raise UserError(
                f"the training to continue has method {method!r} with visible weight {weight}, this one has 'mae' "
                f"with {self.visible_weight}: continue with the options that it was begun with"
            )
        self.student.load_state_dict(state["student"])

    def exported(self) -> dict[str, dict[str, Tensor]]:
        """The plans' network; see `Objective.exported`."""
        return {"student": self.adapter.network.state_dict()}
