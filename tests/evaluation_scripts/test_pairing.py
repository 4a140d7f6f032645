"""References and predictions by case id: folders, folds, trained models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from evaluated import cube, label_map, save

from nnunet_ext.errors import UserError
from nnunet_ext.evaluation_scripts.pairing import find_pairs, validation_folders

MAP = label_map(cube(1))


def folder(place: Path, *cases: str, ending: str = ".nii.gz") -> Path:
    for case in cases:
        save(place / f"{case}{ending}", MAP)
    return place


def model(place: Path, folds: dict[str, tuple[str, ...]]) -> Path:
    for fold, cases in folds.items():
        folder(place / fold / "validation", *cases)
        (place / fold / "validation" / "summary.json").write_text("{}")
        (place / fold / "validation" / f"{cases[0]}.npz").write_bytes(b"probabilities")
    return place


def test_by_id_and_not_by_order(tmp_path: Path) -> None:
    pairs = find_pairs(folder(tmp_path / "ref", "a", "b", "c"), [folder(tmp_path / "pred", "c", "a", "x")])
    assert {case: path.name for case, path in pairs.predictions.items()} == {"a": "a.nii.gz", "c": "c.nii.gz"}
    assert pairs.missing == ["b"]
    assert pairs.extra == ("x",)


def test_a_model_with_all_folds(tmp_path: Path) -> None:
    references = folder(tmp_path / "ref", "a", "b", "c", "d")
    place = model(tmp_path / "model", {"fold_0": ("a", "b"), "fold_1": ("c",)})
    pairs = find_pairs(references, [place])
    assert sorted(pairs.references) == sorted(pairs.predictions) == ["a", "b", "c"]  # d is in no fold
    assert pairs.predictions["c"] == place / "fold_1" / "validation" / "c.nii.gz"
    for given in (place / "fold_0", place / "fold_0" / "validation"):
        assert sorted(find_pairs(references, [given]).references) == ["a", "b"]
    both = find_pairs(references, [place / "fold_0", place / "fold_1"])
    assert sorted(both.references) == ["a", "b", "c"]


def test_a_case_in_two_folds_is_an_error(tmp_path: Path) -> None:
    references = folder(tmp_path / "ref", "a", "b")
    place = model(tmp_path / "model", {"fold_0": ("a", "b"), "fold_1": ("b",)})
    with pytest.raises(UserError, match=r"b is predicted twice: .*fold_0.*fold_1"):
        find_pairs(references, [place])


def test_what_a_fold_should_have_is_told_by_its_split(tmp_path: Path) -> None:
    references = folder(tmp_path / "preprocessed" / "gt_segmentations", "a", "b", "c")
    splits = references.parent / "splits_final.json"
    splits.write_text(json.dumps([{"train": ["c"], "val": ["a", "b"]}]))
    place = model(tmp_path / "model", {"fold_0": ("a",)})
    assert find_pairs(references, [place]).missing == ["b"]
    splits.write_text(json.dumps([{"train": ["a"], "val": ["b", "c"]}]))  # not the folds of this training
    assert find_pairs(references, [place]).missing == []


def test_folders_without_what_is_needed(tmp_path: Path) -> None:
    references = folder(tmp_path / "ref", "a")
    with pytest.raises(UserError, match="no such folder of predictions"):
        find_pairs(references, [tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no label maps"):
        find_pairs(references, [tmp_path / "empty"])
    with pytest.raises(UserError, match="no case is in both folders"):
        find_pairs(references, [folder(tmp_path / "other", "x")])
    (tmp_path / "untrained" / "fold_0").mkdir(parents=True)
    with pytest.raises(UserError, match="no validation folders"):
        find_pairs(references, [tmp_path / "untrained"])
    (folder(tmp_path / "linked", "a") / "b.nii.gz").symlink_to(tmp_path / "gone.nii.gz")
    with pytest.raises(UserError, match=r"b\.nii\.gz: a link to a file that is not there"):
        find_pairs(tmp_path / "linked", [references])
    folder(tmp_path / "two", "a")
    folder(tmp_path / "two", "a", ending=".nii")
    with pytest.raises(UserError, match=r"two label maps for a: a\.nii and a\.nii\.gz"):
        find_pairs(references, [tmp_path / "two"])


def test_endings_may_differ(tmp_path: Path) -> None:
    pairs = find_pairs(folder(tmp_path / "ref", "a", ending=".nii"), [folder(tmp_path / "pred", "a")])
    assert not pairs.missing


def test_a_folder_with_its_own_label_maps_is_not_replaced_by_one_below(tmp_path: Path) -> None:
    place = folder(tmp_path / "pred", "a", "b")
    folder(place / "validation", "a")
    with pytest.raises(UserError, match=r"pred holds label maps of its own, such as a\.nii\.gz, and .*pred/validation"):
        validation_folders(place)
    below = model(folder(tmp_path / "model", "a"), {"fold_0": ("a",)})
    with pytest.raises(UserError, match=r"model holds label maps .* and .*fold_0/validation is there"):
        validation_folders(below)
    assert validation_folders(place / "validation") == [place / "validation"]


@pytest.mark.parametrize("left", ["checkpoint_final.pth", "debug.json", None])
def test_what_a_training_leaves_in_a_fold_is_no_prediction(tmp_path: Path, left: str | None) -> None:
    fold = model(tmp_path / "model", {"fold_0": ("a",)}) / "fold_0"
    (fold / "progress.png").write_bytes(b"a plot")
    if left is not None:
        (fold / left).write_bytes(b"{}")
        (fold / "figure.png").write_bytes(b"another")
    assert validation_folders(fold) == validation_folders(fold.parent) == [fold / "validation"]


def test_cases_named_like_folds(tmp_path: Path) -> None:
    references = folder(tmp_path / "ref", "fold_1", "fold_2")
    place = folder(tmp_path / "pred", "fold_1", "fold_2")
    assert sorted(find_pairs(references, [place]).predictions) == ["fold_1", "fold_2"]
    (place / "fold_3").mkdir()  # without validation: the label maps beside it count
    assert validation_folders(place) == [place]
