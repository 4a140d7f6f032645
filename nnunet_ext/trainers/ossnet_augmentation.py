"""The augmentation of OSS-Net's paper (``specs/ossnet.md`` 2.1): flips, brightness, noise, each with chance 0.5."""

from __future__ import annotations

from typing import Any

import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from torch import Tensor

PROBABILITY = 0.5
BRIGHTNESS = 0.15  # of a channel's maximum, up or down
NOISE = 0.15  # standard deviation


class PublishedAugmentation(BasicTransform):
    """Flips one or both of the last two axes, adds a share of each channel's maximum, adds noise."""

    def get_parameters(self, **data_dict: Any) -> dict[str, Any]:
        """What is done to one sample; drawn from torch's random state."""
        flip, brighten, noisy = (torch.rand(3) < PROBABILITY).tolist()
        axes = torch.randperm(2)[: int(torch.randint(1, 3, ()))].tolist() if flip else []
        return {"axes": [-1 - axis for axis in axes], "brighten": brighten, "noisy": noisy}

    def _apply_to_image(self, img: Tensor, **params: Any) -> Tensor:
        """img: (C, *spatial)."""
        img = self._flip(img, params["axes"])
        if params["brighten"]:
            shift = (torch.rand(len(img)) * 2 - 1) * BRIGHTNESS * img.flatten(1).amax(1)
            img = img + shift.view(-1, *(1,) * (img.dim() - 1))
        return img + NOISE * torch.randn_like(img) if params["noisy"] else img

    def _apply_to_segmentation(self, segmentation: Tensor, **params: Any) -> Tensor:
        return self._flip(segmentation, params["axes"])

    @staticmethod
    def _flip(x: Tensor, axes: list[int]) -> Tensor:
        return x.flip(axes) if axes else x
