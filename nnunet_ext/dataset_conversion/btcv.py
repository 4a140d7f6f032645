"""BTCV, also known as Synapse multi-organ: abdominal CT of the challenge "Beyond the Cranial Vault", 13 organs.

The data set of TransUNet, nnFormer, UNETR++, Swin-Unet, SelfReg-UNet (18 cases for training, 12 for the test, 8 organs
reported) and of SSH-UNet (24 and 6, all organs): the same images, other defaults.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

from nnunet_ext.dataset_conversion.base import Converter
from nnunet_ext.dataset_conversion.cases import Case, Fault, Found, Layout, Rules, Split
from nnunet_ext.dataset_conversion.one_channel import Claims, in_folder, one_channel_cases, tells
from nnunet_ext.dataset_conversion.sources import Download, SourceFile
from nnunet_ext.dataset_conversion.sshunet_folds import sshunet_5fold, sshunet_lists
from nnunet_ext.dataset_conversion.transunet_slices import LOOKS_LIKE, find_slices
from nnunet_ext.errors import UserError

ORGANS = (
    "background",
    "spleen",
    "right kidney",
    "left kidney",
    "gallbladder",
    "esophagus",
    "liver",
    "stomach",
    "aorta",
    "inferior vena cava",
    "portal vein and splenic vein",
    "pancreas",
    "right adrenal gland",
    "left adrenal gland",
)
"""By value in the challenge's label maps."""
EIGHT_ORGANS: dict[str, tuple[int, ...]] = {
    "transunet": (8, 4, 3, 2, 6, 11, 1, 7),
    "cascade": (1, 2, 3, 4, 11, 6, 7, 8),
    "btcv": (1, 2, 3, 4, 6, 7, 8, 11),
}
"""Order -> the challenge's value of the organs that become 1 to 8."""
LABELLED = frozenset((*range(1, 11), *range(21, 41)))
WITHHELD = frozenset(range(61, 81))
_FILE = r"(?P<kind>img|label)(?P<number>\d{4})(_0000)?\.nii(\.gz)?"


