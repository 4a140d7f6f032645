"""LiTS: abdominal CT with liver and liver tumours."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from itertools import product
from typing import ClassVar

import numpy as np

from nnunet_ext.dataset_conversion.base import Converter
from nnunet_ext.dataset_conversion.cases import Found, Layout, Rules
from nnunet_ext.dataset_conversion.one_channel import one_channel_cases
from nnunet_ext.dataset_conversion.sources import Download, SourceFile
from nnunet_ext.errors import UserError

_FILE = r"(?P<test>test-)?(?P<kind>volume|segmentation)-(?P<number>\d+)\.nii(\.gz)?"
TISSUE = (0, 200)
"""Hounsfield units between which nearly all of a liver lies, with contrast medium or without."""
CLEARLY = 0.10
"""A flip is reported if this share more of the liver's voxels has liver-like intensities under it."""
_MOST = 200_000
"""Voxels that are looked at."""


class LiTS(Converter):
    """131 cases with labels, 70 without.

    Args:
        plain_labels: liver 1 and tumour 2 exclude each other, instead of the regions liver (with tumour) and tumour.
        flip_check: "on", or "off" to take labels that seem to be flipped against their image.

    Raises:
        UserError: another value of `flip_check`.
    """

    key = "lits"
    number = 829
    name = "LiTS"
    summary = "LiTS liver and liver tumour CT; as regions, or --plain-labels"
    get_it = (
        "https://competitions.codalab.org/competitions/17094 (the archives are linked there); CC BY-NC-ND 4.0. MSD "
        "Task03_Liver holds the same 131 + 70 scans with repaired headers: `convert msd`."
    )
    looks_like = (
        "volume-0.nii ... volume-130.nii and segmentation-0.nii ... segmentation-130.nii, together or in folders such "
        "as `Training Batch 1`, `volume_pt1`, `segmentations` or `TrainingData/input`; test-volume-0.nii ... for the "
        "test; or the archives of these."
    )
    expected: ClassVar[Mapping[str, int]] = {"training": 131, "test": 70}

    def __init__(self, plain_labels: bool = False, flip_check: str = "on") -> None:
        if flip_check not in ("on", "off"):
            raise UserError(f"lits: --flip-check {flip_check}: it is on or off.")
        self.plain_labels = plain_labels
        self.flip_check = flip_check

    @classmethod
    def add_arguments(cls, parser: argparse._ArgumentGroup) -> None:
        """Add the choice of labels and the flip check."""
        parser.add_argument(
            "--plain-labels", action="store_true", help="labels liver and tumour, not the regions liver (1, 2), tumour"
        )
        parser.add_argument(
            "--flip-check",
            choices=("on", "off"),
            default="on",
            help="leave out cases whose label seems to be flipped against the image (default on)",
        )

    def find(self, download: Download) -> Found:
        """Find volumes and segmentations by their numbers, wherever they lie.

        Raises:
            UserError: no such files.
        """
        claims: dict[str, list[tuple[str, SourceFile]]] = {"volume": [], "segmentation": []}
        for file, match in download.matching(_FILE):
            case = f"{'test' if match['test'] else 'liver'}_{int(match['number'])}"
            claims[match["kind"].lower()].append((case, file))
        if not claims["volume"]:
            raise self.nothing_found(download)
        cases, faults = one_channel_cases(
            claims["volume"],
            claims["segmentation"],
            part_of=lambda case: "training" if case.startswith("liver_") else "test",
            label_name=lambda case: case.replace("liver_", "segmentation-") + ".nii",
            details=lambda case: {"number": int(case.split("_")[1])},
        )
        return Found(cases, faults)

    def layout(self, found: Found) -> Layout:
        """CT with liver and tumour, as regions unless they were not wanted."""
        regions: dict[str, int | tuple[int, ...]] = {"background": 0, "liver": (1, 2), "tumor": 2}
        return Layout(
            channel_names=("CT",),
            labels={"background": 0, "liver": 1, "tumor": 2} if self.plain_labels else regions,
            regions_class_order=None if self.plain_labels else (1, 2),
            licence="CC BY-NC-ND 4.0",
            reference="https://competitions.codalab.org/competitions/17094",
            release="2017",
            description="Liver Tumor Segmentation Challenge (LiTS)",
        )

    def rules(self, found: Found) -> Rules:
        """The voxels of image and label correspond although many headers say otherwise, some even of the spacing."""
        return Rules(
            aligned=True,
            ct=True,
            empty="error",
            nan="minimum",
            inspect=flipped if self.flip_check == "on" else None,
        )


def flipped(image: np.ndarray, label: np.ndarray) -> str | None:
    """Say so if a label fits its image clearly better when it is flipped.

    A liver has 0 to 200 HU nearly everywhere; fat, lung and bone, where a flipped label would lie, have not.

    Args:
        image: (x, y, z) in Hounsfield units.
        label: (x, y, z); 1 is liver.

    Returns:
        What is wrong and what to do, or None. None too for a label without liver.
    """
    liver = np.flatnonzero(np.asarray(label).ravel(order="F") == 1)
    if not len(liver):
        return None
    places = np.unravel_index(liver[:: max(len(liver) // _MOST, 1)], label.shape, order="F")
    shares = {}
    for axes in product((False, True), repeat=3):
        index = tuple(
            edge - 1 - place if flip else place for place, edge, flip in zip(places, label.shape, axes, strict=True)
        )
        values = np.asarray(image)[index]
        shares[axes] = float(np.mean((values > TISSUE[0]) & (values < TISSUE[1])))
    as_it_is = shares[False, False, False]
    best = max(shares, key=lambda axes: shares[axes])
    if shares[best] <= as_it_is + CLEARLY:
        return None
    named = " and ".join(name for name, flip in zip("xyz", best, strict=True) if flip)
    return (
        f"the label seems to be flipped along {named}: {as_it_is:.0%} of its liver voxels have {TISSUE[0]} to "
        f"{TISSUE[1]} HU in the image, {shares[best]:.0%} if it is flipped. Download the case again, or keep it with "
        "--flip-check off."
    )
