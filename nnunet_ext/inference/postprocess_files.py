"""Files of rules: how they were found, and on which cases; and nnU-Net's own post-processing, read from its JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnunet_ext import __version__
from nnunet_ext.errors import UserError
from nnunet_ext.inference.postprocess_rules import CONNECTIVITY, LARGEST, Rule, as_json, from_json
from nnunet_ext.inference.prediction_folders import foreground, read_object
from nnunet_ext.whole_files import write_whole

FORMAT = 1
FILE = "nnunet_ext_postprocessing.json"
"""Name in a model's folder; nnU-Net's own postprocessing.json is another file."""
_NNUNET_FUNCTION = "remove_all_but_largest_component_from_segmentation"


@dataclass(frozen=True)
class RuleFile:
    """Rules and where they come from.

    Attributes:
        rules: in the order of application.
        labels: names and values of the data set, without background and ignore label.
        cases: ids of the cases on which they were found.
        how: JSON values: convention, grid, gain of each step.
    """

    rules: tuple[Rule, ...]
    labels: Mapping[str, tuple[int, ...]]
    cases: tuple[str, ...] = ()
    how: Mapping[str, Any] = field(default_factory=dict)


def write(path: Path, content: RuleFile) -> None:
    """Write a file of rules, whole or not at all.

    Raises:
        UserError: it can't be written there.
    """
    values = {
        "format": FORMAT,
        "version": __version__,
        "connectivity": CONNECTIVITY,
        "labels": {name: list(labels) for name, labels in content.labels.items()},
        "rules": [as_json(rule) for rule in content.rules],
        "determined": {"cases": list(content.cases), **_plain(content.how)},
    }
    write_whole(path, json.dumps(values, indent=1) + "\n")


def read(place: Path) -> RuleFile:
    """A file of rules, or that of a model's folder.

    Raises:
        UserError: there is none, or it is something else.
    """
    path = place / FILE if place.is_dir() else place
    content = read_object(path)
    if content.get("format") != FORMAT or not isinstance(content.get("rules"), list):
        hint = "; nnU-Net's own is given by --nnunet" if "postprocessing_fns" in content else ""
        raise UserError(f"{path}: not a file of nnunet-ext postprocess determine (format {FORMAT}){hint}")
    try:
        determined = dict(content["determined"])
        cases = tuple(str(case) for case in determined.pop("cases"))
        labels = {str(name): tuple(int(value) for value in values) for name, values in content["labels"].items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: its labels or cases can't be read ({error!r})") from error
    return RuleFile(tuple(from_json(rule, path) for rule in content["rules"]), labels, cases, determined)


def nnunet_rules(place: Path) -> list[Rule]:
    """nnU-Net's own post-processing as rules.

    Args:
        place: the postprocessing.json that nnUNetv2_find_best_configuration and nnUNetv2_determine_postprocessing write
            beside postprocessing.pkl; that one, too, or their folder. The pickle is not opened.

    Raises:
        UserError: there is none, or it has other steps.
    """
    path = place / "postprocessing.json" if place.is_dir() else place.with_suffix(".json")
    content = read_object(path)
    names, arguments = content.get("postprocessing_fns"), content.get("postprocessing_kwargs")
    if not isinstance(names, list) or not isinstance(arguments, list) or len(names) != len(arguments):
        raise UserError(f"{path}: not nnU-Net's postprocessing.json")
    rules = []
    for name, given in zip(names, arguments, strict=True):
        if name != _NNUNET_FUNCTION or not isinstance(given, dict) or given.get("background_label", 0) != 0:
            raise UserError(f"{path}: unknown step {name} {given}; nnU-Net's own is {_NNUNET_FUNCTION}")
        values = sorted(set(_flat(given.get("labels_or_regions"))))
        text = {"kind": LARGEST, "name": f"labels {values}", "labels": values, "origin": "nnU-Net"}
        rules.append(from_json(text, path))
    return rules


def _flat(values: Any) -> list[Any]:
    if not isinstance(values, list):
        return [values]
    return [value for inner in values for value in _flat(inner)]


def check_fit(content: RuleFile, dataset_json: Mapping[str, Any], cases: Iterable[str], own_cases: bool) -> list[str]:
    """See that rules may be applied to these cases.

    Args:
        content: the rules.
        dataset_json: of the predictions.
        cases: ids of the predictions.
        own_cases: whether they may be cases that the rules were found on.

    Returns:
        Notices.

    Raises:
        UserError: they may not.
    """
    labels = foreground(dataset_json)
    if dict(content.labels) != labels:
        raise UserError(f"the rules are for labels {dict(content.labels)}, and the predictions have {labels}")
    seen = sorted(set(content.cases) & set(cases))
    if not seen:
        return []
    told = f"{len(seen)} of these cases determined the rules, such as {seen[0]}: their scores would be flattered"
    if not own_cases:
        raise UserError(f"{told}. Apply them to other cases, or add --own-cases if no score will be reported.")
    return [told]


def _plain(value: Any) -> Any:
    """JSON values; NaN becomes null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
