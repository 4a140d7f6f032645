"""Where the patient is in a volume: a mask on the coarse grid, its box, and points spread over it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from skimage.filters import threshold_otsu

from nnunet_ext.pretraining.coarse import Coarse
from nnunet_ext.pretraining.frames import Array, Frame

BODY_HU = -500.0
CROPPED_MM = 120.0
"""Images whose largest edge is shorter, in the median, are taken for crops of one organ: their box is the image's."""
CANDIDATES = 4000
TRIALS = 10

Mask = npt.NDArray[np.bool_]


def is_ct(configuration: Mapping[str, Any]) -> bool:
    """Whether the first channel is normalised as CT, i.e. was in Hounsfield units."""
    return str(configuration["normalization_schemes"][0]) == "CTNormalization"


def body_threshold(plans: Mapping[str, Any], configuration: Mapping[str, Any]) -> float | None:
    """The value in the preprocessed first channel that -500 HU has become.

    nnU-Net clips CT to percentiles of the foreground, subtracts the mean and divides by the standard deviation.

    Args:
        plans: content of the plans file.
        configuration: one of its configurations, complete.

    Returns:
        None where it can't be told: not a CT, or -500 HU and less have been clipped to one value.
    """
    if not is_ct(configuration):
        return None
    known = plans["foreground_intensity_properties_per_channel"]["0"]
    if not known["percentile_00_5"] < BODY_HU < known["percentile_99_5"]:
        return None
    return float((BODY_HU - known["mean"]) / max(known["std"], 1e-8))


def body_mask(volume: Coarse, threshold: float | None = None) -> Mask:
    """The largest connected part above the threshold, opened, and filled in each axial slice.

    Args:
        volume: a coarse volume.
        threshold: in its units; None: Otsu's.

    Returns:
        (z, y, x) bool; all of the image where nothing is left.

    Reference: specification alice 3.3.
    """
    values = volume.values[volume.inside]
    if not values.size or values.min() == values.max():
        return volume.inside
    level = float(threshold_otsu(values)) if threshold is None else threshold
    above = (volume.values > level) & volume.inside
    # Beyond the edge of the image the body goes on; and thin volumes would not survive otherwise.
    opened = ndimage.binary_dilation(ndimage.binary_erosion(above, border_value=1)) & above
    parts, number = ndimage.label(opened)
    if number == 0:
        return volume.inside
    largest = parts == 1 + int(np.argmax(np.bincount(parts.ravel())[1:]))
    return np.stack([ndimage.binary_fill_holes(axial) for axial in largest]) & volume.inside


def mask_box(mask: Mask, frame: Frame) -> Array:
    """(2, 3) float64: least and greatest LPS mm (x, y, z) of a mask's cells on a regular grid."""
    bounds = []
    for axis in range(3):
        found = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
        bounds.append((found[0] - 0.5, found[-1] + 0.5))
    return frame.to_lps(np.asarray(bounds).T)


def image_box(frame: Frame) -> Array:
    """(2, 3) float64: least and greatest LPS mm (x, y, z) of an array's corners."""
    corners = frame.corners()
    return np.stack([corners.min(0), corners.max(0)])


def points_in(mask: Mask, frame: Frame, number: int, rng: np.random.Generator) -> Array:
    """Points (number, 3) LPS mm, uniform over the cells of a mask that is not empty."""
    cells = np.argwhere(mask)
    chosen = cells[rng.integers(len(cells), size=number)]
    return frame.to_lps(chosen + rng.uniform(-0.5, 0.5, (number, 3)))


def spread_points(volume: Coarse, mask: Mask, number: int, patch: float, rng: np.random.Generator) -> Array:
    """Points that can be recognised elsewhere, evenly over the body: none close to another, none in flat regions.

    Of random cells of the mask, the quarter with the least local contrast is left out; then each point is the
    candidate, of ten that are drawn, which lies farthest from those before it.

    Args:
        volume: of the reference.
        mask: its body.
        number: of points.
        patch: mm: the neighbourhood whose contrast counts.
        rng: decides.

    Returns:
        (number, 3) float64 LPS mm; fewer where the body has fewer cells.
    """
    cells = np.argwhere(mask)
    cells = cells[np.sort(rng.permutation(len(cells))[:CANDIDATES])]
    size = [max(1, round(patch / 2 / mm)) for mm in volume.frame.spacing]
    mean, square = (ndimage.uniform_filter(volume.values.astype(np.float64) ** power, size) for power in (1, 2))
    contrast = np.sqrt(np.maximum(square - mean**2, 0))[tuple(cells.T)]
    kept = cells[contrast >= np.quantile(contrast, 0.25)]
    points = volume.frame.to_lps(kept)
    return points[_spread(points, number, rng)]


def _spread(points: Array, number: int, rng: np.random.Generator) -> list[int]:
    chosen = [int(rng.integers(len(points)))]
    distance = np.linalg.norm(points - points[chosen[0]], axis=1)
    while len(chosen) < min(number, len(points)):
        drawn = rng.integers(len(points), size=TRIALS)
        best = int(drawn[np.argmax(distance[drawn])])
        if distance[best] == 0:
            best = int(np.argmax(distance))
        chosen.append(best)
        distance = np.minimum(distance, np.linalg.norm(points - points[best], axis=1))
    return chosen
