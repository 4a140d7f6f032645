"""Which cases train, validate and test: published splits, cross-validation by patients, and nnU-Net's file of folds."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_ext.dataset_conversion.base import Converter
from nnunet_ext.dataset_conversion.cases import SPLIT_FILES, Case, Split
from nnunet_ext.errors import UserError

CROSS_VALIDATION, NONE = "cv", "none"
SEED, FOLDS = 12345, 5  # nnU-Net's own
_SHOWN = 8


@dataclass(frozen=True)
class Partition:
    """What `splits_final.json` will hold.

    Attributes:
        folds: each {"train": [...], "val": [...]}, sorted; empty: nnU-Net makes its own.
        test: labelled cases that become test cases.
        names: of the splits, in the order of the folds.
        sources: where each comes from.
        notices: what a user should know.
    """

    folds: tuple[dict[str, list[str]], ...]
    test: frozenset[str]
    names: tuple[str, ...]
    sources: tuple[str, ...]
    notices: tuple[str, ...] = ()


def published(name: str) -> Split:
    """A split of the files beside this module: fold 0 is train and val; where there is no val, its test cases are.

    That is how these papers report: validation on the test cases.
    """
    content = json.loads((SPLIT_FILES / f"{name}.json").read_text())
    test = tuple(content.get("test", ()))
    fold = (tuple(content["train"]), tuple(content.get("val", test)))
    return Split(name, (fold,), test if "val" in content else (), content.get("name", name))


def cross_validation(cases: Sequence[Case], folds: int = FOLDS) -> Split:
    """nnU-Net's own split, with patients in place of cases: the same folds where each case is a patient of its own.

    Args:
        cases: in any order.
        folds: fewer where there are fewer patients; none for a single patient.
    """
    members: dict[str, list[str]] = {}
    for case in cases:
        members.setdefault(case.group or case.id, []).append(case.id)
    groups = sorted(members)
    count = min(folds, len(groups))
    made = []
    if count > 1:
        from nnunetv2.utilities.crossval_split import generate_crossval_split

        for fold in generate_crossval_split(groups, SEED, count):
            parts = ([case for group in fold[part] for case in members[group]] for part in ("train", "val"))
            made.append(tuple(tuple(sorted(part)) for part in parts))
    source = f"{count} folds, seed {SEED}" + (", patients kept together" if len(groups) < len(cases) else "")
    return Split(CROSS_VALIDATION, tuple((train, val) for train, val in made), (), source)


def names_of(converter: Converter, cases: Sequence[Case]) -> list[str]:
    """The splits that can be asked for."""
    return [*converter.published_splits, *converter.own_splits(cases), CROSS_VALIDATION, NONE]


def resolve(
    converter: Converter,
    cases: Sequence[Case],
    wanted: Sequence[str] = (),
    *,
    with_cv: bool = False,
    hold_out: bool = False,
    broken: Collection[str] = (),
) -> Partition:
    """Turn names of splits into folds of these cases.

    Args:
        converter: of the data set.
        cases: those with a label that may train.
        wanted: names, in the order of the folds; none: the data set's default.
        with_cv: five folds of cross-validation follow those of the splits.
        broken: ids of further cases of the download, which are left out of it; a split may name them.
        hold_out: validation cases of the first split become test cases, and its training cases are cross-validated.

    Raises:
        UserError: an unknown name; cases that are not in the download; a patient on both sides.
    """
    cases = sorted(cases, key=lambda case: case.id)
    names = list(wanted) or [converter.default_split()]
    if NONE in names:
        if len(names) > 1 or with_cv or hold_out:
            raise UserError(f"--split {NONE} writes no folds, and goes with no other split")
        return Partition((), frozenset(), (), ())
    splits = [_named(converter, cases, name) for name in names]
    for split in splits:
        _check_known(split, {case.id for case in cases} | set(broken), converter)
    test = {case for split in splits for case in split.test}
    if hold_out:
        test |= {case for _, val in splits[0].folds[:1] for case in val}
        splits = []
    if hold_out or (with_cv and CROSS_VALIDATION not in names):
        splits.append(cross_validation([case for case in cases if case.id not in test]))
    folds = tuple({"train": sorted(train), "val": sorted(val)} for split in splits for train, val in split.folds)
    for number, fold in enumerate(folds):
        _check_fold(number, fold, test, cases)
    return Partition(
        folds,
        frozenset(test),
        tuple(split.name for split in splits),
        tuple(split.source for split in splits),
        _few(folds, CROSS_VALIDATION in names or with_cv),
    )


def _few(folds: Sequence[Mapping[str, Any]], crossed: bool) -> tuple[str, ...]:
    """What to say of fewer than nnU-Net's five folds."""
    if len(folds) >= FOLDS:
        return ()
    if not folds:
        return ("one patient only: no folds were made; train with fold all.",)
    there = "fold 0" if len(folds) == 1 else f"folds 0 to {len(folds) - 1}"
    way_out = "" if crossed else f" --with-cv adds {FOLDS} folds of cross-validation."
    return (f"the split has {there} only: for any other number nnU-Net draws 80:20 by chance, unasked.{way_out}",)


def _named(converter: Converter, cases: Sequence[Case], name: str) -> Split:
    own = converter.own_splits(cases)
    if name in own:
        return own[name]()
    if name in converter.published_splits:
        return published(name)
    if name == CROSS_VALIDATION:
        return cross_validation(cases)
    raise UserError(
        f"{converter.key} has no split {name!r}; it has: {', '.join(names_of(converter, cases))}. A split of your own: "
        "--split none, and put splits_final.json into the data set's folder in nnUNet_preprocessed."
    )


def _check_known(split: Split, known: set[str], converter: Converter) -> None:
    needed = {case for fold in split.folds for part in fold for case in part} | set(split.test)
    missing = sorted(needed - known)
    if missing:
        raise UserError(
            f"{converter.key}: the split {split.name} needs {len(missing)} cases that the download has not, with a "
            f"label: {shortened(missing)}. --split {CROSS_VALIDATION} makes folds of the cases that are there."
        )


def _check_fold(number: int, fold: Mapping[str, Sequence[str]], test: set[str], cases: Sequence[Case]) -> None:
    group = {case.id: case.group or case.id for case in cases}
    train, val = set(fold["train"]), set(fold["val"])
    both = sorted({group.get(case, case) for case in train} & {group.get(case, case) for case in val})
    if both:
        raise UserError(f"fold {number}: patients in training and in validation: {shortened(both)}")
    leaked = sorted({group.get(case, case) for case in test} & {group.get(case, case) for case in train | val})
    if leaked:
        raise UserError(
            f"fold {number}: patients that another of the chosen splits keeps for testing: {shortened(leaked)}"
        )


def without(partition: Partition, left_out: set[str]) -> Partition:
    """The partition without cases that could not be converted."""
    if not left_out:
        return partition
    folds = tuple(
        {part: [case for case in members if case not in left_out] for part, members in fold.items()}
        for fold in partition.folds
    )
    gone = sorted(left_out & {case for fold in partition.folds for part in fold.values() for case in part})
    notice = (f"the folds lack {len(gone)} cases that were left out: {shortened(gone)}.",) if gone else ()
    return Partition(
        folds, partition.test - left_out, partition.names, partition.sources, (*partition.notices, *notice)
    )


def shortened(names: Sequence[str]) -> str:
    """The first few, and how many more."""
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def read_folds(path: Path) -> Any:
    """The content of a splits_final.json; None if there is none that can be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
