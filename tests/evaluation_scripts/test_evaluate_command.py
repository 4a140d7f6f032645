"""`nnunet-ext evaluate`: where things are found and written, what is shown, and its errors."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from evaluated import cube, data_set, label_map, save
from trees import acdc

from nnunet_ext import cli
from nnunet_ext.dataset_conversion.options import Options
from nnunet_ext.dataset_conversion.run import convert
from nnunet_ext.evaluation_scripts import results

ONE, TWO = label_map(cube(1)), label_map(cube(1), cube(2, 5))


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    return data_set(tmp_path, {"a": TWO, "b": TWO, "c": ONE}, {"a": TWO, "b": ONE, "x": ONE})


def run(*arguments: Any) -> int:
    return cli.main(["evaluate", *map(str, arguments), "-np", "1"])


def test_shows_and_writes(folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*folders, "--nnunet-summary") == 0
    shown = capsys.readouterr()
    assert f"Labels: {folders[0].parent / 'dataset.json'}" in shown.err
    for text in (
        "Convention sound: All distances in millimetres.",
        "3 cases, 1 without prediction; structures: front, back",
        "Dice (higher is better)",
        "NSD (tolerance 2 mm; higher is better)",
        "Dice: 1 of 6 values are undefined and left out",
        "1 case has no prediction, counted as empty predictions, or with the convention's penalty: c",
        "1 prediction has no reference, passed over: x",
        "Dice: b (back 0.0000), c (front 0.0000), a (",
    ):
        assert text in shown.out
    output = folders[1] / "evaluation_sound"
    assert f"Files in {output}" in shown.out
    names = {"metrics_per_case.csv", "metrics_wide.csv", "evaluation.json", "summary.md", "summary.json"}
    assert {path.name for path in output.iterdir()} == names | {".cases.jsonl"}
    assert json.loads((output / "summary.json").read_text())["foreground_mean"]["Dice"] == pytest.approx(7 / 12)


def test_files_hold_every_value(folders: tuple[Path, Path]) -> None:
    assert run(*folders, "-o", folders[0].parent / "out") == 0
    output = folders[0].parent / "out"
    with (output / "metrics_per_case.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    assert list(rows[0]) == ["case", "structure", "metric", "value", "unit", "state", "convention"]
    assert len(rows) == 3 * 2 * 4
    found = {(row["case"], row["structure"], row["metric"]): row for row in rows}
    assert (
        found["b", "back", "HD95"] | {"value": "nan", "unit": "mm", "state": "pred_empty"} == found["b", "back", "HD95"]
    )
    assert found["c", "front", "Dice"]["state"] == "missing"
    with (output / "metrics_wide.csv").open() as lines:
        wide = list(csv.DictReader(lines))
    assert [row["front: Dice"] for row in wide] == ["1.0", "1.0", "0.0"]
    content = json.loads((output / "evaluation.json").read_text())
    assert content["summary"]["structures"]["Dice"]["front"]["mean"] == pytest.approx(2 / 3)
    assert content["summary"]["missing"] == ["c"]
    assert content["summary"]["bootstrap"]["seed"] == 0
    assert results.read(output / "evaluation.json").mean("Dice") == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert "| front | 0.6667 |" in (output / "summary.md").read_text()


def test_all_folds_of_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    references, predictions = data_set(tmp_path, {"a": TWO, "b": TWO, "c": ONE}, {"a": TWO, "b": TWO})
    model = tmp_path / "Trainer__Plans__3d_fullres"
    for fold, case in enumerate("ab"):
        folder = model / f"fold_{fold}" / "validation"
        folder.mkdir(parents=True)
        shutil.move(predictions / f"{case}.nii.gz", folder)
        (folder / "summary.json").write_text("nnU-Net's own")
    shutil.move(tmp_path / "dataset.json", model)
    assert run(references, model) == 0
    assert (model / "evaluation_sound" / "evaluation.json").is_file()
    capsys.readouterr()
    assert run(references, model / "fold_1" / "validation", "--convention", "nnunet") == 0
    assert "1 case; structures" in capsys.readouterr().out
    assert run(references, model / "fold_0", model / "fold_1") == 0
    assert "2 cases; structures" in capsys.readouterr().out
    folder = model / "fold_0" / "validation"
    assert run(references, folder, "--nnunet-summary", "-o", folder) == 1
    assert "is not of this command and stays" in capsys.readouterr().err
    assert (folder / "summary.json").read_text() == "nnU-Net's own"


def test_metrics_by_hand(folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*folders, "--metrics", "dice", "nsd@1", "hd95:voxels", "nsd_border", "--tolerance", "3") == 0
    shown = capsys.readouterr().out
    for text in ("NSD 1 mm (higher is better)", "HD95 voxels (voxels; lower is better)", "NSD border 3 mm"):
        assert text in shown
    assert "ASSD" not in shown.partition("Dice (higher")[2]


@pytest.mark.parametrize("raw", [True, False])
def test_phases_of_a_converted_data_set(
    tmp_path: Path, raw: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From conversion.json above the references, or of the data set that --raw names."""
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    report = convert("acdc", [acdc.build(tmp_path / "download").place], Options(check="none", splits=("none",)))
    references = report.folder / "labelsTr"
    if raw:
        references = Path(shutil.copytree(references, tmp_path / "elsewhere" / "labelsTr"))
    shutil.copytree(report.folder / "labelsTr", tmp_path / "predictions")
    more = ["--raw", report.folder.name, "--dataset-json", report.folder] if raw else []
    capsys.readouterr()
    assert run(references, tmp_path / "predictions", "--convention", "acdc", *more) == 0
    shown = capsys.readouterr().out
    assert "ED (4 cases), Dice: RV 1.0000" in shown
    assert "lv_ef: r" in shown
    found = json.loads((tmp_path / "predictions" / "evaluation_acdc" / "evaluation.json").read_text())
    assert (
        found["summary"]["bootstrap"] | {"units": 4, "resampled": "patients by conversion.json"}
        == (found["summary"]["bootstrap"])
    )


