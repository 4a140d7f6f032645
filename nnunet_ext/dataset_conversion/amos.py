"""AMOS 2022: abdominal CT (task 1), or CT and MR in one data set (task 2), 15 organs.

One archive holds both tasks. As in nnU-Net's own converter, training and validation cases are pooled as training
cases; the split `amos_official` keeps them apart.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from nnunet_ext.dataset_conversion.base import Converter
from nnunet_ext.dataset_conversion.cases import Case, Found, Layout, Rules, Split
from nnunet_ext.dataset_conversion.one_channel import one_channel_cases
from nnunet_ext.dataset_conversion.sources import Download, SourceFile
from nnunet_ext.dataset_conversion.sshunet_folds import sshunet_5fold, sshunet_lists
from nnunet_ext.errors import UserError

ORGANS = (
    "background",
    "spleen",
    "right kidney",
    "left kidney",
    "gall bladder",
    "esophagus",
    "liver",
    "stomach",
    "aorta",
    "postcava",
    "pancreas",
    "right adrenal gland",
    "left adrenal gland",
    "duodenum",
    "bladder",
    "prostate/uterus",
)
LAST_CT = 500
"""Cases with larger numbers are MR."""
_FILE = r"(?P<kind>images|labels)(?P<part>Tr|Va|Ts)/amos_(?P<number>\d{4})(_0000)?\.nii(\.gz)?"
_OFFICIAL = {"tr": "train", "va": "val", "ts": "test"}


class _AMOS(Converter):
    """The base of both tasks."""

    get_it = "https://zenodo.org/records/7262581 (amos22.zip); CC BY 4.0 (its dataset.json says CC-BY-SA 4.0)."
    looks_like = (
        "amos22.zip, or the folder with imagesTr/amos_0001.nii.gz, labelsTr, imagesVa, labelsVa, imagesTs and "
        "dataset.json."
    )
    modalities: ClassVar[tuple[str, ...]]
    channel: ClassVar[str]

    def find(self, download: Download) -> Found:
        """Find the cases by folder and number; those of another modality belong to the other task.

        Raises:
            UserError: no such files.
        """
        claims: dict[str, list[tuple[str, SourceFile]]] = {"images": [], "labels": []}
        official: dict[str, str] = {}
        other: set[str] = set()
        listed_as_validation, notices = _read_json(download)
        for file, match in download.matching(_FILE):
            case = f"amos_{match['number']}"
            if modality(case) not in self.modalities:
                other.add(case)
                continue
            claims[match["kind"].lower()].append((case, file))
            if match["kind"].lower() == "images":
                pooled = match["part"].lower() == "tr" and case in listed_as_validation
                official[case] = "val" if pooled else _OFFICIAL[match["part"].lower()]
        if not claims["images"]:
            raise self.nothing_found(download)
        cases, faults = one_channel_cases(
            claims["images"],
            claims["labels"],
            part_of=lambda case: "test" if official[case] == "test" else "training",
            label_name=lambda case: f"labels{'Va' if official[case] == 'val' else 'Tr'}/{case}.nii.gz",
            details=lambda case: {"official": official[case], "modality": modality(case)},
        )
        if other:
            notices.append(
                f"{len(other)} MR cases (numbers above {LAST_CT}) are no part of task 1: passed over; "
                "`convert amos_ctmr` takes them"
            )
        return Found(cases, faults, tuple(notices))

    def layout(self, found: Found) -> Layout:
        """One channel, 15 organs."""
        return Layout(
            channel_names=(self.channel,),
            labels={name: value for value, name in enumerate(ORGANS)},
            reader="NibabelIOWithReorient",
            licence="CC BY 4.0",
            reference="https://amos22.grand-challenge.org",
            release="https://zenodo.org/records/7262581",
            description=f"AMOS 2022, {' and '.join(self.modalities)}, training and validation cases pooled",
        )

    def rules(self, found: Found) -> Rules:
        """Bladder and prostate or uterus are often absent; an empty label map is odd."""
        return Rules(ct=self.modalities == ("CT",), empty="notice", nan="minimum")

    def own_splits(self, cases: Sequence[Case]) -> dict[str, Callable[[], Split]]:
        """The official split; of CT also SSH-UNet's lists (the same, complete) and its folds of the training cases."""
        splits = {"amos_official": lambda: amos_official(cases)}
        if self.modalities == ("CT",):
            splits["amos_sshunet"] = lambda: sshunet_lists("amos_sshunet")
            splits["sshunet_5fold"] = lambda: sshunet_5fold("amos_sshunet")
        return splits

    def default_split(self) -> str:
        """The official one."""
        return "amos_official"


