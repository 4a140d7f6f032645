"""Which labels and regions are evaluated: those of a dataset.json, or those that a paper or challenge names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nnunet_ext.dataset_conversion.flare22 import ORGANS
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
ORIGINAL: Structures = {"WT": (1, 2, 4), "TC": (1, 4), "ET": (4,)}
"""BraTS' regions in the challenge's own values up to 2021."""
FLARE22_ALIASES = {
    "ivc": 6,
    "postcava": 6,
    "rag": 7,
    "lag": 8,
    "right adrenal": 7,
    "left adrenal": 8,
    "gall bladder": 9,
    "oesophagus": 10,
}
"""Other names of FLARE22's organs -> the challenge's number."""


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
    """The eight organs, by their names; of 13 labels without these names by BTCV's numbers, of 8 as they are.

    Raises:
        UserError: they cannot be told.
    """
    labels = all_labels(dataset_json)
    named = {_plain(name): values for name, values in labels.items()}
    found = [name for name in SYNAPSE if _plain(name) in named]
    if len(found) == len(SYNAPSE):
        return {name: named[_plain(name)] for name in SYNAPSE}
    if len(labels) == len(SYNAPSE):
        return labels
    if len(labels) == BTCV_LABELS and not found:
        return {name: (value,) for name, value in SYNAPSE.items()}
    raise UserError(
        f"eight organs of Synapse are evaluated ({', '.join(SYNAPSE)}), found by these names, or among 13 labels with "
        f"other names by BTCV's numbers; dataset.json has {len(labels)}: {', '.join(labels)}"
    )


def brats_regions(dataset_json: Mapping[str, Any]) -> Structures:
    """WT, TC and ET: of three regions that contain each other, or of three labels by their names.

    The numbers 1, 2, 3 alone do not tell: 1 is oedema in nnU-Net's order and the necrotic core in BraTS' own of 2023.

    Raises:
        UserError: it can't be told which label is what.
    """
    labels = all_labels(dataset_json)
    nested = sorted((frozenset(values) for values in labels.values()), key=len, reverse=True)
    if len(nested) == 3 and nested[0] > nested[1] > nested[2]:
        return {name: tuple(sorted(values)) for name, values in zip(("WT", "TC", "ET"), nested, strict=True)}
    parts = _tumour_parts(labels)
    if parts:
        oedema, core, enhancing = (parts[part] for part in ("oedema", "core", "enhancing"))
        return {
            "WT": tuple(sorted((oedema, core, enhancing))),
            "TC": tuple(sorted((core, enhancing))),
            "ET": (enhancing,),
        }
    if {value for values in labels.values() for value in values} == {1, 2, 4}:
        return dict(ORIGINAL)
    raise UserError(
        "BraTS' regions need three regions that contain each other (whole tumour, tumour core, enhancing tumour), or "
        f"three labels named oedema, necrosis and enhancing tumour; dataset.json has {labels}: name them so in a copy "
        "and give it by --dataset-json."
    )


def _tumour_parts(labels: Structures) -> dict[str, int]:
    """Of "oedema", "core" and "enhancing" the label, told by names; nothing if one is missing or in doubt."""
    found: dict[str, int] = {}
    for name, values in labels.items():
        plain = _plain(name)
        core = any(word in plain for word in ("non-enhancing", "nonenhancing", "non enhancing", "necro"))
        if core or plain in ("ncr", "ncr/net", "net", "netc", "ncr net"):
            part = "core"
        elif "edema" in plain or "invad" in plain or "infiltrat" in plain or plain in ("ed", "snfh", "flair"):
            part = "oedema"
        elif "enhancing" in plain or plain in ("et", "at"):
            part = "enhancing"
        else:
            return {}
        if part in found or len(values) != 1:
            return {}
        found[part] = values[0]
    return found if len(found) == 3 else {}


def tumour_classes_and_regions(dataset_json: Mapping[str, Any]) -> Structures:
    """MSD Task01: the three regions, oedema and non-enhancing tumour."""
    regions = brats_regions(dataset_json)
    whole, core, enhancing = (set(regions[name]) for name in ("WT", "TC", "ET"))
    return {**regions, "ED": tuple(sorted(whole - core)), "NET": tuple(sorted(core - enhancing))}


def liver_and_lesion(dataset_json: Mapping[str, Any]) -> Structures:
    """LiTS: liver with its lesions, and lesions.

    Raises:
        UserError: other labels than 1 and 2.
    """
    values = {value for values in all_labels(dataset_json).values() for value in values}
    if values != {1, 2}:
        raise UserError(f"LiTS has label 1 (liver) and 2 (lesion); dataset.json has {all_labels(dataset_json)}")
    return {"liver": (1, 2), "lesion": (2,)}


def flare22_numbers(dataset_json: Mapping[str, Any]) -> dict[str, int]:
    """Structure -> FLARE22's number of the organ: by the organs' names, else by the labels' values 1 to 13.

    Raises:
        UserError: other organs.
    """
    labels = all_labels(dataset_json)
    numbers = {_plain(name): number for number, name in enumerate(ORGANS) if number} | FLARE22_ALIASES
    named = {name: numbers[_plain(name)] for name in labels if _plain(name) in numbers}
    if len(named) == len(labels) and len(set(named.values())) == len(labels):
        return named
    if not named and sorted(labels.values()) == [(number,) for number in range(1, len(ORGANS))]:
        return {name: values[0] for name, values in labels.items()}
    raise UserError(
        f"FLARE22 has {len(ORGANS) - 1} organs: {', '.join(ORGANS[1:])}; dataset.json has {labels}. Name them so, or "
        "number them as the challenge does."
    )


def _plain(name: str) -> str:
    return " ".join(name.lower().replace("_", " ").split())
