"""Augmentation of views by nnU-Net's own transforms, drawn from one generator."""

from __future__ import annotations

import random as python_random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import numpy as np
import torch
from batchgeneratorsv2.helpers.scalar_type import RandomScalar
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
from batchgeneratorsv2.transforms.intensity.contrast import BGContrast, ContrastTransform
from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from torch import Tensor

Augmentation = Callable[[Tensor], Tensor]
TURN = np.pi / 6  # nnU-Net's 30 degrees about each axis


def spatial(patch_size: Sequence[int]) -> Augmentation:
    """Rotation and scaling (each with probability 0.2) and mirroring, as nnssl's masked autoencoders have them.

    Patches that are more than three times as long as thick are not turned: slices would be mixed.

    Args:
        patch_size: (3,) voxels of the result; a larger patch may be given, its centre counts.
    """
    anisotropic = max(patch_size) > 3 * min(patch_size)  # nnU-Net's threshold
    turn: RandomScalar = (0.0, 0.0) if anisotropic else (-TURN, TURN)
    return _OnImages(
        SpatialTransform(
            tuple(patch_size),
            patch_center_dist_from_border=0,
            random_crop=False,
            p_rotation=0.0 if anisotropic else 0.2,
            rotation=turn,
            p_scaling=0.2,
            scaling=(0.7, 1.4),
            p_synchronize_scaling_across_axes=1,
        ),
        MirrorTransform(allowed_axes=(0, 1, 2)),
    )


def intensity() -> Augmentation:
    """nnU-Net's noise, blur, brightness, contrast and gamma, with its probabilities, at most half as strong.

    No mirroring: what is left and right is anatomy to a pair of views (specification alice 4.4).
    """
    mild = BGContrast((0.85, 1.15))
    return _OnImages(
        RandomTransform(GaussianNoiseTransform((0, 0.05), p_per_channel=1, synchronize_channels=True), 0.1),
        RandomTransform(GaussianBlurTransform((0.5, 0.8), p_per_channel=0.5), 0.2),
        RandomTransform(MultiplicativeBrightnessTransform(mild, synchronize_channels=False, p_per_channel=1), 0.15),
        RandomTransform(
            ContrastTransform(mild, preserve_range=True, synchronize_channels=False, p_per_channel=1), 0.15
        ),
        RandomTransform(
            GammaTransform(
                BGContrast((0.8, 1.25)), p_invert_image=0, synchronize_channels=False, p_per_channel=1, p_retain_stats=1
            ),
            0.3,
        ),
    )


@contextmanager
def drawn_from(random: np.random.Generator) -> Iterator[None]:
    """Within, the global generators that transforms use follow `random`; afterwards they are as before."""
    states = python_random.getstate(), np.random.get_state(), torch.get_rng_state()
    seeds = random.integers(0, 2**31, 3)
    python_random.seed(int(seeds[0]))
    np.random.seed(int(seeds[1]))
    torch.manual_seed(int(seeds[2]))
    try:
        yield
    finally:
        python_random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


class _OnImages:
    """Transforms of an image alone; a class, because worker processes get it by pickle."""

    def __init__(self, *transforms: BasicTransform) -> None:
        self.composed = ComposeTransforms(list(transforms))

    def __call__(self, image: Tensor) -> Tensor:
        """The transformed image (C, *patch)."""
        return cast("Tensor", self.composed(image=image)["image"])
