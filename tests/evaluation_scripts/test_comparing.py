from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_evaluations import HD95, METRICS, ML, made_evaluation, random_evaluation
from scipy import stats

from nnunet_ext.errors import UserError
from nnunet_ext.evaluation_scripts import comparison_plots, comparison_tables
from nnunet_ext.evaluation_scripts.compared_models import Models, distinct_names, matched
from nnunet_ext.evaluation_scripts.comparing import OVERALL, as_json, compare_two, overall_values, rank_all
from nnunet_ext.evaluation_scripts.statistics import PairedSettings

PNG = b"\x89PNG"


@pytest.fixture(scope="module")
def two() -> Models:
    return matched({"ours": random_evaluation(1, shift=0.04), "<base>|$x$": random_evaluation(2, holes=True)})


def test_two_models_against_scipy(two: Models) -> None:
    found = compare_two(two)
    assert list(found) == ["Dice", "HD95"]
    assert list(found["Dice"]) == ["liver", "spleen", OVERALL]
    p: list[float] = []
    for place, name in enumerate(("liver", "spleen")):
        ours, theirs = two.values("Dice")[:, :, place]
        pair = found["Dice"][name]
        assert list(pair.means) == pytest.approx([ours.mean(), theirs.mean()])
        assert pair.found.mean.estimate == pytest.approx((ours - theirs).mean())
        assert pair.found.mean.lower < pair.found.mean.estimate < pair.found.mean.upper
        expected = stats.wilcoxon(ours - theirs, method="exact")
        assert pair.found.wilcoxon_p == pytest.approx(expected.pvalue)
        ranks = stats.rankdata(np.abs(ours - theirs))
        positive = ranks[ours > theirs].sum()
        assert pair.found.effect == pytest.approx(2 * positive / ranks.sum() - 1)
        p.append(expected.pvalue)
    low, high = sorted(p)
    corrected = sorted(found["Dice"][name].found.wilcoxon_holm for name in ("liver", "spleen"))
    assert corrected == pytest.approx([min(1, 2 * low), min(1, max(2 * low, high))])


def test_the_mean_of_structures_and_dropped_pairs(two: Models) -> None:
    found = compare_two(two)["HD95"]
    spleen = found["spleen"]
    assert (spleen.found.n, spleen.found.dropped, spleen.only_first, spleen.only_second) == (11, 1, 1, 0)
    values = two.values("HD95")
    means = overall_values(values)
    assert means[0, 3] == values[0, 3, 0]  # of the structure that both have
    assert means[0, 4] == pytest.approx(values[0, 4].mean())
    expected = stats.wilcoxon(means[0] - means[1], method="exact")
    assert found[OVERALL].found.wilcoxon_p == pytest.approx(expected.pvalue)
    assert found[OVERALL].found.wilcoxon_holm == found[OVERALL].found.wilcoxon_p
    assert found[OVERALL].found.n == 12
    assert np.isnan(overall_values(np.full((2, 3, 1), math.nan))).all()


def test_the_better_one_follows_the_metric() -> None:
    table = {f"c{number}": {"Dice": [0.9 + number / 100], "HD95": [1 + number / 100]} for number in range(8)}
    worse = {f"c{number}": {"Dice": [0.5 + number / 200], "HD95": [4 + number / 50]} for number in range(8)}
    models = matched({"a": made_evaluation(table), "b": made_evaluation(worse)})
    found = compare_two(models)
    assert [pair.better for rows in found.values() for pair in rows.values()] == ["a", "a"]
    assert OVERALL not in found["Dice"]
    same = compare_two(matched({"a": made_evaluation(table), "b": made_evaluation(table)}))
    assert same["Dice"]["s1"].better == ""


def test_patients_and_settings(two: Models) -> None:
    groups = {case: f"p{int(case[-2:]) // 2}" for case in two.cases}
    found = compare_two(two, groups, PairedSettings("pratt", "bca", resamples=200))
    assert found["Dice"]["liver"].found.units == 6
    assert found["Dice"]["liver"].found.mean.method == "bca"
    assert found["Dice"][OVERALL].found.units == 6


def test_few_cases_are_remarked() -> None:
    models = matched({name: random_evaluation(seed, cases=4) for seed, name in enumerate("ab")})
    found = compare_two(models, settings=PairedSettings(resamples=100))
    sections = comparison_tables.sections(models, found, {})
    assert any("fewer than 6" in text for text in sections[0][3])


def test_three_models_are_ranked() -> None:
    models = matched(
        {
            name: random_evaluation(seed, shift=shift)
            for seed, (name, shift) in enumerate((("a", 0), ("b", 0.1), ("c", -0.2)))
        }
    )
    found = rank_all(models)
    for metric in ("Dice", "HD95"):
        assert list(found[metric]) == [OVERALL, "liver", "spleen"]
        assert list(found[metric]["liver"]) == ["mean", "rank-mean", "test"]
        assert [model for model, _, _ in found[metric][OVERALL]["mean"].ranking.order()] == ["b", "a", "c"]
        scores = found[metric][OVERALL]["mean"].ranking.scores
        assert scores == pytest.approx(models.values(metric).mean(axis=(1, 2)))
    shares = found["Dice"]["liver"]["mean"].stability.frequencies()[1]
    assert shares.sum(axis=1) == pytest.approx([1, 1, 1])
    text = comparison_tables.as_text(models, comparison_tables.sections(models, {}, found), "cases")
    assert "Kendall's tau" in text
    rows = list(csv.DictReader(io.StringIO(comparison_tables.as_csv(models, {}, found))))
    assert len(rows) == 2 * 3 * 3 * 3
    assert rows[0]["model"] == "b"
    content = json.loads(json.dumps(as_json(models, {}, found, "cases", []), allow_nan=False))
    assert content["rankings"]["Dice"]["liver"]["test"]["order"][0]["model"] == "b"
    assert comparison_plots.rank_frequencies(models, {"Dice": found["Dice"]}).startswith(PNG)


