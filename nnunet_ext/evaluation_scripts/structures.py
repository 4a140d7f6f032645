"""Which labels and regions are evaluated: those of a dataset.json, or those that a paper or challenge names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nnunet_ext.errors import UserError

Structures = dict[str, tuple[int, ...]]
"""Name -> label values, in the order of tables."""

SYNAPSE = {
    "spleen": 1,
    "right kidney": 2,
    "left kidney": 3,
    "gallbladder": 4,
    "liver": 6,
    "stomach": 7,
    "aorta": 8,
    "pancreas": 11,
}
"""The eight of BTCV's thirteen organs that TransUNet and its successors evaluate, by BTCV's numbers."""
BTCV_LABELS = 13
NESTED: Structures = {"WT": (1, 2, 3), "TC": (2, 3), "ET": (3,)}
"""BraTS' regions where labels nest by value: 1 oedema, 2 necrosis and non-enhancing tumour, 3 enhancing tumour."""
ORIGINAL: Structures = {"WT": (1, 2, 4), "TC": (1, 4), "ET": (4,)}
"""BraTS' regions in the challenge's own values up to 2021."""


def all_labels(dataset_json: Mapping[str, Any]) -> Structures:
    """Every label or region but background and the ignore label, in the order of dataset.json."""
    return {
        name: tuple(int(value) for value in (values if isinstance(values, list | tuple) else (values,)))
        for name, values in dataset_json["labels"].items()
        if name != "ignore" and values not in (0, [0], (0,))
    }


def background_too(dataset_json: Mapping[str, Any]) -> Structures:
    """`all_labels`, the background first."""
    return {"background": (0,), **all_labels(dataset_json)}


def foreground_as_one(dataset_json: Mapping[str, Any]) -> Structures:
    """All labels but the background as one region."""
    values = {value for values in all_labels(dataset_json).values() for value in values}
    return {"foreground": tuple(sorted(values))}


def organs_of_synapse(dataset_json: Mapping[str, Any]) -> Structures:
    """The eight organs, of thirteen in BTCV's numbers, or of a data set that has just these eight.

    Raises:
        UserError: another number of labels.
    """
    labels = all_labels(dataset_json)
    if len(labels) == len(SYNAPSE):
        return labels
    if len(labels) == BTCV_LABELS:
        return {name: (value,) for name, value in SYNAPSE.items()}
    raise UserError(
        "eight organs of Synapse are evaluated, of 13 labels in BTCV's numbers or of 8; dataset.json has "
        f"{len(labels)}: {', '.join(labels)}"
    )


def brats_regions(dataset_json: Mapping[str, Any]) -> Structures:
    """WT, TC and ET: in the challenge's own values if label 4 occurs, else as regions nest after conversion.

    Raises:
        UserError: fewer labels.
    """
    values = {value for values in all_labels(dataset_json).values() for value in values}
    if values == {1, 2, 4}:
        return dict(ORIGINAL)
    if values >= {1, 2, 3}:
        return dict(NESTED)
    raise UserError(f"BraTS' regions need labels 1, 2, 3 (or 1, 2, 4); dataset.json has {sorted(values)}")


def tumour_classes_and_regions(dataset_json: Mapping[str, Any]) -> Structures:
    """MSD Task01: the three regions, oedema and non-enhancing tumour."""
    return {**brats_regions(dataset_json), "ED": (1,), "NET": (2,)}
