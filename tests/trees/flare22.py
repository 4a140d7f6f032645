"""FLARE22's folders, with an archive of unlabelled cases."""

from __future__ import annotations

import zipfile
from pathlib import Path

from trees.volumes import SHAPE, Tree, Truth, affine, image, labels, save

ORGANS = tuple(range(1, 14))


def truth(seed: int, shape: tuple[int, ...] = SHAPE) -> Truth:
    """What belongs to a case."""
    return Truth(labels(seed, ORGANS, shape), affine((0.8, 0.8, 2.5), seed=seed))


def build(root: Path, *, complete: bool = False) -> Tree:
    """Write it: three labelled cases, two (or all 50, tiny) of the validation, two unlabelled in an archive.

    Oddity (not if complete): a label without image.
    """
    place = root / "FLARE22"
    labelled = place / "Training" / "FLARE22_LabeledCase50"
    made = Tree("flare22", place)
    for number in (1, 2, 3):
        known = truth(number)
        name = f"FLARE22_Tr_{number:04d}"
        save(labelled / "images" / f"{name}_0000.nii.gz", image(number, ct=True), known.affine)
        save(labelled / "labels" / f"{name}.nii.gz", known.labels, known.affine)
        made.training[name] = known
    for number in range(1, 51 if complete else 3):
        known = truth(100 + number, (7, 6, 5) if complete else SHAPE)
        name = f"FLARETs_{number:04d}"
        content = image(100 + number, known.labels.shape, ct=True)
        save(place / "Validation" / f"{name}_0000.nii.gz", content, known.affine)
        made.test[name] = known
    with zipfile.ZipFile(place / "Training" / "FLARE22_UnlabeledCase1-1000.zip", "w") as archive:
        for number in (1, 2):
            path = save(root / f"Case_{number:05d}_0000.nii.gz", image(300 + number, ct=True), affine(seed=number))
            archive.write(path, f"FLARE22_UnlabeledCase1-1000/{path.name}")
            path.unlink()
    if not complete:
        save(labelled / "labels" / "FLARE22_Tr_0004.nii.gz", truth(4).labels, truth(4).affine)
        made.faulty.add("FLARE22_Tr_0004")
    return made
