from __future__ import annotations

import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from made_evaluations import METRICS, ML, made_evaluation, random_evaluation, write_nifti

from nnunet_ext.errors import UserError
from nnunet_ext.evaluation_scripts import report_html
from nnunet_ext.evaluation_scripts.bootstrap import bootstrap
from nnunet_ext.evaluation_scripts.report_html import ReportOptions, write_report
from nnunet_ext.evaluation_scripts.report_numbers import case_means, cases_to_draw, title_of
from nnunet_ext.evaluation_scripts.report_plots import boxes
from nnunet_ext.evaluation_scripts.results import CaseResult, Evaluation

VOID = {"meta", "img", "br", "source"}


class Page(HTMLParser):
    """Checks that elements are closed, and gathers text and images."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            self.images.append(dict(attrs))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def _on_disk(folder: Path) -> Evaluation:
    """Two cases with files, one without prediction; a structure's name is markup."""
    structures = {"<b>liver</b> & co": (1,), "spleen": (2,)}
    table = {
        f"case_{number}": {
            "Dice": [0.9 - 0.2 * number, 0.8],
            "HD95": [1.5, math.nan if number else 3.25],
            "reference_ml": [10.0 + number, 5.0],
            "predicted_ml": [11.0, 4.0 - number],
        }
        for number in range(3)
    }
    evaluation = made_evaluation(table, structures, {**METRICS, **ML}, versions={"nnunet_ext": "9.9"})
    labels = np.zeros((12, 14, 6), np.uint8)
    labels[2:8, 3:9, 1:4] = 1
    labels[9:11, 3:9, 1:4] = 2
    cases: list[CaseResult] = []
    for case in evaluation.cases:
        paths = [
            str(write_nifti(folder / name / f"{case.case}.nii.gz", np.roll(labels, shift, 0), np.eye(4)))
            for name, shift in (("r", 0), ("p", 1))
        ]
        cases.append(replace(case, reference=paths[0], predicted=None if case.case == "case_2" else paths[1]))
        write_nifti(folder / "images" / f"{case.case}_0000.nii.gz", labels.astype(np.float32), np.eye(4))
    return replace(evaluation, cases=tuple(cases), notices=("<i>something</i> happened",))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Evaluation]:
    folder = tmp_path_factory.mktemp("report")
    evaluation = _on_disk(folder)
    path = write_report(evaluation, folder / "new", folder / "images", ReportOptions(title="Model <A>"))
    assert path == folder / "new" / "report.html"
    assert [one.name for one in path.parent.iterdir()] == ["report.html"]
    return path.read_text(encoding="utf-8"), evaluation


def test_everything_is_said(written: tuple[str, Evaluation]) -> None:
    text, evaluation = written
    page = Page(text)
    for words in (
        "Model <A>",
        "Convention: sound",
        "as written",
        "<b>liver</b> & co",
        "spleen",
        "HD95, mm",
        "lower is better",
        "3 cases, 1 not predicted",
        "1 cases have no prediction: case_2",
        "<i>something</i> happened",
        "n 1, 2 excluded",
        "all structures",
        "Worst cases by Dice",
        "patient's right",
        "nnunet_ext 9.9",
        "r (Pearson)",
    ):
        assert words in page.text
    assert page.text.index("Convention: sound") < page.text.index("Summary") < page.text.index("Worst cases")
    interval = bootstrap(evaluation.table("Dice")[:, 0])
    assert f"0.7000 {interval.lower:.4f} to {interval.upper:.4f} n 3" in page.text


def test_it_needs_nothing_else(written: tuple[str, Evaluation]) -> None:
    text = re.sub(r"base64,[^\"]+", "", written[0])
    assert not re.search(r"https?:|//[a-z]|<script|<link|url\(|@import", text)
    assert set(re.findall(r'(?:src|srcset)="([^"]{10})', text)) == {"data:image"}
    assert "width=device-width" in text
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text
    assert "<b>liver" not in text
    assert "<i>something" not in text


