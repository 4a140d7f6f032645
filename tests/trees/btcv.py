"""BTCV's RawData folder."""

from __future__ import annotations

from pathlib import Path

from trees.volumes import SHAPE, Tree, Truth, affine, image, labels, save

ORGANS = tuple(range(1, 14))
LABELLED = (*range(1, 11), *range(21, 41))
WITHHELD = tuple(range(61, 81))


def truth(number: int, shape: tuple[int, ...] = SHAPE) -> Truth:
    """What belongs to a case; case 2 has neither gallbladder nor right kidney."""
    organs = tuple(organ for organ in ORGANS if number != 2 or organ not in (2, 4))
    return Truth(labels(number, organs, shape), affine((0.75, 0.75, 3.0), seed=number))


def build(root: Path, *, complete: bool = False) -> Tree:
    """Write it: four labelled and two withheld cases, or all 30 and 20 tiny ones.

    Oddities: a folder called like its image, a label whose origin is another one, an image of floats, macOS's hidden
    files, and (not if complete) img0004 twice.
    """
    place = root / "RawData"
    made = Tree("btcv", place)
    shape = (7, 6, 5) if complete else SHAPE
    for number in LABELLED if complete else (1, 2, 3, 21):
        known = truth(number, shape)
        base = f"img{number:04d}.nii.gz"
        path = place / "Training" / "img" / (f"{base}/{base}" if number == 21 else base)
        save(path, image(number, shape, ct=True), known.affine, dtype="f4" if number == 3 else "i2")
        shifted = known.affine.copy()
        shifted[2, 3] += 1.5 if number == 3 else 0
        save(place / "Training" / "label" / f"label{number:04d}.nii.gz", known.labels, shifted)
        made.training[f"img{number:04d}"] = known
    for number in WITHHELD if complete else (61, 62):
        known = truth(number, shape)
        save(place / "Testing" / "img" / f"img{number:04d}.nii.gz", image(number, shape, ct=True), known.affine)
        made.test[f"img{number:04d}"] = known
    (place / "Training" / "img" / "._img0001.nii.gz").write_bytes(b"\0\5\26\7")
    if not complete:
        known = truth(4)
        for ending in (".nii", ".nii.gz"):
            save(place / "Training" / "img" / f"img0004{ending}", image(4, ct=True), known.affine)
        save(place / "Training" / "label" / "label0004.nii.gz", known.labels, known.affine)
        made.faulty.add("img0004")
    return made