class _Abdomen(Converter):
    """The base of both names.

    Args:
        labels: 13 organs, or the 8 that TransUNet and its successors segment.
        label_order: with 8 organs, which value means which: a key of `EIGHT_ORGANS`.

    Raises:
        UserError: other values.
    """

    get_it = (
        "https://www.synapse.org/#!Synapse:syn3193805 (files, Abdomen, RawData.zip; Reg-*.zip is not needed), after "
        "registering and accepting the conditions of use; it may not be passed on."
    )
    looks_like = (
        "RawData.zip, or the folder with Training/img/img0001.nii.gz, Training/label/label0001.nii.gz and "
        "Testing/img/img0061.nii.gz; also nnFormer's, UNETR++'s and SSH-UNet's imagesTr/img0001.nii.gz with "
        "labelsTr/label0001.nii.gz."
    )
    skip = r"Reg-(Training|Testing).*"
    expected: ClassVar[Mapping[str, int]] = {"training": 30, "test": 20}

    def __init__(self, labels: int | None = None, label_order: str | None = None) -> None:
        labels = 13 if labels is None else labels
        if labels not in (8, 13):
            raise UserError(f"{self.key}: --labels {labels}: there are 13 organs; the papers' subset has 8.")
        order = label_order or ("transunet" if labels == 8 else "btcv")
        if order not in EIGHT_ORGANS:
            raise UserError(f"{self.key}: --label-order {order}: there are {', '.join(EIGHT_ORGANS)}.")
        if labels == 13 and order != "btcv":
            raise UserError(f"{self.key}: --label-order {order} orders 8 organs: give --labels 8 with it.")
        self.labels = labels
        self.label_order = order

    @classmethod
    def add_arguments(cls, parser: argparse._ArgumentGroup) -> None:
        """Add the choice of organs."""
        parser.add_argument(
            "--labels", type=int, choices=(8, 13), help="13 organs (default), or the 8 that TransUNet's line reports"
        )
        parser.add_argument(
            "--label-order",
            choices=tuple(EIGHT_ORGANS),
            help="values of the 8 organs: as in TransUNet's data (the default), as CASCADE and SelfReg-UNet number "
            "them, or ascending as in the challenge",
        )

    def default_number(self, download: Download) -> int:
        """Another one for eight organs, so that both data sets can lie side by side."""
        return self.number if self.labels == 13 else self.number + 3

    def default_name(self, download: Download) -> str:
        """With 8 organs it is another data set, so its name is another."""
        return self.name if self.labels == 13 else f"{self.name}8"

    def find(self, download: Download) -> Found:
        """Tell images from labels by their names and folders, training from test by their numbers.

        Raises:
            UserError: no such files.
        """
        claims: dict[str, list[tuple[str, SourceFile]]] = {"img": [], "label": []}
        strange: dict[str, Fault] = {}
        for file, match in download.matching(_FILE):
            number = int(match["number"])
            case = f"img{number:04d}"
            if number not in LABELLED | WITHHELD:
                strange[case] = Fault(
                    case,
                    f"{file.where}: BTCV has no case {number} (labelled: 1-10 and 21-40, withheld: 61-80). In a "
                    "renumbered copy the published splits mean nothing; `convert generic` takes it.",
                )
                continue
            is_label = match["kind"].lower() == "label" or in_folder(file, "label")
            claims["label" if is_label else "img"].append((case, file))
        if not claims["img"]:
            raise self.nothing_found(download)
        images, repeated = _without_repeated_test(claims["img"])
        labels, _ = _without_repeated_test(claims["label"])
        cases, faults = one_channel_cases(
            images,
            labels,
            part_of=lambda case: "training" if _number(case) in LABELLED else "test",
            label_name=lambda case: f"{case.replace('img', 'label')}.nii.gz",
            details=lambda case: {"number": _number(case)},
        )
        return Found(cases, (*faults, *strange.values()), repeated)

    def layout(self, found: Found) -> Layout:
        """CT with 13 or 8 organs."""
        organs = self._organs()
        return Layout(
            channel_names=("CT",),
            labels={"background": 0} | {ORGANS[value]: place for place, value in enumerate(organs, 1)},
            licence="conditions of use of synapse.org, project syn3193805",
            reference="https://www.synapse.org/#!Synapse:syn3193805",
            release="MICCAI 2015",
            description="Multi-Atlas Labeling Beyond the Cranial Vault, abdomen (BTCV, Synapse multi-organ)"
            + ("" if self.labels == 13 else f", 8 organs in the order of {self.label_order}"),
        )

    def rules(self, found: Found) -> Rules:
        """The voxels of image and label correspond although some headers say otherwise; no label map is empty."""
        chosen = {value: place for place, value in enumerate(self._organs(), 1)}
        return Rules(
            label_map=None if self.labels == 13 else {value: chosen.get(value, 0) for value in range(len(ORGANS))},
            value_hints={14: "BTCV has 13 organs; AMOS has 15: use `convert amos_ct` for it."},
            aligned=True,
            ct=True,
            empty="error",
            nan="minimum",
        )

    def own_splits(self, cases: Sequence[Case]) -> dict[str, Callable[[], Split]]:
        """SSH-UNet's 24 and 6 cases, and its five folds of the 24."""
        return {
            "btcv_sshunet": lambda: sshunet_lists("btcv_sshunet"),
            "sshunet_5fold": lambda: sshunet_5fold("btcv_sshunet"),
        }

    def _organs(self) -> tuple[int, ...]:
        return tuple(range(1, len(ORGANS))) if self.labels == 13 else EIGHT_ORGANS[self.label_order]


