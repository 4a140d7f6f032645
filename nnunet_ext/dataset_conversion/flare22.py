"""FLARE 2022: abdominal CT with 13 organs; 50 labelled cases and 2000 unlabelled ones."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import ClassVar

from nnunet_ext.dataset_conversion.base import Converter
from nnunet_ext.dataset_conversion.cases import Found, Layout, Part, Rules
from nnunet_ext.dataset_conversion.one_channel import in_folder, one_channel_cases
from nnunet_ext.dataset_conversion.sources import Download, SourceFile
from nnunet_ext.errors import UserError

ORGANS = (
    "background",
    "liver",
    "right kidney",
    "spleen",
    "pancreas",
    "aorta",
    "inferior vena cava",
    "right adrenal gland",
    "left adrenal gland",
    "gallbladder",
    "esophagus",
    "stomach",
    "duodenum",
    "left kidney",
)
_FILE = r"(?P<kind>FLARE22_Tr|FLARETs)_(?P<number>\d{4})(?P<channel>_0000)?\.nii(\.gz)?"
_UNLABELLED = (
    r"(?:[^/]*unlabel[^/]*/(?:[^/]+/)*(?!FLARE22_Tr_|FLARETs_)(?P<case>[\w-]+?)|(?P<named>Case_\d{5}))"
    r"(_0000)?\.nii(\.gz)?"
)
"""Whatever lies in a folder of unlabelled cases, or is called as they are."""


class FLARE22(Converter):
    """50 labelled cases, 50 of the validation leaderboard, 2000 without labels for semi-supervised learning.

    Args:
        unlabelled: "link" takes the unlabelled cases as well, into imagesUn; "none" leaves them.

    Raises:
        UserError: another value.
    """

    key = "flare22"
    number = 822
    name = "FLARE22"
    summary = "FLARE 2022 abdominal CT, 13 organs: 50 labelled, 50 validation, up to 2000 unlabelled cases"
    get_it = (
        "https://flare22.grand-challenge.org after registering; the labelled cases also at "
        "https://zenodo.org/records/7860267. For research only, see the challenge's rules. The labelled cases are from "
        "MSD Task07_Pancreas: do not pre-train on that and call it unseen."
    )
    looks_like = (
        "the folder (or the archives) with FLARE22_LabeledCase50/images/FLARE22_Tr_0001_0000.nii.gz, "
        "FLARE22_LabeledCase50/labels/FLARE22_Tr_0001.nii.gz; Validation/FLARETs_0001_0000.nii.gz; "
        "FLARE22_UnlabeledCase1-1000/Case_00001_0000.nii.gz. Any of them may be missing."
    )
    expected: ClassVar[Mapping[str, int]] = {"training": 50, "test": 50}

    def __init__(self, unlabelled: str = "link") -> None:
        if unlabelled not in ("none", "link"):
            raise UserError(f"flare22: --unlabelled {unlabelled}: it is none or link.")
        self.unlabelled = unlabelled

    @classmethod
    def add_arguments(cls, parser: argparse._ArgumentGroup) -> None:
        """Add what becomes of the unlabelled cases."""
        parser.add_argument(
            "--unlabelled",
            choices=("none", "link"),
            default="link",
            help="cases without labels: into imagesUn, which nnU-Net does not read (default), or not at all",
        )

    def find(self, download: Download) -> Found:
        """Tell the cases apart by their names; `_0000` is the mark of an image and no part of the id.

        Raises:
            UserError: no such files.
        """
        images: list[tuple[str, SourceFile]] = []
        labels: list[tuple[str, SourceFile]] = []
        for file, match in download.matching(_FILE):
            is_test = match["kind"].lower() == "flarets"
            case = f"{'FLARETs' if is_test else 'FLARE22_Tr'}_{match['number']}"
            is_image = match["channel"] or in_folder(file, "image") or (is_test and not in_folder(file, "label"))
            (images if is_image else labels).append((case, file))
        spare = [(match["named"] or match["case"], file) for file, match in download.matching(_UNLABELLED)]
        without_label = {case for case, _ in spare}
        if not images and not spare:
            raise self.nothing_found(download)

        def part_of(case: str) -> Part:
            return "unlabelled" if case in without_label else "test" if case.startswith("FLARETs") else "training"

        cases, faults = one_channel_cases(
            images + (spare if self.unlabelled == "link" else []),
            labels,
            part_of=part_of,
            label_name=lambda case: f"labels/{case}.nii.gz",
        )
        left = f"{len(without_label)} unlabelled cases are left where they are (--unlabelled none)"
        return Found(cases, faults, (left,) if spare and self.unlabelled == "none" else ())

    def layout(self, found: Found) -> Layout:
        """CT with 13 organs."""
        return Layout(
            channel_names=("CT",),
            labels={name: value for value, name in enumerate(ORGANS)},
            licence="research only, rules of flare22.grand-challenge.org",
            reference="https://flare22.grand-challenge.org",
            release="2022",
            description="Fast and Low-resource semi-supervised Abdominal oRgan sEgmentation in CT (FLARE 2022)",
        )

    def rules(self, found: Found) -> Rules:
        """CT; every labelled case shows organs."""
        return Rules(ct=True, empty="error", nan="minimum")