def test_every_picture_has_words(written: tuple[str, Evaluation]) -> None:
    images = Page(written[0]).images
    assert len(images) == 2 + 1 + 2 * 3  # Dice and HD95, volumes, three planes of two cases
    assert all(image["alt"] for image in images)
    assert "case_1, axial, slice" in (images[3]["alt"] or "")  # the worse of the two that were predicted
    assert "<b>liver</b> & co 0.7000" in (images[0]["alt"] or "")


def test_the_same_values_make_the_same_plot() -> None:
    values = {"liver": np.array([0.1, 0.5, 0.7, math.nan])}
    assert boxes(values, "Dice") == boxes(values, "Dice")


def test_files_that_are_gone_are_named() -> None:
    text = report_html.report(replace(random_evaluation(0), metrics={"Dice": METRICS["Dice"]}), ReportOptions(worst=1))
    assert "Not drawn" in text
    assert "references/case_" in text
    assert "axial" not in text


def test_one_case_and_none() -> None:
    one = made_evaluation({"a": {"Dice": [0.5], "HD95": [math.inf]}})
    text = Page(report_html.report(one, ReportOptions(worst=0))).text
    assert "1 case;" in text
    assert "no interval" in text
    assert "inf no interval n 1" in text
    assert "1 infinite values are not drawn" in text
    with pytest.raises(UserError, match="no cases"):
        report_html.report(replace(one, cases=()), ReportOptions())


def test_cases_to_draw() -> None:
    table = {name: {"Dice": [value, value]} for name, value in (("a", 0.5), ("b", 0.2), ("c", 0.9), ("d", math.nan))}
    dice = {"Dice": METRICS["Dice"]}
    evaluation = made_evaluation(table, metrics=dice)
    assert cases_to_draw(evaluation, 2) == [1, 0]
    lower = made_evaluation(table, metrics={"Dice": METRICS["HD95"]})
    assert cases_to_draw(lower, 9) == [2, 0, 1]
    cases = (replace(evaluation.cases[1], predicted=None), evaluation.cases[0])
    assert cases_to_draw(replace(evaluation, cases=cases), 9) == [1]


def test_patients_are_resampled_as_a_whole() -> None:
    evaluation = replace(random_evaluation(0), metrics={"Dice": METRICS["Dice"]})
    patients = {case.case: case.case[:-1] for case in evaluation.cases}
    options = ReportOptions(worst=0, patients=patients, resampled="patients by <name>")
    text = Page(report_html.report(evaluation, options)).text
    interval = bootstrap(evaluation.table("Dice")[:, 0], list(patients.values()))
    assert f"{interval.lower:.4f} to {interval.upper:.4f} n 12" in text
    assert "10000 resamples of patients by <name>, seed 0" in text


def test_numbers_of_the_whole_set() -> None:
    evaluation = replace(random_evaluation(0), metrics={"Dice": METRICS["Dice"]}, extra={"lits": {"Dice global": 0.5}})
    assert "Of the whole set Dice global: 0.5000" in Page(report_html.report(evaluation, ReportOptions(worst=0))).text


def test_means_and_titles() -> None:
    table = {"a": {"Dice": [1.0, math.nan]}, "b": {"Dice": [0.0, 0.5]}, "c": {"Dice": [math.nan, math.nan]}}
    means = case_means(made_evaluation(table, metrics={"Dice": METRICS["Dice"]}), "Dice")
    assert means[:2].tolist() == [1.0, 0.25]
    assert math.isnan(means[2])
    assert title_of("NSD", {"unit": "", "tolerance": 2.0}) == "NSD at 2 mm"
    assert title_of("nsd@2", {"unit": "", "tolerance": 2.0}) == "nsd@2"
    assert title_of("NSD", {"unit": "", "tolerance": {"liver": 5.0}}) == "NSD, tolerance by structure"
    assert title_of("HD95", METRICS["HD95"]) == "HD95, mm"
