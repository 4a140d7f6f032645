"""Mean and deviation of the images that are pre-trained on, as nnU-Net's normalisation leaves them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_ext.pretraining.cases import Pool

CENTRED = ("ZScoreNormalization",)  # schemes after which 0 is an image's mean; CT's is that of the labelled foreground
LOOKED_AT = 16  # images whose mean is taken for other schemes


@dataclass(frozen=True)
class Intensities:
    """Mean and standard deviation of the images, a value a channel: 0 and 1 after z-scores.

    Hidden voxels are filled with the mean, and the standard deviation is the unit of the reconstruction's error.
    """

    mean: tuple[float, ...]
    deviation: tuple[float, ...]


def intensities_of(pool: Pool) -> Intensities:
    """As nnU-Net's normalisation leaves them; measured on some images where it isn't a z-score of each image."""
    schemes = PlansManager(pool.plans).get_configuration(pool.configuration).normalization_schemes
    if all(scheme in CENTRED for scheme in schemes):
        return Intensities((0.0,) * len(schemes), (1.0,) * len(schemes))
    step = -(-len(pool.cases) // LOOKED_AT)
    sums = [_moments(case.image()) for case in pool.cases[::step]]
    means, squares = np.mean(sums, 0)
    deviations = np.sqrt(np.maximum(squares - means**2, 1e-12))
    # Rounded, so that another machine's last bits are no other options for a training that goes on.
    return Intensities(
        tuple(0.0 if s in CENTRED else _rounded(mean) for s, mean in zip(schemes, means, strict=True)),
        tuple(1.0 if s in CENTRED else _rounded(d) for s, d in zip(schemes, deviations, strict=True)),
    )


def _moments(image: Any) -> tuple[np.ndarray, np.ndarray]:
    """Mean, and mean square, of each channel."""
    voxels = np.asarray(image).astype(np.float64)
    return voxels.mean((1, 2, 3)), (voxels**2).mean((1, 2, 3))


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
