"""The verb: what it prints, writes and returns."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_bodies import Body, affine, scanner
from made_pools import made_pool, spoil, write_case

from nnunet_ext.cli import main
from nnunet_ext.pretraining import embedding_training, landmark_report, preparing
from nnunet_ext.pretraining.cases import Pool
from nnunet_ext.pretraining.embedding_file import EmbeddingFile, new_network
from nnunet_ext.pretraining.embedding_quality import Quality
from nnunet_ext.pretraining.embedding_settings import settings_for
from nnunet_ext.pretraining.embedding_training import Trained
from nnunet_ext.pretraining.landmarks import LandmarkTable

Run = Callable[..., int]


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    patients = {"a": (Body(), scanner()), "b": (Body(affine((1.05, 1, 1.05), (5, 5, 5))), scanner((60, 40, 56)))}
    return made_pool(tmp_path, patients)


@pytest.fixture
def run(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the verb on the made pool, or another one; pictures have one row."""
    monkeypatch.setattr(landmark_report, "PAIRS", 1)

    def run(*arguments: str, on: Pool = pool) -> int:
        monkeypatch.setattr(preparing, "open_pool", lambda *_, **__: on)
        return main(["correspond", "-d", "1", "-np", "1", "--points", "12", *arguments])

    return run


def test_table_report_and_picture(run: Run, pool: Pool, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--kind", "bodybox", "--reference", "a") == 0
    told = capsys.readouterr().out
    assert "reference  a" in told
    assert "% of the points (threshold 0.3)" in told
    table = LandmarkTable.load(pool.folder / "landmarks_bodybox.npz")
    assert table.points.shape == (2, 12, 3)
    assert (pool.folder / "landmarks_bodybox.png").read_bytes().startswith(b"\x89PNG")
    report = json.loads((pool.folder / "landmarks_bodybox.json").read_text())
    assert report["acceptance"] == pytest.approx(table.acceptance(), abs=1e-4)
    assert report["cases"]["b"]["accepted"] == table.accepted[1].sum()
    assert run("--kind", "bodybox", "--reference", "a") == 0
    assert "1 case(s) were finished by an earlier run" in capsys.readouterr().out


def test_auto_of_two_cases_is_overlap(run: Run, pool: Pool, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--json") == 0
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert report["kind"] == "overlap"
    assert report["acceptance"] == 1
    assert (pool.folder / "landmarks_overlap.png").is_file()


def test_failing_cases_are_named_and_the_exit_code_tells(
    run: Run, pool: Pool, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(pool.cases[1])
    assert run("--kind", "overlap") == 1
    told = capsys.readouterr()
    assert "failed  b: cannot read the preprocessed" in told.err
    assert "overlap    only for 1 case(s):" in told.out
    unprepared = replace(pool, cases=pool.cases[:1], left_out=(("z", "no image"),))
    assert run("--kind", "overlap", on=unprepared) == 1
    assert "failed  z: no image" in capsys.readouterr().err


def test_little_acceptance_advises_overlap(
    run: Run, pool: Pool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    noise = np.random.default_rng(0).normal(size=(56, 36, 52)).astype(np.float32)
    other = replace(pool, cases=(pool.cases[0], write_case(tmp_path / "cases", "n", noise, scanner())))
    assert run("--kind", "bodybox", "--reference", "a", on=other) == 0
    assert "Use --kind overlap" in capsys.readouterr().err
    assert not (pool.folder / "landmarks_bodybox.png").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--kind", "affine", "--weights", "SAM.pth"), "are for --kind embedding, not for affine"),
        (("--kind", "embedding"), "--train-embedding to train one"),
        (("--kind", "embedding", "--weights", "none.pth"), "there is no such file"),
        (("--seed", "-1"), "--seed must be at least 0"),
    ],
)
def test_what_cannot_work_is_said(
    arguments: tuple[str, ...], words: str, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments) == 1
    assert words in capsys.readouterr().err


def test_an_interrupted_embedding_is_not_used(run: Run, pool: Pool, capsys: pytest.CaptureFixture[str]) -> None:
    settings = settings_for(pool, spacing=4.0, features=(4, 8, 8, 8), fine=8, coarse=8)
    weights = dict(new_network(settings).state_dict())
    pool.folder.mkdir()
    EmbeddingFile(settings, weights, 3, 5, 7, ("a",), (), {}).write(pool.folder / "embedding.pth")
    assert run("--kind", "embedding") == 1
    assert "go on with --train-embedding 5 --seed 7" in capsys.readouterr().err
    assert run() == 0
    told = capsys.readouterr()
    assert "kind       overlap" in told.out
    assert "not used:" in told.err
    EmbeddingFile(settings, weights, 5, 5, 7, ("a",), (), {}).write(pool.folder / "embedding.pth")
    assert run("--reference", "a") == 0
    assert "kind       embedding" in capsys.readouterr().out


def test_the_quality_of_a_trained_embedding_is_told(
    run: Run, pool: Pool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = settings_for(pool, spacing=4.0, features=(4, 8, 8, 8), fine=8, coarse=8)
    quality = Quality(200, 30.0, 0.1, 8.0, 24.0, 2.0, 0.8, False)

    def train(_: Pool, file: Path, *__: Any, **___: Any) -> Trained:
        content = EmbeddingFile(settings, dict(new_network(settings).state_dict()), 5, 5, 0, ("a",), (), {})
        file.parent.mkdir()
        replace(content, quality=quality.as_dict()).write(file)
        return Trained(file, quality, ())

    monkeypatch.setattr(embedding_training, "train", train)
    assert run("--kind", "embedding", "--train-embedding", "5", "--reference", "a") == 0
    told = capsys.readouterr()
    assert "median error 30.0 mm" in told.err
    assert "don't use this embedding" in told.err
    assert "(threshold 0.8: 80 % of the embedding's scores" in told.out
    assert run("--kind", "embedding", "--threshold", "1", "--reference", "a") == 0
    told = capsys.readouterr()
    assert "(threshold 1)" in told.out
    assert "if the picture is good, lower --threshold" in told.err
    assert "don't use this embedding" in told.err
    assert run() == 0
    told = capsys.readouterr()
    assert "kind       overlap" in told.out
    assert "not used: " in told.err
