"""Which label is which of a paper's structures: told by names, else by the challenge's numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nnunet_ext.dataset_conversion.amos import ORGANS as AMOS_ORGANS
from nnunet_ext.dataset_conversion.btcv import ORGANS as BTCV_ORGANS
from nnunet_ext.errors import UserError
from nnunet_ext.evaluation_scripts.structures import SYNAPSE, Structures, all_labels

Finder = Callable[[Mapping[str, Any]], Structures]
HEART = ("background", "RV", "Myo", "LV")
ALIASES = {
    "RV": ("right ventricle", "right ventricular cavity", "right ventricle cavity"),
    "Myo": ("mlv", "myocardium", "left ventricular myocardium"),
    "LV": ("lvc", "left ventricle", "left ventricular cavity", "left ventricle cavity"),
    "right kidney": ("kidney right", "rkid"),
    "left kidney": ("kidney left", "lkid"),
    "gallbladder": ("gall bladder", "gall"),
    "gall bladder": ("gallbladder", "gall"),
    "esophagus": ("oesophagus", "eso"),
    "spleen": ("spl",),
    "liver": ("liv",),
    "stomach": ("sto",),
    "aorta": ("aor",),
    "pancreas": ("pan",),
    "inferior vena cava": ("ivc", "postcava"),
    "postcava": ("ivc", "inferior vena cava"),
    "portal vein and splenic vein": ("veins", "psv", "portal and splenic veins"),
    "right adrenal gland": ("rad", "rag", "right adrenal", "adrenal gland right"),
    "left adrenal gland": ("lad", "lag", "left adrenal", "adrenal gland left"),
    "prostate/uterus": ("prostate or uterus", "prostate uterus"),
}
"""Other names of a structure, in lower case."""


def named_or_numbered(challenge: Sequence[str], wanted: Sequence[str], background: bool = False) -> Finder:
    """A function that finds a paper's structures in a dataset.json.

    They are told by their names. If some are called otherwise, they are told by the challenge's numbers, provided that
    dataset.json has exactly the challenge's labels and no name contradicts its number.

    Args:
        challenge: names of all labels by value, the background first.
        wanted: names of the structures that the paper has, in its order.
        background: is a structure as well, the first.
    """

    def find(dataset_json: Mapping[str, Any]) -> Structures:
        labels = all_labels(dataset_json)
        known = {spelling: name for name in challenge[1:] for spelling in _spellings(name)}
        told = {known[_plain(label)]: values for label, values in labels.items() if _plain(label) in known}
        if not set(wanted) <= set(told):
            numbers: Structures = {name: (value,) for value, name in enumerate(challenge) if value}
            same = sorted(labels.values()) == sorted(numbers.values())
            if not same or any(numbers[name] != values for name, values in told.items()):
                raise UserError(
                    f"the table is about {', '.join(wanted)}, told by these names or by the challenge's numbers "
                    f"({', '.join(f'{value} {name}' for value, name in enumerate(challenge) if value)}); dataset.json "
                    f"has {labels}: name them so in a copy, and give it by --dataset-json."
                )
            told = numbers
        found: Structures = {"background": (0,)} if background else {}
        return {**found, **{name: told[name] for name in wanted}}

    return find


def only_label(name: str) -> Finder:
    """A function that finds the single label of a dataset.json, and calls it by the paper's name."""

    def find(dataset_json: Mapping[str, Any]) -> Structures:
        labels = all_labels(dataset_json)
        if len(labels) != 1:
            raise UserError(f"the table is about one label ({name}); dataset.json has {labels}.")
        return {name: next(iter(labels.values()))}

    return find


def _spellings(name: str) -> tuple[str, ...]:
    return _plain(name), *ALIASES.get(name, ())


def _plain(name: str) -> str:
    return " ".join(name.lower().replace("_", " ").split())


eight_organs = named_or_numbered(BTCV_ORGANS, tuple(SYNAPSE))
"""BTCV's eight organs of TransUNet, in the order of the challenge's numbers."""
btcv_with_background = named_or_numbered(BTCV_ORGANS, BTCV_ORGANS[1:], background=True)
amos_with_background = named_or_numbered(AMOS_ORGANS, AMOS_ORGANS[1:], background=True)
heart = named_or_numbered(HEART, HEART[1:])