def test_html(folders: tuple[Path, Path]) -> None:
    assert run(*folders, "--html", "--groups", "(.)") == 0
    assert "<html" in (folders[1] / "evaluation_sound" / "report.html").read_text()


def test_a_second_run_computes_nothing(folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from nnunet_ext.evaluation_scripts import evaluating

    assert run(*folders) == 0
    before = (folders[1] / "evaluation_sound" / "metrics_per_case.csv").read_bytes()
    monkeypatch.setattr(evaluating, "evaluate_case", None)
    assert run(*folders) == 0
    assert (folders[1] / "evaluation_sound" / "metrics_per_case.csv").read_bytes() == before
    with pytest.raises(TypeError):
        run(*folders, "--force")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--missing", "error"], "1 of 3 cases have no prediction: c"),
        (["-o", "labelsTr/out"], "nothing is written to the references' folder"),
        (["-o", "dataset.json"], "is a file: state a folder"),
        (["--dataset-json", "none.json"], "--dataset-json none.json: no such file"),
        (["--groups", "("], "no regular expression"),
        (["--groups", "a"], "does not match the case b"),
        (["--metrics", "dise"], "no such metric"),
        (["--convention", "lits", "--raw", "none"], "no data set 'none'"),
        (["--convention", "flare22"], "FLARE22 has 13 organs"),
    ],
)
def test_errors(
    folders: tuple[Path, Path],
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(folders[0].parent)
    assert run("labelsTr", "predictions", *arguments) == 1
    shown = capsys.readouterr()
    assert message in shown.err
    assert not shown.out


def test_dataset_json_is_missing_or_none(folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    described = folders[0].parent / "dataset.json"
    described.write_text(json.dumps({"labels": {"0": "background", "1": "front"}}))
    assert run(*folders) == 1
    assert f'{described}: "labels" must be names with a number' in capsys.readouterr().err
    described.unlink()
    assert run(*folders) == 1
    assert "by --dataset-json" in capsys.readouterr().err


def test_no_case(folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    for path in folders[1].iterdir():
        path.unlink()
    assert run(*folders) == 1
    assert "no label maps (predictions) there" in capsys.readouterr().err
    save(folders[1] / "other.nii.gz", ONE)
    assert run(*folders) == 1
    assert "no case is in both folders: 3 references" in capsys.readouterr().err


def test_conventions_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["evaluate", "--list"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert "unetrpp-synapse\n  Dice 1 if both masks are empty" in shown
    assert "hd95_pooled, hd95: 95th percentile" in shown