def test_all_outputs_name_the_models(two: Models) -> None:
    pairs = compare_two(two)
    sections = comparison_tables.sections(two, pairs, {})
    assert "<base>|$x$" in comparison_tables.as_text(two, sections, "cases")
    markdown = comparison_tables.as_markdown(two, sections, "cases", "nnunet-ext compare a b")
    assert "&lt;base>\\|$x$" in markdown
    assert "nnunet-ext compare a b" in markdown
    html = "".join(comparison_tables.as_html(two, sections, "cases", ""))
    assert "&lt;base&gt;" in html
    assert "<base>" not in html
    rows = list(csv.DictReader(io.StringIO(comparison_tables.as_csv(two, pairs, {}))))
    assert float(rows[0]["difference"]) == pairs["Dice"]["liver"].found.mean.estimate
    assert {row["second"] for row in rows} == {"<base>|$x$"}
    content = json.loads(json.dumps(as_json(two, pairs, {}, "cases", []), allow_nan=False))
    assert content["paired"]["HD95"]["spleen"]["found"]["dropped"] == 1
    assert content["definition"] == "as written"
    assert comparison_plots.differences(two, {"HD95": pairs["HD95"]}).startswith(PNG)


def test_other_conventions_and_definitions_are_refused() -> None:
    one = random_evaluation(1)
    other = replace(random_evaluation(2), convention="transunet")
    with pytest.raises(UserError, match=r"'sound'.*'transunet'"):
        matched({"a": one, "b": other})
    nsd = {**METRICS, "HD95": {**HD95, "unit": "voxels"}}
    with pytest.raises(UserError, match="HD95 is not computed alike: unit mm of a, voxels of b"):
        matched({"a": one, "b": replace(one, metrics=nsd)})
    assert matched({"a": one, "b": replace(one, metrics=nsd)}, ["Dice"]).metrics == ("Dice",)
    with pytest.raises(UserError, match=r"liver \(1\).*liver \(2\)"):
        matched({"a": one, "b": replace(one, structures={"liver": (2,), "spleen": (1,)})})
    with pytest.raises(UserError, match="averages"):
        matched({"a": one, "b": replace(one, averaging="cases")})
    with pytest.raises(UserError, match="--metric NSD"):
        matched({"a": one, "b": one}, ["NSD"])
    with pytest.raises(UserError, match="no metric"):
        matched({"a": one, "b": replace(one, metrics=ML)})
    with pytest.raises(UserError, match="at least two"):
        matched({"a": one})
    assert "differ in words" in matched({"a": one, "b": replace(one, definition="x")}).notices[0]


def test_other_cases_are_refused_or_left_out() -> None:
    one, other = random_evaluation(1), random_evaluation(2)
    fewer = replace(other, cases=other.cases[2:])
    with pytest.raises(UserError, match=r"b lacks 2: case_00, case_01.*--common"):
        matched({"a": one, "b": fewer})
    models = matched({"a": one, "b": fewer}, common=True)
    assert models.cases == [case.case for case in fewer.cases]
    assert "ONLY 10 OF 12 CASES" in models.notices[0]
    with pytest.raises(UserError, match="no case"):
        matched({"a": replace(one, cases=one.cases[:2]), "b": fewer}, common=True)


def test_structures_in_another_order_and_missing_predictions() -> None:
    one = random_evaluation(1)
    turned = replace(one, structures={"spleen": (2,), "liver": (1,)}, cases=one.cases[::-1])
    missing = replace(turned, cases=(replace(turned.cases[0], predicted=None), *turned.cases[1:]))
    models = matched({"a": one, "b": missing})
    assert np.array_equal(models.values("Dice")[0], models.values("Dice")[1])
    assert models.notices == (
        "b has no prediction of 1 cases: case_11; their values are those of the evaluation (--missing)",
    )


def test_nothing_to_rank() -> None:
    empty = made_evaluation({"a": {"Dice": [math.nan], "HD95": [1.0]}})
    with pytest.raises(UserError, match="nothing to rank"):
        rank_all(matched({"a": empty, "b": empty}))


@pytest.mark.parametrize(
    ("places", "names"),
    [
        (["a/evaluation.json", "b/evaluation.json"], ["a", "b"]),
        (["x/a/eval/evaluation.json", "x/b/eval/evaluation.json"], ["a", "b"]),
        (["x/first.json", "x/second.json"], ["first", "second"]),
        (["x/a/one.json", "x/b/one.json", "x/b/two.json"], ["a/one", "b/one", "b/two"]),
    ],
)
def test_names_are_what_differs(places: list[str], names: list[str]) -> None:
    assert distinct_names([Path(place) for place in places]) == names
