"""Everything that decides about a training: written into its checkpoints, and asked for again when it goes on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from nnunet_ext.errors import UserError

METHODS = ("mae", "alice")
PRECISIONS = ("off", "bf16", "fp16")
VIEWS = ("auto", "overlap", "bodybox", "affine", "embedding")


@dataclass(frozen=True)
class Settings:
    """Of one training.

    Attributes:
        method: "mae" or "alice".
        trainer: name of the trainer whose network it is.
        steps: of the whole training.
        batch_size: samples of a step, of all processes together; for Alice, pairs.
        patch_size: (3,) voxels.
        mask_block: (3,) voxels.
        mask_ratio: share of the blocks that is hidden.
        mask_style: "blocks" or "tube".
        augment: as `SamplingOptions.augment`.
        visible_weight: of visible voxels in the reconstruction's loss.
        landmarks: kind of the landmark table that pairs come from; "overlap": pairs of one volume only.
        anatomical_share: of pairs of two volumes.
        shuffled: wrong pairs on purpose.
        optimiser: "sgd" or "adamw".
        learning_rate: the highest.
        clip: largest norm of all gradients together.
        precision: "off", "bf16" or "fp16".
        checkpointing: compute activations again in the backward pass.
        seed: of everything that is drawn.
        alice: all of `AliceOptions` by name; empty for other methods.
    """

    method: str
    trainer: str
    steps: int
    batch_size: int
    patch_size: tuple[int, ...]
    mask_block: tuple[int, ...]
    mask_ratio: float
    mask_style: str
    augment: bool
    visible_weight: float
    landmarks: str
    anatomical_share: float
    shuffled: bool
    optimiser: str
    learning_rate: float
    clip: float
    precision: str
    checkpointing: bool
    seed: int
    alice: Mapping[str, Any]

    def __post_init__(self) -> None:
        """Refuse numbers that cannot work.

        Raises:
            UserError: names the option.
        """
        if not (self.learning_rate > 0 and math.isfinite(self.learning_rate)):
            raise UserError(f"--learning-rate must be above 0; got {self.learning_rate}")
        if not (self.visible_weight >= 0 and math.isfinite(self.visible_weight)):
            raise UserError(f"--visible-weight must be 0 or more; got {self.visible_weight}")
        if self.seed < 0:
            raise UserError(f"--seed must be 0 or more; got {self.seed}")

    def as_dict(self) -> dict[str, Any]:
        """Plain values; tuples stay tuples."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Settings:
        """What `as_dict` made.

        Raises:
            UserError: settings of another version.
        """
        names = {field.name for field in fields(cls)}
        if set(content) != names:
            raise UserError(
                f"the checkpoint's settings are of another version: {', '.join(sorted(set(content) ^ names))}; "
                "continue with the version of nnunet_ext that it was begun with"
            )
        return cls(**content)
