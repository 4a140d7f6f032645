"""A published table beside ours, by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from published_case import write_data_set, write_maps

from nnunet_ext.dataset_conversion.btcv import ORGANS
from nnunet_ext.errors import UserError
from nnunet_ext.evaluation_scripts import reproduce_tables
from nnunet_ext.evaluation_scripts.papers import PAPERS
from nnunet_ext.evaluation_scripts.reproduce import Reproduction, choose, reproduce

PAPER = PAPERS["unetrpp-synapse"]
LABELS = {"labels": {name: value for value, name in enumerate(ORGANS)}}
ALL = dict.fromkeys(range(1, 14), 10)
#: A rod of 10 against one of 20: Dice 20/30, distances 0 but for 1 to 10 of the longer.
REFERENCES = {"img0001": ALL, "img0002": {**ALL, 4: 0}, "img0005": ALL, "img0003": ALL}
PREDICTIONS = {"img0001": {**ALL, 1: 20}, "img0002": {**ALL, 4: 0, 6: 0}, "img0005": ALL}


@pytest.fixture
def data_set(tmp_path: Path) -> Path:
    write_maps(tmp_path / "predictions", PREDICTIONS)
    return write_data_set(tmp_path / "Dataset802_Synapse", REFERENCES)


def made(data_set: Path, **options: object) -> Reproduction:
    return reproduce(PAPER, [data_set.parent / "predictions"], [data_set / "labelsTr"], LABELS, **options)  # type: ignore[arg-type]


def by_name(found: Reproduction) -> dict[str, float]:
    return {column.name: value for column, value in zip(found.paper.columns, found.values, strict=True)}


def test_a_table_by_hand(data_set: Path) -> None:
    found = made(data_set)
    # img0001: spleen 2/3; img0002: no gallbladder on either side counts 1, the missed liver 0
    organs = {"Spl": 100 * (2 / 3 + 1) / 2, "RKid": 100, "LKid": 100, "Gal": 100, "Liv": 50, "Sto": 100}
    organs |= {"Aor": 100, "Pan": 100}
    # the spleen's 10 + 20 distances in voxels: 20 zeros and 1 to 10; place 0.95 * 29 = 27.55 from 0: 8 and 0.55 of 1
    hd95 = (8.55 + 0) / 2 / 8
    expected = {**organs, "HD95": hd95, "DSC": sum(organs.values()) / 8}
    assert by_name(found) == pytest.approx(expected, rel=1e-12)
    assert found.counts == (2,) * 10
    assert found.differences()[0] == pytest.approx(expected["Spl"] - 95.77)
    assert found.differences()[-1] == pytest.approx(expected["DSC"] - 87.22)
    assert [case.case for case in found.evaluation.cases] == ["img0001", "img0002"]


def test_cases_that_differ_are_said(data_set: Path) -> None:
    warnings = "\n".join(made(data_set).warnings)
    assert "NO PREDICTION, left out of the means, of the paper's 12 cases (1): img0003" in warnings
    assert "NO REFERENCE of the paper's 12 cases (9): img0004" in warnings
    assert "passed over, being of other cases, predictions (1): img0005" in warnings


def test_a_missing_prediction_as_an_empty_one(data_set: Path) -> None:
    found = made(data_set, missing="worst")
    assert by_name(found)["RKid"] == pytest.approx(200 / 3)
    assert found.evaluation.missing() == ["img0003"]
    with pytest.raises(UserError, match="img0003"):
        made(data_set, missing="error")


def test_all_cases(data_set: Path) -> None:
    found = made(data_set, all_cases=True)
    assert [case.case for case in found.evaluation.cases] == ["img0001", "img0002", "img0005"]
    assert found.warnings == ("NOT the paper's (1): img0005",)
    assert by_name(found)["Liv"] == pytest.approx(200 / 3)


def test_another_row(data_set: Path) -> None:
    assert made(data_set, against="nnformer").differences()[0] == pytest.approx(500 / 6 - 90.51)
    found = made(data_set, against="U-Net")
    assert math.isnan(found.differences()[-2])
    assert "-" in reproduce_tables.body(found)[-2]
    with pytest.raises(UserError, match="UNETR"):
        made(data_set, against="Unet")


def test_background_included(data_set: Path) -> None:
    cases = {"img0035": ALL, "img0036": {**ALL, 4: 0}}
    write_data_set(data_set, cases, "six")
    predictions = write_maps(data_set.parent / "sshunet", {"img0035": {**ALL, 4: 20}, "img0036": {**ALL, 4: 20}})
    paper = PAPERS["sshunet-btcv"]
    found = reproduce(paper, [predictions], [data_set / "six"], LABELS)
    assert by_name(found)["gall"] == pytest.approx(2 / 3)  # absent in img0036, whose false one counts nothing
    assert found.counts[4] == 1
    total = 30 * 36
    whole, without = total - 130, total - 120  # background of img0035, of img0036
    background = (2 * (whole - 10) / (2 * whole - 10) + 2 * (without - 20) / (2 * without - 20)) / 2
    expected = {"bg": background, "13 organs": (12 + 2 / 3) / 13, "mean of 14": (12 + 2 / 3 + background) / 14}
    assert {name: by_name(found)[name] for name in expected} == pytest.approx(expected, rel=1e-12)
    assert found.differences()[-1] == pytest.approx(expected["13 organs"] - 0.8308)


def test_folds_and_several_folders_of_references(data_set: Path) -> None:
    model = data_set.parent / "model"
    write_maps(model / "fold_0" / "validation", {"img0001": ALL})
    write_maps(data_set / "labelsTs", {"img0004": ALL})
    write_maps(data_set.parent / "test", {"img0004": ALL})
    places = [data_set / "labelsTr", data_set / "labelsTs"]
    found = choose(PAPER, [model, data_set.parent / "test"], places)
    assert list(found.pairs.predictions) == ["img0001", "img0004"]
    with pytest.raises(UserError, match="img0001 is predicted twice"):
        choose(PAPER, [model, data_set.parent / "predictions"], places)


def test_none_of_the_papers_cases(data_set: Path) -> None:
    other = write_maps(data_set.parent / "other", {"img0005": ALL})
    with pytest.raises(UserError, match="--all-cases"):
        choose(PAPER, [other], [data_set / "labelsTr"])
    with pytest.raises(UserError, match="no case is in both folders"):
        choose(PAPER, [write_maps(data_set.parent / "none", {"img0099": ALL})], [data_set / "labelsTr"])


def test_unknown_ids_take_all_that_is_predicted(data_set: Path) -> None:
    lits = PAPERS["ossnet-lits"]
    found = reproduce(lits, [data_set.parent / "predictions"], [data_set / "labelsTr"], LABELS)
    assert len(found.evaluation.cases) == 3
    assert "not known" in found.warnings[0]
    assert "NOT COMPARABLE" in reproduce_tables.as_text(found)


def test_nothing_published_is_a_dash_with_its_reason(data_set: Path) -> None:
    labels = {f"organ {number}": number for number in range(1, 16)}
    write_data_set(data_set, {"amos_0008": ALL}, "amos")
    predictions = write_maps(data_set.parent / "amos_predictions", {"amos_0008": ALL})
    found = reproduce(
        PAPERS["sshunet-amos"], [predictions], [data_set / "amos"], {"labels": {"background": 0, **labels}}
    )
    assert all(row[1] == "-" and row[3] == "-" for row in reproduce_tables.body(found))
    assert "(-)\n  All: AMOS results" in reproduce_tables.as_text(found)


def test_forms(data_set: Path) -> None:
    found = made(data_set)
    text = reproduce_tables.as_text(found)
    line = next(line for line in text.splitlines() if line.startswith("Spl "))
    assert line.split()[-4:] == ["95.77", "83.33", "-12.44", "2"]
    assert text.count("!!!") == 3
    assert "in VOXELS" in " ".join(text.split())
    assert "HD95: 1 of 16 values are 0.00 voxels by rule (only the reference has voxels)" in text
    page = reproduce_tables.as_markdown(found, "nnunet-ext reproduce unetrpp-synapse")
    assert "| Spl | 86.67 |" in page
    assert page.endswith("    nnunet-ext reproduce unetrpp-synapse\n")
    rows = reproduce_tables.as_csv(found).splitlines()
    assert len(rows) == 1 + 9 * 10
    assert rows[9] == "unetrpp-synapse,U-Net,HD95,HD95," + "; ".join(found.evaluation.structures) + ",voxels,,,"
    content = json.loads(reproduce_tables.as_json(found))
    assert content["published"][0]["values"][8] is None
    assert content["values"][4] == pytest.approx(50)
    assert content["cases"]["evaluated"] == ["img0001", "img0002"]
