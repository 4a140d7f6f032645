"""What users and dataset.json files say of classes becomes what nnU-Net accepts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunet_ext.dataset_conversion.class_names import (
    Classes,
    channels_of_json,
    classes_of_json,
    classes_of_words,
    read_json,
)
from nnunet_ext.errors import UserError


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["liver=1", "tumour=2"], Classes({"background": 0, "liver": 1, "tumour": 2})),
        (["tumour=2", "liver=1"], Classes({"background": 0, "liver": 1, "tumour": 2})),
        (["a=5", "b=3"], Classes({"background": 0, "b": 1, "a": 2}, {0: 0, 3: 1, 5: 2})),
        (["background=0+9", "a=1+2"], Classes({"background": 0, "a": 1}, {0: 0, 9: 0, 1: 1, 2: 1})),
        (["background=255", "road=0"], Classes({"background": 0, "road": 1}, {255: 0, 0: 1})),
        (["nothing=0", "a=1"], Classes({"background": 0, "a": 1})),
        (["ignore=1", "a=2"], Classes({"background": 0, "a": 1, "ignore": 2}, {0: 0, 2: 1, 1: 2})),
        (["a=b=1"], Classes({"background": 0, "a=b": 1})),
        (
            ["whole=1,2,4", "core=1,4", "enhancing=4"],
            Classes(
                {"background": 0, "whole": (1, 2, 3), "core": (1, 3), "enhancing": 3},
                {0: 0, 1: 1, 2: 2, 4: 3},
                (2, 1, 3),
            ),
        ),
    ],
)
def test_words(words: list[str], expected: Classes) -> None:
    made = classes_of_words(words)
    assert dict(made.labels) == dict(expected.labels)
    assert made.label_map == expected.label_map
    assert made.regions_class_order == expected.regions_class_order
    as_nnunet = {name: list(value) if isinstance(value, tuple) else value for name, value in made.labels.items()}
    manager = LabelManager(as_nnunet, list(made.regions_class_order) if made.regions_class_order else None)
    assert manager.all_labels == list(range(len(manager.all_labels)))


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["liver"], "'liver' is not understood; expected NAME=VALUE"),
        (["liver=x"], "'liver=x' is not understood"),
        (["=1"], "'=1' is not understood"),
        (["a=1", "b=1"], r"label values \[1\] are claimed by several classes"),
        (["a=1+2", "b=3,4"], "cannot be used together"),
        (["a=1,2", "b=1,2"], "from the largest to the smallest"),
        (["nowhere.json"], "not a readable JSON file"),
    ],
)
def test_words_that_are_not_understood(words: list[str], text: str) -> None:
    with pytest.raises(UserError, match=text):
        classes_of_words(words)


@pytest.mark.parametrize(
    ("content", "labels", "label_map"),
    [
        ({"labels": {"0": "background", "1": "a", "2": "b"}}, {"background": 0, "a": 1, "b": 2}, None),
        ({"labels": {"0": "Background", "10": "a", "2": "b"}}, {"background": 0, "a": 2, "b": 1}, {0: 0, 2: 1, 10: 2}),
        ({"labels": {"0": "bg", "1": "a", "2": "a"}}, {"background": 0, "a": 1, "a_2": 2}, None),
        ({"labels": {"1": "a"}}, {"background": 0, "a": 1}, None),
        ({"labels": {"background": 0, "a": [1], "b": "2"}}, {"background": 0, "a": 1, "b": 2}, None),
        (
            {"labels": {"background": 0, "w": [1, 2, 4], "t": [2, 4], "e": 4}, "regions_class_order": [1, 2, 4]},
            {"background": 0, "w": (1, 2, 3), "t": (2, 3), "e": 3},
            {0: 0, 1: 1, 2: 2, 4: 3},
        ),
    ],
)
def test_json(
    tmp_path: Path, content: dict[str, Any], labels: dict[str, Any], label_map: dict[int, int] | None
) -> None:
    made = classes_of_json(content, "x.json")
    assert dict(made.labels) == labels
    assert made.label_map == label_map
    assert made.regions_class_order == ((1, 2, 3) if "regions_class_order" in content else None)
    (tmp_path / "names.json").write_text(json.dumps(content))
    assert classes_of_words([str(tmp_path / "names.json")]) == made


@pytest.mark.parametrize("labels", [None, {}, [], {"a": None}, {"x": "a", "y": "b"}, {"a": 1.5j}])
def test_json_that_is_not_understood(labels: Any) -> None:
    with pytest.raises(UserError, match=r"x\.json"):
        classes_of_json({"labels": labels}, "x.json")


def test_channels() -> None:
    many = {str(index): f"c{index}" for index in (0, 10, 2, 1, 3, 4, 5, 6, 7, 8, 9)}
    assert channels_of_json({"modality": many}) == tuple(f"c{index}" for index in range(11))
    assert channels_of_json({"channel_names": {"0": "CT"}, "modality": {"0": "MR"}}) == ("CT",)
    assert channels_of_json({"modality": "CT"}) == ("CT",)
    assert channels_of_json({"channel_names": ["a", "b"]}) == ("a", "b")
    assert channels_of_json({}) == ()


def test_json_objects_only(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("[1]")
    with pytest.raises(UserError, match="holds a list; expected an object"):
        read_json(path)
    path.write_text("\ufeff{}")
    assert read_json(path) == {}
