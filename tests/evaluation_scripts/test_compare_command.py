from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from made_evaluations import random_evaluation

from nnunet_ext.cli import main
from nnunet_ext.evaluation_scripts.results import Evaluation, as_json


def _write(folder: Path, evaluation: Evaluation) -> Path:
    folder.mkdir(parents=True)
    (folder / "evaluation.json").write_text(json.dumps({**as_json(evaluation), "summary": {}}))
    return folder


def test_two_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = _write(tmp_path / "one", random_evaluation(1, shift=0.05))
    other = _write(tmp_path / "other" / "evaluation_sound", random_evaluation(2, holes=True))
    output = tmp_path / "new" / "folder"
    models = [str(one), str(other.parent), "--names", "one", "other"]
    assert main(["compare", *models, "--metric", "HD95", "-o", str(output), "--html"]) == 0
    printed = capsys.readouterr()
    assert "Differences: one less other, convention sound, 12 cases" in printed.out
    assert "HD95 (mm; lower is better)" in printed.out
    assert "Dice" not in printed.out
    assert "spleen: 1 dropped cases have a value of one alone" in printed.out
    assert "comparison.html" in printed.out
    assert sorted(path.name for path in output.iterdir()) == [
        f"comparison.{ending}" for ending in ("csv", "html", "json", "md", "png")
    ]
    content = json.loads((output / "comparison.json").read_text())
    assert content["models"] == ["one", "other"]
    assert content["command"][0] == "nnunet-ext"
    page = (output / "comparison.html").read_text()
    assert "http:" not in page
    assert "data:image/png" in page


def test_three_models_without_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    places = [str(_write(tmp_path / name, random_evaluation(seed))) for seed, name in enumerate("abc")]
    assert main(["compare", *places, "--groups", r"case_(\d)", "--metric", "Dice"]) == 0
    printed = capsys.readouterr().out
    assert "Ranking of 3 models" in printed
    assert "patients by --groups" in printed
    assert "Files" not in printed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"]


def test_what_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluation = random_evaluation(1)
    one = str(_write(tmp_path / "one", evaluation))
    few = str(_write(tmp_path / "few", replace(evaluation, cases=evaluation.cases[1:])))
    other = str(_write(tmp_path / "lits", replace(evaluation, convention="lits")))
    (tmp_path / "one" / "bad.json").write_text("{}")
    (tmp_path / "none").mkdir()
    _write(tmp_path / "several" / "x", evaluation)
    _write(tmp_path / "several" / "y", evaluation)
    for arguments, words in (
        ([one, few], "few lacks 1: case_00"),
        ([one, other], "'sound', lits by 'lits'"),
        ([one], "at least two"),
        ([one, one], "given twice"),
        ([one, str(tmp_path / "none")], "no evaluation.json there"),
        ([one, str(tmp_path / "several")], "holds 2 evaluations"),
        ([one, str(tmp_path / "one" / "bad.json")], "not a result"),
        ([one, few, "--common", "--html"], "-o DIR"),
        ([one, few, "--names", "x"], "2 different names"),
        ([one, few, "--common", "--groups", "("], "no regular expression"),
        ([one, few, "--common", "-o", f"{one}/bad.json"], "cannot write"),
    ):
        assert main(["compare", *arguments]) == 1
        assert words in capsys.readouterr().err


def test_common_cases_are_said_loudly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluation = random_evaluation(1)
    one = str(_write(tmp_path / "one", evaluation))
    few = str(_write(tmp_path / "few", replace(evaluation, cases=evaluation.cases[1:])))
    assert main(["compare", one, few, "--common", "--metric", "Dice", "--bca", "--pratt"]) == 0
    assert "ONLY 11 OF 12 CASES ARE COMPARED" in capsys.readouterr().err