class AMOSTask1(_AMOS):
    """CT alone."""

    key = "amos_ct"
    number = 218
    name = "AMOS2022_task1"
    summary = "AMOS 2022 task 1: abdominal CT, 15 organs; official split"
    expected: ClassVar[Mapping[str, int]] = {"training": 300, "test": 200}
    modalities = ("CT",)
    channel = "CT"


class AMOSTask2(_AMOS):
    """CT and MR, one image a case."""

    key = "amos_ctmr"
    number = 219
    name = "AMOS2022_task2"
    summary = "AMOS 2022 task 2: abdominal CT or MR in one channel, 15 organs; official split"
    expected: ClassVar[Mapping[str, int]] = {"training": 360, "test": 240}
    modalities = ("CT", "MR")
    channel = "either_CT_or_MR"


def modality(case: str) -> str:
    """CT or MR, which only the number of a case tells."""
    return "CT" if int(case.removeprefix("amos_")) <= LAST_CT else "MR"


def amos_official(cases: Sequence[Case]) -> Split:
    """Train on the challenge's training cases, validate on its validation cases.

    Args:
        cases: those with a label; their details say what they officially are.

    Raises:
        UserError: cases of one kind are missing.
    """
    parts = {
        kind: tuple(case.id for case in cases if case.details.get("official") == kind) for kind in ("train", "val")
    }
    if not all(parts.values()):
        raise UserError(
            f"amos_official: {len(parts['train'])} training and {len(parts['val'])} validation cases have labels; both "
            "are needed. Are imagesTr, labelsTr, imagesVa and labelsVa all part of the download? Another split: "
            "--split cv."
        )
    return Split(
        "amos_official",
        ((parts["train"], parts["val"]),),
        source="AMOS 2022: imagesTr for training, imagesVa for validation",
    )


def _read_json(download: Download) -> tuple[frozenset[str], list[str]]:
    """Read which cases the archive's dataset.json lists for validation, and check its names of organs.

    The file may be missing or damaged: folders and numbers tell enough. Its counters are wrong and not looked at.

    Raises:
        UserError: it gives an organ another value than the published label maps have.
    """
    validation: set[str] = set()
    notices: list[str] = []
    for file in download.files:
        if not file.base.lower().endswith("dataset.json"):
            continue
        try:
            content = json.loads(file.text())
        except ValueError as error:
            notices.append(f"{file.where}: no valid JSON ({error}): passed over")
            continue
        if not isinstance(content, dict):
            continue
        validation |= {case for case in map(_case_of, _entries(content, "validation")) if case}
        notices += _odd_names(file, content.get("labels"))
    return frozenset(validation), notices


def _entries(content: Mapping[str, Any], key: str) -> list[Any]:
    found = content.get(key)
    return found if isinstance(found, list) else []


def _case_of(entry: Any) -> str | None:
    """The case id of an entry {"image": "./imagesVa/amos_0008.nii.gz", ...}."""
    name = entry.get("image") if isinstance(entry, dict) else entry
    match = re.search(r"amos_\d{4}", name) if isinstance(name, str) else None
    return match.group() if match else None


def _odd_names(file: SourceFile, labels: Any) -> list[str]:
    """Say what the archive calls an organ other than we do, such as "arota".

    Raises:
        UserError: a name that belongs to another value.
    """
    odd = []
    for value, name in labels.items() if isinstance(labels, dict) else ():
        ours = ORGANS[int(value)] if str(value).isdigit() and int(value) < len(ORGANS) else None
        if ours is None or name == ours:
            continue
        if name in ORGANS:
            raise UserError(
                f"{file.where}: calls {name!r} label {value}, which is {ours!r} in AMOS 2022 ({name!r} is "
                f"{ORGANS.index(name)}): a copy with changed labels? Take the original archive, or `convert generic`."
            )
        odd.append(f"{file.where} calls label {value} {name!r}: called {ours!r} here")
    return odd
