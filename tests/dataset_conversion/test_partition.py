"""Published splits, cross-validation by patients, and what happens to cases that a split names and the data lack."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import toy_converter

from nnunet_ext.dataset_conversion import CONVERTERS, converter_class
from nnunet_ext.dataset_conversion.cases import SPLIT_FILES, Case, Split
from nnunet_ext.dataset_conversion.partition import cross_validation, published, resolve, without
from nnunet_ext.errors import UserError


def cases(*names: str, patient: int | None = None) -> list[Case]:
    return [Case(name, "training", (), None, name[:patient] if patient else "") for name in names]


class Published(toy_converter.Toy):
    """A converter with one published split and one of its own."""

    published_splits = ("unetrpp_synapse",)

    def own_splits(self, cases: Sequence[Case]) -> dict[str, Callable[[], Split]]:
        return {"own": lambda: Split("own", ((("a1",), ("b1",)),), ("c1",), "somewhere")}


SYNAPSE = json.loads((SPLIT_FILES / "unetrpp_synapse.json").read_text())
ALL = sorted([*SYNAPSE["train"], *SYNAPSE["val"]])


def test_split_files_are_whole() -> None:
    """Training, validation and test cases of every published split are different ones; numbers as the papers state."""
    sizes = {
        "acdc_nnformer": (140, 20, 40),
        "unetrpp_acdc": (160, 40, 0),
        "synapse_transunet": (18, 12, 0),
        "unetrpp_synapse": (18, 12, 0),
        "unetrpp_lung": (50, 13, 0),
        "unetrpp_tumor": (387, 73, 24),
        "brats2020_ossnet": (324, 45, 0),
    }
    for name, numbers in sizes.items():
        split = published(name)
        ((train, val),) = split.folds
        assert (len(train), len(val), len(split.test)) == numbers
        assert len({*train, *val, *split.test}) == sum(numbers)


def test_every_converter_offers_splits_that_exist() -> None:
    for key in CONVERTERS:
        converter = converter_class(key).from_arguments({})
        for name in converter.published_splits:
            assert (SPLIT_FILES / f"{name}.json").is_file()


def test_cross_validation_is_nnunets_where_every_case_is_a_patient() -> None:
    from nnunetv2.utilities.crossval_split import generate_crossval_split

    names = [f"case{number:02d}" for number in range(23)]
    made = cross_validation(cases(*names)).folds
    theirs = generate_crossval_split(names, 12345, 5)
    assert [sorted(map(str, fold["val"])) for fold in theirs] == [list(val) for _, val in made]
    assert [sorted(map(str, fold["train"])) for fold in theirs] == [list(train) for train, _ in made]


def test_cross_validation_keeps_patients_together() -> None:
    names = [f"p{patient}_{visit}" for patient in range(7) for visit in range(3)]
    split = cross_validation(cases(*names, patient=2))
    assert len(split.folds) == 5
    for train, val in split.folds:
        assert not {name[:2] for name in train} & {name[:2] for name in val}
    assert sorted(name for _, val in split.folds for name in val) == names
    assert "patients kept together" in split.source


def test_few_patients_make_few_folds_and_a_notice() -> None:
    assert len(resolve(toy_converter.Toy(), cases("a", "b", "c")).folds) == 3
    alone = resolve(toy_converter.Toy(), cases("a"))
    assert alone.folds == ()
    assert "one patient only" in alone.notices[0]


def test_published_split_is_the_default_and_its_single_fold_is_noticed() -> None:
    made = resolve(Published(), cases(*ALL))
    assert made.names == ("unetrpp_synapse",)
    assert made.folds == ({"train": sorted(SYNAPSE["train"]), "val": sorted(SYNAPSE["val"])},)
    assert "fold 0 only" in made.notices[0]
    assert "--with-cv" in made.notices[0]


def test_cross_validation_can_follow() -> None:
    made = resolve(Published(), cases(*ALL), with_cv=True)
    assert len(made.folds) == 6
    assert made.folds[1:] == tuple(
        {"train": list(train), "val": list(val)} for train, val in cross_validation(cases(*ALL)).folds
    )
    assert made.notices == ()


def test_validation_cases_can_be_held_out_for_testing() -> None:
    made = resolve(Published(), cases(*ALL), hold_out=True)
    assert made.test == frozenset(SYNAPSE["val"])
    assert len(made.folds) == 5
    assert {case for fold in made.folds for case in fold["val"]} == set(SYNAPSE["train"])


def test_cases_that_the_download_lacks_are_listed() -> None:
    with pytest.raises(UserError, match=r"needs 29 cases that the download has not.*img0002, .* 21 more.*--split cv"):
        resolve(Published(), cases("img0001"))


def test_cases_that_are_left_out_leave_the_folds_too() -> None:
    made = resolve(Published(), cases(*ALL[1:]), broken={ALL[0]})
    remaining = without(made, {ALL[0]})
    assert ALL[0] not in {case for fold in remaining.folds for part in fold.values() for case in part}
    assert f"lack 1 cases that were left out: {ALL[0]}" in remaining.notices[-1]


def test_own_split_moves_its_test_cases() -> None:
    made = resolve(Published(), cases("a1", "b1", "c1"), ["own"])
    assert made.test == {"c1"}
    assert made.folds == ({"train": ["a1"], "val": ["b1"]},)


def test_patient_on_both_sides_is_refused() -> None:
    with pytest.raises(UserError, match=r"fold 0: patients in training and in validation: same"):
        resolve(
            Published(),
            [Case("a1", "training", (), None, "same"), Case("b1", "training", (), None, "same"), *cases("c1")],
            ["own"],
        )


def test_test_case_of_one_split_may_not_train_in_another() -> None:
    with pytest.raises(UserError, match="keeps for testing: c1"):
        resolve(Published(), cases("a1", "b1", "c1"), ["own", "cv"])


def test_unknown_split_lists_those_that_exist() -> None:
    with pytest.raises(UserError, match=r"no split 'paper'; it has: unetrpp_synapse, own, cv, none"):
        resolve(Published(), cases("a"), ["paper"])


def test_none_goes_with_nothing_else() -> None:
    assert resolve(Published(), cases("a"), ["none"]).folds == ()
    with pytest.raises(UserError, match="--split none writes no folds"):
        resolve(Published(), cases("a"), ["none", "cv"])


def test_unreadable_record_is_an_error(nnunet_folders: Path) -> None:
    from nnunet_ext.dataset_conversion.state import State

    (nnunet_folders / "conversion.json").write_text("half")
    with pytest.raises(UserError, match="move it away"):
        State(nnunet_folders)
