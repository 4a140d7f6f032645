"""What a converter finds in a download and says of its data set; plain data, no files are opened here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from nnunet_ext.dataset_conversion.sources import SourceFile

Part = Literal["training", "test", "unlabelled"]
FOLDERS: dict[str, tuple[str, str]] = {
    "training": ("imagesTr", "labelsTr"),
    "test": ("imagesTs", "labelsTs"),
    "unlabelled": ("imagesUn", "labelsUn"),
}
"""Part -> folders of images and labels in nnU-Net's raw data set; nnU-Net itself reads those of the first."""


@dataclass(frozen=True)
class Case:
    """One case of a download.

    Attributes:
        id: nnU-Net's case identifier: the distributor's own, so that published splits fit.
        part: training cases have a label; test cases may.
        images: one file a channel, in the channels' order; or a single file that holds all channels.
        label: the reference segmentation.
        group: cases of the same group (patient) never lie on both sides of a split; the id where it says nothing.
        details: JSON values that the way back needs, or that are worth keeping, such as {"phase": "ED"}.
        notices: what was odd and how it was taken.
    """

    id: str
    part: Part
    images: tuple[SourceFile, ...]
    label: SourceFile | None = None
    group: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)
    notices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Fault:
    """A case that is left out, and why: what is wrong, where, what to do."""

    case: str
    reason: str


@dataclass(frozen=True)
class Found:
    """What a converter found.

    Attributes:
        cases: each with all its files.
        faults: cases without some file, or with too many.
        notices: of the download as a whole.
    """

    cases: tuple[Case, ...]
    faults: tuple[Fault, ...] = ()
    notices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Layout:
    """What the data set will be like: nnU-Net's dataset.json.

    Attributes:
        channel_names: in order. "CT" chooses nnU-Net's CT normalisation.
        labels: name -> value, or values of a region; with "background": 0.
        regions_class_order: nnU-Net's, with regions.
        file_ending: of images and labels.
        reader: name of nnU-Net's reader and writer; None: nnU-Net chooses.
        licence, reference, release, description: of the data.
    """

    channel_names: tuple[str, ...]
    labels: Mapping[str, int | tuple[int, ...]]
    regions_class_order: tuple[int, ...] | None = None
    file_ending: str = ".nii.gz"
    reader: str | None = None
    licence: str = ""
    reference: str = ""
    release: str = ""
    description: str = ""

    def values(self) -> frozenset[int]:
        """All values that a label map of the data set may have."""
        nested = (value if isinstance(value, tuple) else (value,) for value in self.labels.values())
        return frozenset(number for values in nested for number in values) | {0}


@dataclass(frozen=True)
class Rules:
    """How files are checked and what may be repaired.

    Attributes:
        label_map: value in the download -> value in the data set; None: they are the same. A value that it lacks is a
            fault.
        value_hints: unexpected value -> a sentence on what it tells.
        channels: how many the data set has. With one file a case and several channels, the file is split along its
            fourth axis.
        aligned: the voxels of image and label are known to correspond whatever the headers say: the label gets the
            image's geometry.
        ct: intensities should look like Hounsfield units.
        empty: what a label without foreground means.
        nan: what replaces NaN and infinities in images on request: 0 or the image's minimum.
        inspect: called with image and label (x, y, z) of a case in `fast` and `full` checks; returns a reason to leave
            the case out, or None. A function of a module, so that worker processes find it.
    """

    label_map: Mapping[int, int] | None = None
    value_hints: Mapping[int, str] = field(default_factory=dict)
    channels: int = 1
    aligned: bool = False
    ct: bool = False
    empty: Literal["normal", "notice", "error"] = "notice"
    nan: Literal["zero", "minimum"] = "zero"
    inspect: Callable[[Any, Any], str | None] | None = None


@dataclass(frozen=True)
class Split:
    """A named partition.

    Attributes:
        name: how users ask for it.
        folds: each (training cases, validation cases).
        test: cases that become test cases.
        source: where it comes from.
    """

    name: str
    folds: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]
    test: tuple[str, ...] = ()
    source: str = ""


SPLIT_FILES = Path(__file__).parent / "splits"
