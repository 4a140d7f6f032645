"""The dataset.json of an imported model: the user's own, or one made of the names of labels and channels."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_ext.errors import UserError

_ABDOMEN = (
    *("spleen", "right_kidney", "left_kidney", "gallbladder", "esophagus", "liver", "stomach", "aorta"),
    *("inferior_vena_cava", "portal_and_splenic_veins", "pancreas", "right_adrenal_gland", "left_adrenal_gland"),
)
PUBLISHED_LABELS: dict[str, tuple[str, ...]] = {
    "btcv": _ABDOMEN,
    "amos": (
        *("spleen", "right_kidney", "left_kidney", "gallbladder", "esophagus", "liver", "stomach", "aorta"),
        *("postcava", "pancreas", "right_adrenal_gland", "left_adrenal_gland", "duodenum", "bladder"),
        "prostate_or_uterus",
    ),
    "synapse": _ABDOMEN,
    "synapse_8": (*("aorta", "gallbladder", "left_kidney", "right_kidney", "liver", "pancreas", "spleen", "stomach"),),
    "acdc": ("right_ventricle", "myocardium", "left_ventricle"),
    "lung": ("cancer",),
    "brats": ("edema", "non_enhancing_tumor", "enhancing_tumor"),
}
"""Data set -> names of the labels 1, 2, ... in the published models' order."""
PUBLISHED_CHANNELS = {"brats": ("FLAIR", "T1w", "T1gd", "T2w")}


@dataclass(frozen=True)
class DatasetOptions:
    """What a user says about the data set.

    Attributes:
        name: nnU-Net's name of the data set.
        labels: names of classes 1, 2, ..., or one name of `PUBLISHED_LABELS`; None: class_1, class_2, ...
        own: a data set's own description, instead of `labels`.
    """

    name: str
    labels: tuple[str, ...] | None = None
    own: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if re.fullmatch(r"Dataset\d{3}_\w+", self.name) is None:
            raise UserError(f"dataset name must look like Dataset900_Name; got {self.name!r}")

    def published(self, classes: int) -> str | None:
        """The published data set whose labels are asked for, of a network with `classes` outputs; None: none is."""
        if self.labels is None or len(self.labels) != 1 or self.labels[0] not in PUBLISHED_LABELS:
            return None
        one_word_is_a_label = classes == 2 and len(PUBLISHED_LABELS[self.labels[0]]) > 1
        return None if one_word_is_a_label else self.labels[0]


def make_dataset_json(
    options: DatasetOptions, channel_names: Sequence[str], classes: int, file_endings: Sequence[str]
) -> dict[str, Any]:
    """Describe the data set.

    Args:
        options: what the user says.
        channel_names: one a channel; names of a published data set win.
        classes: outputs of the network, background included.
        file_endings: of images that the model's reader can read, the usual one first.

    Raises:
        UserError: channels or classes that differ from the network's, or images of another format.
    """
    if options.own is not None:
        return _own(options.own, len(channel_names), file_endings)
    published = options.published(classes)
    if published is not None and len(PUBLISHED_CHANNELS.get(published, ())) == len(channel_names):
        channel_names = PUBLISHED_CHANNELS[published]
    names = _label_names(options, classes)
    return {
        "name": options.name.split("_", 1)[1],
        "description": "Written by nnunet-ext import-weights; the training images are not part of it.",
        "channel_names": {str(i): name for i, name in enumerate(channel_names)},
        "labels": {"background": 0, **{name: i for i, name in enumerate(names, start=1)}},
        "numTraining": 0,
        "file_ending": file_endings[0],
    }


def _own(described: Mapping[str, Any], channels: int, file_endings: Sequence[str]) -> dict[str, Any]:
    named = len(described.get("channel_names", {}))
    if named != channels:
        raise UserError(f"dataset.json names {named} channels, the weights have {channels}")
    if described.get("file_ending") not in file_endings:
        allowed = " or ".join(sorted(file_endings, key=len))
        raise UserError(f"images must be {allowed} to be read as published; got {described.get('file_ending')!r}")
    return dict(described)


def _label_names(options: DatasetOptions, classes: int) -> list[str]:
    published = options.published(classes)
    if published is not None:
        names = list(PUBLISHED_LABELS[published])
    elif options.labels is not None:
        names = list(options.labels)
    else:
        names = [f"class_{i}" for i in range(1, classes)]
    if names and names[0] == "background":
        names = names[1:]
    if len(names) != classes - 1 or len(set(names)) != len(names):
        raise UserError(f"the weights have {classes - 1} classes after the background; got labels {', '.join(names)}")
    return names


def default_channel_names(modality: str, channels: int) -> list[str]:
    """CT, or CT0, CT1, ... where there are several channels."""
    kind = modality.upper()
    return [kind] if channels == 1 else [f"{kind}{i}" for i in range(channels)]


def read_dataset_json(path: Path) -> dict[str, Any]:
    """Read a dataset.json.

    Raises:
        UserError: not a dataset.json.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path} as JSON: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("labels"), dict):
        raise UserError(f"{path} is not a dataset.json: it has no labels")
    return content
