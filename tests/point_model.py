"""A tiny network that decodes points, with a trained model folder of it: what fields of cases are tested with."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from torch import Tensor, nn
from torch.nn import functional

from nnunet_ext.architectures.occupancy import OccupancyNetwork

PATCH = (8, 12, 10)


class TinyPoints(OccupancyNetwork):
    """Logits are a convolution of the image, linearly between voxels; an encoded window also knows its own mean.

    The mean makes windows disagree, so that it matters how they are blended.
    """

    chunk_points = 1000

    def __init__(
        self, input_channels: int, num_classes: int, *, regions: bool = False, dim: int = 3, cell: int = 0
    ) -> None:
        super().__init__()
        self.dim, self.input_channels, self.num_classes, self.regions = dim, input_channels, num_classes, regions
        self.n_points, self.first_stride, self.decode_mode = 16, (2,) * dim, "dense"
        self.conv = nn.Conv3d(input_channels, num_classes, 3, padding=1)
        self.cell = cell
        self.decoder, self.strides = SimpleNamespace(deep_supervision=False), [(1,) * dim]

    def check_patch_size(self, patch_size: Sequence[int]) -> None:
        pass

    def encode(self, x: Tensor) -> Tensor:
        return self.conv(x) + x.mean()

    def decode(self, context: Tensor, coords: Tensor, x: Tensor, on_grid: int = 0) -> Tensor:
        size = torch.tensor(x.shape[2:], dtype=coords.dtype)
        normalised = ((coords + 0.5) / size * 2 - 1).flip(-1)[:, :, None, None]
        return functional.grid_sample(context, normalised, padding_mode="border", align_corners=False)[..., 0, 0]

    def presence(self, context: Tensor) -> Tensor | None:
        return functional.max_pool3d(context.sigmoid(), self.cell) if self.cell else None


def predictor(
    network: nn.Module,
    *,
    patch: Sequence[int] = PATCH,
    transpose: Sequence[int] = (0, 1, 2),
    labels: dict[str, Any] | None = None,
    order: Sequence[int] | None = None,
    folds: Sequence[dict[str, Tensor]] = (),
    plans: dict[str, Any] | None = None,
) -> nnUNetPredictor:
    """nnU-Net's, on the CPU and without mirroring, with a network and as much of plans as prediction needs."""
    made = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
    made.network = network
    made.list_of_parameters = list(folds) or [network.state_dict()]
    made.allowed_mirroring_axes = (0, 1, 2)
    made.label_manager = LabelManager(labels or {"background": 0, "organ": 1, "core": 2}, order)
    made.configuration_manager = SimpleNamespace(patch_size=list(patch))
    made.plans_manager = SimpleNamespace(transpose_forward=list(transpose), plans=plans or {})
    return made


def properties(
    shape: Sequence[int], *, crop: Sequence[tuple[int, int]] | None = None, spacing: Sequence[float] = (1, 1, 1)
) -> dict[str, Any]:
    """nnU-Net's, of a case whose transposed shape is given."""
    crop = crop or [(0, edge) for edge in shape]
    return {
        "spacing": list(spacing),
        "shape_before_cropping": tuple(shape),
        "bbox_used_for_cropping": [list(pair) for pair in crop],
        "shape_after_cropping_and_before_resampling": tuple(high - low for low, high in crop),
    }


def noise(*shape: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).normal(size=shape)).float()