class Synapse(_Abdomen):
    """BTCV as TransUNet, nnFormer and UNETR++ use it: 18 cases for training, 12 for the test.

    Args:
        labels: see `_Abdomen`.
        label_order: see `_Abdomen`.
        from_transunet: the download is TransUNet's copy in slices, with 8 organs and intensities from 0 to 1.

    Raises:
        UserError: other values.
    """

    key = "synapse"
    number = 802
    name = "Synapse"
    summary = "BTCV abdominal CT, 13 organs (--labels 8: TransUNet's 8), split 18/12 of TransUNet, nnFormer, UNETR++"
    published_splits = ("synapse_transunet", "unetrpp_synapse")

    def __init__(self, labels: int | None = None, label_order: str | None = None, from_transunet: bool = False) -> None:
        if from_transunet and labels == 13:
            raise UserError("synapse: TransUNet's slices hold 8 organs: --from-transunet goes without --labels 13.")
        super().__init__(labels=8 if from_transunet else labels, label_order=label_order)
        self.from_transunet = from_transunet

    @classmethod
    def add_arguments(cls, parser: argparse._ArgumentGroup) -> None:
        """Add the choice of organs and of the download."""
        super().add_arguments(parser)
        parser.add_argument(
            "--from-transunet",
            action="store_true",
            help="the download is TransUNet's copy: train_npz and test_vol_h5, 8 organs, intensities scaled to 0 to 1, "
            "spacings lost",
        )

    def default_number(self, download: Download) -> int:
        """TransUNet's slices are a data set of their own, too."""
        return self.number + 4 if self.from_transunet else super().default_number(download)

    def default_name(self, download: Download) -> str:
        """Other organs or other intensities are another data set."""
        return f"{self.name}TransUNet" if self.from_transunet else super().default_name(download)

    def find(self, download: Download) -> Found:
        """Find the volumes, or TransUNet's slices.

        Raises:
            UserError: no such files.
        """
        if not self.from_transunet:
            return super().find(download)
        cases, faults = find_slices(download)
        if not cases and not faults:
            raise UserError(f"{self.nothing_found(download)} With --from-transunet: {LOOKS_LIKE}")
        return Found(cases, faults)

    def layout(self, found: Found) -> Layout:
        """CT; TransUNet's intensities are no Hounsfield units any more, so nnU-Net must not take them for CT."""
        layout = super().layout(found)
        return replace(layout, channel_names=("CT from 0 to 1",)) if self.from_transunet else layout

    def rules(self, found: Found) -> Rules:
        """See `_Abdomen`; TransUNet's slices have its 8 values already."""
        rules = super().rules(found)
        if not self.from_transunet:
            return rules
        wanted = {organ: place for place, organ in enumerate(self._organs(), 1)}
        stored = {place: wanted[organ] for place, organ in enumerate(EIGHT_ORGANS["transunet"], 1)}
        hint = "TransUNet's slices have the values 0 to 8; slices of all 13 organs can't be converted."
        return replace(rules, label_map={0: 0} | stored, value_hints=dict.fromkeys(range(9, 14), hint), ct=False)


class BTCV(_Abdomen):
    """BTCV as SSH-UNet uses it: 24 cases for training, 6 for validation, 20 without labels for the server."""

    key = "btcv"
    number = 803
    name = "BTCV"
    summary = "BTCV abdominal CT, 13 organs, split 24/6 of SSH-UNet; the 20 withheld cases for the challenge's server"
    published_splits = ("synapse_transunet", "unetrpp_synapse")

    def default_split(self) -> str:
        """SSH-UNet's."""
        return "btcv_sshunet"


def _number(case: str) -> int:
    return int(case.removeprefix("img"))


def _without_repeated_test(claims: Sequence[tuple[str, SourceFile]]) -> tuple[Claims, tuple[str, ...]]:
    """Drop what lies in imagesTs or labelsTs while imagesTr or labelsTr has the case, as in nnFormer's task folder."""
    training = {case for case, file in claims if _lies_in(file, "Tr")}
    repeated = [(case, file) for case, file in claims if case in training and _lies_in(file, "Ts")]
    notice = (
        f"{len(repeated)} labelled cases lie in imagesTr and again in imagesTs, as in nnFormer's folder; those of "
        f"imagesTr are taken: {tells(sorted(case for case, _ in repeated))}"
    )
    return [claim for claim in claims if claim not in repeated], (notice,) if repeated else ()


def _lies_in(file: SourceFile, which: str) -> bool:
    return in_folder(file, f"images{which}".lower()) or in_folder(file, f"labels{which}".lower())
