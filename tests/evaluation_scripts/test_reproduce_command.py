"""``nnunet-ext reproduce``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from published_case import write_data_set, write_maps

from nnunet_ext.cli import main
from nnunet_ext.evaluation_scripts.papers import PAPERS
from nnunet_ext.evaluation_scripts.results import read

ALL = dict.fromkeys(range(1, 14), 10)
IDS = PAPERS["unetrpp-synapse"].case_ids()


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    write_data_set(tmp_path / "raw" / "Dataset802_Synapse", dict.fromkeys(IDS, ALL))
    write_maps(tmp_path / "model" / "fold_0" / "validation", {case: {**ALL, 8: 20} for case in IDS})
    return tmp_path


def test_the_validation_folder_of_a_fold(places: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--predictions", str(places / "model" / "fold_0"), "--raw", "802", "-o", str(places / "out")]
    assert main(["reproduce", "unetrpp-synapse", *arguments]) == 0
    out = capsys.readouterr().out
    assert "Evaluated here: 12; the paper's: 12." in out
    assert "!!!" not in out
    row = next(line.split() for line in out.splitlines() if line.startswith("Aor "))
    assert row[-4:] == ["92.52", "66.67", "-25.85", "12"]
    found = json.loads((places / "out" / "reproduction.json").read_text())
    assert found["n"] == [12] * 10
    assert found["values"][-1] == pytest.approx(100 * (7 + 2 / 3) / 8)
    assert found["values"][-2] == pytest.approx(8.55 / 8)
    assert found["command"][0] == "nnunet-ext"
    assert (places / "out" / "reproduction.md").read_text().startswith("# UNETR++ on Synapse")
    assert (places / "out" / "reproduction.csv").exists()
    assert read(places / "out" / "evaluation.json").convention == "unetrpp-synapse"


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        main(["reproduce", "--list"])
    assert not error.value.code
    out = capsys.readouterr().out
    assert all(f"{key}\n" in out for key in PAPERS)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--references DIR, or --raw"),
        (["--references", "x", "--raw", "802"], "one of them"),
        (["--raw", "803"], "no data set '803'"),
        (["--references", "LABELS", "-o", "LABELS/out"], "references' folder"),
        (["--references", "LABELS", "-o", "LABELS/../dataset.json"], "is a file"),
        (["--references", "LABELS", "--dataset-json", "nowhere.json"], "no such file"),
    ],
)
def test_what_cannot_be(places: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str) -> None:
    labels = str(places / "raw" / "Dataset802_Synapse" / "labelsTr")
    given = [argument.replace("LABELS", labels) for argument in arguments]
    assert main(["reproduce", "unetrpp-synapse", "--predictions", str(places / "model"), *given]) == 1
    assert said in capsys.readouterr().err


def test_raw_without_labels(places: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (places / "raw" / "Dataset804_Empty" / "labelsTr").mkdir(parents=True)
    assert main(["reproduce", "unetrpp-synapse", "--predictions", str(places / "model"), "--raw", "804"]) == 1
    assert "no reference" in capsys.readouterr().err


def test_unknown_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", "unetr", "--predictions", "x", "--raw", "802"]) == 1
    assert "ossnet-lits" in capsys.readouterr().err
