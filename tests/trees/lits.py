"""LiTS as its archives unpack."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from trees.volumes import SHAPE, Tree, Truth, affine, image, labels, save


def truth(seed: int, shape: tuple[int, ...] = SHAPE) -> Truth:
    """What belongs to a case."""
    return Truth(labels(seed, (1, 2), shape), affine((0.7, 0.7, 2.5), seed=seed))


def volume(seed: int, known: np.ndarray) -> np.ndarray:
    """An image (x, y, z) in which only the liver has a liver's intensities, so that a flip shows."""
    made = image(seed, known.shape, ct=True)
    made[(made > 0) & (made < 300)] -= 350
    made[known > 0] = 90
    return made


def build(root: Path, *, complete: bool = False) -> Tree:
    """Write it: cases 0, 1, 28 and 53 for training, 0 and 1 (or all 70, tiny) for the test.

    Oddities: segmentation 1 has other signs of axes, segmentation 53 an identity affine; (not if complete)
    segmentation 2 is flipped.
    """
    place = root / "LiTS"
    made = Tree("lits", place)
    for number in (0, 1, 28, 53) if complete else (0, 1, 2, 28, 53):
        known = truth(number)
        folder = place / f"Training Batch {1 if number < 28 else 2}"
        save(folder / f"volume-{number}.nii", volume(number, known.labels), known.affine)
        odd = {1: known.affine @ np.diag([-1.0, -1, 1, 1]), 53: np.eye(4)}.get(number, known.affine)
        stored = known.labels[::-1] if number == 2 else known.labels
        save(folder / f"segmentation-{number}.nii", stored, odd)
        if number == 2:
            made.faulty.add("liver_2")
        else:
            made.training[f"liver_{number}"] = known
    shape = (7, 6, 5) if complete else SHAPE
    for number in range(70) if complete else (0, 1):
        known = truth(200 + number, shape)
        path = place / "LITS-Challenge-Test-Data" / f"test-volume-{number}.nii"
        save(path, volume(200 + number, known.labels), known.affine)
        made.test[f"test_{number}"] = known
    return made
