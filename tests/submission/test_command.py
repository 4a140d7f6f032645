"""The command line: what it prints, writes and returns."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import converted
import pytest
from container_models import stub

from nnunet_ext.cli import main
from nnunet_ext.submission import submitting
from nnunet_ext.submission.servers import names

ED = converted.Made("patient101_frame01", group="patient101", details={"phase": "ED"})


def test_submit_and_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = converted.complete(tmp_path, "btcv")
    out, report = tmp_path / "out", tmp_path / "said.json"
    words = ["submit", "btcv", str(made.predictions), "--raw", str(made.raw), "-o", str(out), "--json", str(report)]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "organ 13" in printed
    assert "20 of 20" in printed
    assert "sha256" in printed
    assert json.loads(report.read_text())["complete"]
    assert main(["submit", "check", f"{out}.zip", "--raw", str(made.raw), "--json", str(report)]) == 0
    assert "nothing wrong" in capsys.readouterr().out
    assert json.loads(report.read_text())["problems"] == []
    (out / "label0061.nii.gz").unlink()
    assert main(["submit", "check", str(out)]) == 1
    assert "missing     label0061.nii.gz" in capsys.readouterr().out


def test_refusal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = converted.complete(tmp_path, "btcv")
    (made.predictions / "img0061.nii.gz").unlink()
    words = ["submit", "btcv", str(made.predictions), "--raw", str(made.raw), "-o", str(tmp_path / "out")]
    report = tmp_path / "said.json"
    assert main([*words, "--json", str(report)]) == 1
    said = capsys.readouterr().err
    assert "refused, nothing was written" in said
    assert "label0061.nii.gz: no prediction img0061.nii.gz" in said
    assert [problem["kind"] for problem in json.loads(report.read_text())["refused"]] == ["missing"]
    assert main([*words, "--allow-incomplete"]) == 0
    assert "INCOMPLETE: 1 missing" in capsys.readouterr().err
    assert main(words) == 1
    assert "--overwrite" in capsys.readouterr().err


def test_arguments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["submit", "acdc", str(tmp_path), "-o", str(tmp_path / "out")]) == 1
    assert "--raw is missing" in capsys.readouterr().err
    assert main(["submit", "msd", "a", "b", "--raw", "c", "-o", str(tmp_path / "out")]) == 1
    assert "2 folder(s) of predictions and 1 --raw" in capsys.readouterr().err
    words = ["submit", "amos_ct", "a", "--container", str(tmp_path), "-o", str(tmp_path / "out")]
    assert main(words) == 1
    assert "instead of PREDICTIONS" in capsys.readouterr().err


def test_report_is_refused_before_anything_is_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    for place in (
        out.with_name("out.zip"),
        out.with_name("out.report.json"),
        out / "a.json",
        tmp_path,
        tmp_path / "x/y",
    ):
        assert main(["submit", "acdc", "nowhere", "--raw", "nothing", "-o", str(out), "--json", str(place)]) == 1
        assert "--json" in capsys.readouterr().err
    for place in (tmp_path / "a.json", tmp_path.with_name(f"{tmp_path.name}.report.json")):
        assert main(["submit", "check", str(tmp_path), "--json", str(place)]) == 1
        assert "--json" in capsys.readouterr().err
        assert not place.exists()


def test_report_of_a_container(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, report = stub(tmp_path, 15), tmp_path / "said.json"
    words = ["submit", "amos_ct", "--container", str(model), "-o", str(tmp_path / "box"), "--json", str(report)]
    assert main(words) == 0
    assert json.loads(report.read_text())["container"] == str(tmp_path / "box")
    capsys.readouterr()


@pytest.mark.parametrize("option", [["--folds", "0"], ["--light"], ["--checkpoint", "x.pth"]])
def test_options_of_containers_alone(tmp_path: Path, option: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["submit", "amos_ct", "a", "--raw", "b", "-o", str(tmp_path / "out"), *option]) == 1
    assert f"{option[0]} belongs to --container" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["file/a/b", "x" * 240, "."])
def test_places_that_cannot_be_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    made = converted.data_set(tmp_path, "acdc", "Dataset027_ACDC", [ED], range(4))
    (tmp_path / "file").write_text("")
    words = ["submit", "acdc", str(made.predictions), "--raw", str(made.raw), "-o", place, "--allow-incomplete"]
    assert main(words) == 1
    assert capsys.readouterr().err.startswith("nnunet-ext: ")


def test_interrupt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    made = converted.data_set(tmp_path, "acdc", "Dataset027_ACDC", [ED], range(4))
    monkeypatch.setattr(submitting, "write_zip", interrupt)
    words = ["submit", "acdc", str(made.predictions), "--raw", str(made.raw), "-o", str(tmp_path / "out")]
    assert main([*words, "--allow-incomplete"]) == 130
    assert not list(tmp_path.glob("*out*"))
    assert "interrupted" in capsys.readouterr().err


@pytest.mark.parametrize("name", [*names(), "check"])
def test_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["submit", name, "--help"])
    assert caught.value.code == 0
    assert "--json" in capsys.readouterr().out


def test_import_stays_light() -> None:
    code = (
        "import sys, argparse, nnunet_ext.submission, nnunet_ext.submission.command as c;"
        "c.add_arguments(argparse.ArgumentParser());"
        "print([m for m in ('numpy', 'nibabel', 'torch', 'nnunetv2') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
