"""Means, spread, intervals, and what is left out, by hand."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from nnunet_ext.evaluation_scripts import tables
from nnunet_ext.evaluation_scripts.bootstrap import bootstrap
from nnunet_ext.evaluation_scripts.results import CaseResult, Evaluation
from nnunet_ext.evaluation_scripts.summarising import column_intervals, summarise

NAN = math.nan
METRICS: dict[str, dict[str, Any]] = {
    "Dice": {"unit": "", "quantity": "dice", "higher_is_better": True, "empty": {"both_empty": 1.0}},
    "HD95": {"unit": "mm", "quantity": "hd95_pooled", "higher_is_better": False, "empty": {"pred_empty": NAN}},
}


def evaluation(values: Mapping[str, Sequence[tuple[float, float]]], states: Sequence[str] = ()) -> Evaluation:
    """Of structure -> (Dice, HD95) of each case."""
    cases = []
    for place in range(len(next(iter(values.values())))):
        found = {name: dict(zip(METRICS, rows[place], strict=True)) for name, rows in values.items()}
        state = states[place] if states else "both_present"
        cases.append(CaseResult(f"c{place}", "ref", "pred", found, dict.fromkeys(values, state)))
    structures = {name: (place,) for place, name in enumerate(values, 1)}
    return Evaluation("sound", "In words.", METRICS, structures, "structures", tuple(cases))


def test_spread_of_a_structure() -> None:
    found = summarise(evaluation({"a": [(0.2, 1), (0.4, 2), (0.9, 4), (NAN, NAN)]}))
    dice, distance = (found["structures"][metric]["a"] for metric in METRICS)
    assert dice["mean"] == pytest.approx(0.5)
    assert dice["std"] == pytest.approx(math.sqrt((0.09 + 0.01 + 0.16) / 2))
    assert (dice["median"], dice["min"], dice["max"]) == (0.4, 0.2, 0.9)
    assert (dice["q1"], dice["q3"]) == (pytest.approx(0.3), pytest.approx(0.65))
    assert (dice["n"], dice["n_excluded"], dice["worst"]) == (3, 1, "c0")
    assert distance["worst"] == "c2"
    assert found["worst"]["HD95"][0] == {"case": "c2", "structure": "a", "value": 4}
    assert [entry["case"] for entry in found["worst"]["Dice"]] == ["c0", "c1", "c2"]


def test_intervals_are_those_of_single_columns() -> None:
    table = np.random.default_rng(1).normal(size=(12, 4))
    table[3, 1] = NAN
    table[5, 2] = math.inf
    table[1:, 3] = NAN
    for groups in (None, [f"patient{case // 2}" for case in range(12)]):
        for place, bounds in enumerate(column_intervals(table, groups)):
            found = bootstrap(table[:, place], groups)
            assert bounds == pytest.approx((found.lower, found.upper), nan_ok=True)


def test_patients_are_resampled_as_a_whole() -> None:
    found = evaluation({"a": [(0.1, 1), (0.1, 1), (0.9, 1), (0.9, 1)]})
    together = summarise(found, {"c0": "p", "c1": "p", "c2": "q", "c3": "q"}, "patients")
    assert together["bootstrap"]["units"] == 2
    assert together["structures"]["Dice"]["a"]["interval"] == pytest.approx([0.1, 0.9])
    one = summarise(found, dict.fromkeys(("c0", "c1", "c2", "c3"), "p"))
    assert all(map(math.isnan, one["structures"]["Dice"]["a"]["interval"]))


def test_rules_are_counted() -> None:
    states = ["both_present", "both_empty", "pred_empty"]
    found = evaluation({"a": [(0.5, 1), (1, NAN), (0, NAN)]}, states)
    summary = summarise(found)
    assert summary["empty_masks"]["Dice"] == {
        "decided": {"both_empty": 1},
        "values": {"both_empty": 1},
        "undefined": 0,
        "of": 3,
    }
    assert summary["empty_masks"]["HD95"] == {"decided": {}, "values": {}, "undefined": 2, "of": 3}
    assert tables.rules_fired(found, summary) == [
        "Dice: 1 of 3 values are 1.0000 by rule (both masks empty)",
        "HD95: 2 of 3 values are undefined and left out",
    ]


def test_one_case_and_infinities() -> None:
    one = summarise(evaluation({"a": [(0.5, math.inf)]}))
    dice, distance = (one["structures"][metric]["a"] for metric in METRICS)
    assert (dice["mean"], dice["n"]) == (0.5, 1)
    assert math.isnan(dice["std"])
    assert math.isnan(dice["interval"][0])
    assert distance["mean"] == distance["max"] == one["overall"]["HD95"]["mean"] == math.inf
    assert math.isnan(distance["interval"][0])
    nothing = summarise(evaluation({"a": [(NAN, NAN)]}))
    assert (nothing["structures"]["Dice"]["a"]["n"], nothing["worst"]["Dice"]) == (0, [])


def test_table() -> None:
    found = evaluation({"a": [(0.5, 1), (1, 3)], "long name": [(0.25, 2), (0.75, NAN)]})
    summary = summarise(found)
    rows = tables.rows(found, summary, "HD95")
    assert [row[:2] for row in rows] == [("a", "2.00"), ("long name", "2.00"), ("mean", "2.00")]
    assert rows[1][-2:] == ("1", "1")
    text = tables.as_text(found, summary)
    assert "HD95 (mm; lower is better)" in text
    assert text.splitlines()[0] == "Convention sound: In words."
    assert "| long name | 0.5000 |" in tables.as_markdown(found, summary)
