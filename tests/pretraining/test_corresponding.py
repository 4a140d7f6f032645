"""Landmark tables of made-up patients whose true correspondences are known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK
from made_bodies import Body, affine, scanner
from made_pools import ORIENTATIONS, made_pool, plans_of, spoil, write_case

from nnunet_ext.errors import UserError
from nnunet_ext.inference.case_pool import work_on
from nnunet_ext.pretraining import case_matching, corresponding
from nnunet_ext.pretraining.case_volumes import Looking
from nnunet_ext.pretraining.cases import Pool
from nnunet_ext.pretraining.corresponding import auto_kind, make_table
from nnunet_ext.pretraining.embedding_file import EmbeddingFile, new_network
from nnunet_ext.pretraining.embedding_settings import settings_for
from nnunet_ext.pretraining.frames import Frame, apply
from nnunet_ext.pretraining.landmark_assembly import Options
from nnunet_ext.pretraining.landmark_report import lines
from nnunet_ext.pretraining.landmarks import LandmarkTable, table_path

SCALED = affine((1.1, 0.92, 1.06), (18, -10, 22))
TURNED = affine((1.08, 0.95, 1.03), (-15, 8, 12), degrees=7, shear=0.04)
PATIENTS = {
    "a": (Body(), scanner()),
    "b": (Body(SCALED), scanner((60, 42, 60), 4.0, (18, -10, 22))),
    "c": (Body(TURNED), scanner((60, 42, 58), 4.0, (-15, 8, 12))),
}


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    return made_pool(tmp_path_factory.mktemp("made"), PATIENTS)


def errors(table: LandmarkTable, name: str) -> np.ndarray:
    """Mm between the accepted points of a case and where the reference's really are."""
    row, reference = table.cases.index(name), table.cases.index(table.definition["reference"])
    ours, theirs = PATIENTS[name][0].matrix, PATIENTS[table.cases[reference]][0].matrix
    truth = apply(ours @ np.linalg.inv(theirs), table.points[reference])
    return np.linalg.norm(table.points[row] - truth, axis=1)[table.accepted[row]]


@pytest.mark.parametrize(("kind", "other"), [("bodybox", "b"), ("affine", "c")])
def test_known_transforms_are_found_within_a_voxel(kind: str, other: str, pool: Pool, tmp_path: Path) -> None:
    two = replace(pool, cases=tuple(case for case in pool.cases if case.name in ("a", other)), folder=tmp_path)
    found = make_table(two, Options(kind, points=32, reference="a"))
    assert found.table.cases == ("a", other)
    assert found.table.acceptance() > 0.9
    assert np.median(errors(found.table, other)) < 2.0
    assert np.quantile(errors(found.table, other), 0.9) < 4.0
    stored = LandmarkTable.load(table_path(tmp_path, kind))
    np.testing.assert_array_equal(stored.points, found.table.points)
    assert stored.definition == found.table.definition


@pytest.mark.parametrize("kind", ["overlap", "bodybox", "affine"])
def test_the_orientation_of_the_files_changes_nothing(kind: str, tmp_path: Path) -> None:
    """The original's pairs were mirrored: images in RAS, embeddings in LPS (specification alice 6.2.2)."""
    patients = {name: PATIENTS[name] for name in ("a", "b")}
    tables = {
        name: make_table(made_pool(tmp_path / name, patients, name), Options(kind, points=6)).table
        for name in ORIENTATIONS
    }
    for table in tables.values():
        np.testing.assert_array_equal(table.accepted, tables["LPS"].accepted)
        np.testing.assert_allclose(table.points, tables["LPS"].points, atol=0.05 if kind == "affine" else 1e-3)


def test_overlap_points_are_exact_and_in_the_body(pool: Pool) -> None:
    table = make_table(pool, Options("overlap", points=40)).table
    assert table.same_volume
    assert table.accepted.all()
    for row, (name, (body, frame)) in enumerate(PATIENTS.items()):
        assert table.cases[row] == name
        index = frame.to_index(table.points[row])
        np.testing.assert_allclose(frame.to_index(frame.to_lps(index)), index, atol=1e-3)
        assert frame.holds(table.points[row]).all()
        assert np.mean(body.values(table.points[row]) > 0.3) > 0.95
    drawn = table.draw(np.random.default_rng(0), 1)
    assert drawn is not None
    assert drawn[0] == 1
    np.testing.assert_array_equal(PATIENTS["b"][1].to_index(drawn[1]), PATIENTS["b"][1].to_index(drawn[2]))


def test_the_middle_body_is_the_reference(pool: Pool) -> None:
    assert make_table(pool, Options("bodybox", points=4)).table.definition["reference"] == "c"


def test_what_is_finished_is_not_done_again(pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    again = replace(pool, folder=tmp_path)
    first = make_table(again, Options("bodybox", points=8, reference="a"))
    assert first.earlier == 0

    def never(*_: Any) -> None:
        raise AssertionError("worked on again")

    with monkeypatch.context() as patched:
        patched.setattr(case_matching, "correlate", never)
        second = make_table(again, Options("bodybox", points=8, reference="a", threshold=0.9))
    assert second.earlier == 2
    np.testing.assert_array_equal(second.table.points, first.table.points)
    assert second.table.accepted.sum() <= first.table.accepted.sum()
    (tmp_path / "correspondences" / "bodybox" / "b.npz").write_bytes(b"broken")
    assert make_table(again, Options("bodybox", points=8, reference="a")).earlier == 1
    assert make_table(again, Options("bodybox", points=8, reference="b")).earlier == 0


def test_cases_that_fail_are_named_and_the_rest_goes_on(tmp_path: Path) -> None:
    pool = made_pool(tmp_path, PATIENTS)
    spoil(pool.cases[2])
    (pool.cases[1].folder / "b.pkl").write_bytes(b"broken")
    found = make_table(pool, Options("overlap", points=5))
    assert set(found.failed) == {"b", "c"}
    assert found.table.accepted.any(axis=1).tolist() == [True, False, False]
    with pytest.raises(UserError, match="--reference c cannot be used: cannot read"):
        make_table(pool, Options("affine", points=5, reference="c"))


def test_noise_is_not_accepted(pool: Pool, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).normal(size=(56, 36, 52)).astype(np.float32)
    noisy = write_case(tmp_path / "cases", "n", noise, scanner())
    found = make_table(
        replace(pool, cases=(*pool.cases[:1], noisy), folder=tmp_path), Options("affine", 16, reference="a")
    )
    assert found.table.acceptance() < 0.2


def test_bodies_of_another_size_are_not_compared(pool: Pool, tmp_path: Path) -> None:
    spot = np.zeros((56, 36, 52), np.float32)
    spot[20:26, 12:18, 12:18] = 1
    small = write_case(tmp_path / "cases", "n", spot, scanner())
    found = make_table(
        replace(pool, cases=(*pool.cases[:1], small), folder=tmp_path), Options("bodybox", 16, reference="a")
    )
    assert not found.table.accepted[1].any()
    assert found.restricted == {"n": "by bodybox, one body is over 2.5 times the other"}


def test_auto(pool: Pool, tmp_path: Path) -> None:
    assert auto_kind(pool, embedding=True) == "embedding"
    assert auto_kind(pool, embedding=False) == "overlap"
    assert auto_kind(replace(pool, cases=pool.cases * 3), embedding=False) == "affine"
    small: Frame = scanner((35, 50, 35), 1.0)
    crops = made_pool(tmp_path, {str(i): (Body(blobs=5), small) for i in range(8)})
    assert auto_kind(crops, embedding=False) == "bodybox"
    table = make_table(crops, Options("bodybox", points=4)).table
    assert table.definition["extent"] == "image"
    assert table.definition["scale"]["grid"] == 1.0


def embedding(pool: Pool, file: Path, seed: int = 0, quality: dict[str, Any] | None = None) -> Path:
    """The file of a small untrained network."""
    settings = settings_for(pool, spacing=4.0, features=(4, 8, 8, 8), fine=8, coarse=8)
    weights = dict(new_network(settings, seed).state_dict())
    EmbeddingFile(settings, weights, 1, 1, seed, ("a",), (), {}, quality or {}).write(file)
    return file


def test_an_embedding_matches_too(tmp_path: Path) -> None:
    """Even an untrained network finds the same places in the same image that lies elsewhere."""
    shift = (21.0, -13.0, 37.0)
    patients = {
        "a": (Body(), scanner((48, 32, 48))),
        "b": (Body(affine((1, 1, 1), shift)), scanner((48, 32, 48), 4.0, shift)),
    }
    pool = made_pool(tmp_path, patients)
    file = embedding(pool, tmp_path / "embedding.pth")
    options = Options("embedding", points=24, reference="a", threshold=0.5, weights=file)
    found = make_table(pool, options)
    table = found.table
    assert table.definition["cycle_mm"] == pytest.approx(15)  # of images of 192 mm; 20 mm from 256 mm on
    assert table.definition["threshold_from"] == "given"
    assert table.acceptance() == 1
    assert table.median_score() > 0.99
    assert np.abs(table.points[1] - table.points[0] - np.array(shift)).max() < 4.01  # half a cell
    again = make_table(pool, replace(options, threshold=None))
    assert again.earlier == 1
    assert (again.table.definition["threshold"], again.table.definition["threshold_from"]) == (0.7, "default")


def test_an_embedding_brings_its_threshold(pool: Pool, tmp_path: Path) -> None:
    two, file = replace(pool, cases=pool.cases[:2], folder=tmp_path), tmp_path / "embedding.pth"
    options = Options("embedding", points=12, reference="a", weights=embedding(two, file))
    first = make_table(two, options).table
    embedding(two, file, seed=1, quality={"score_20": float(np.median(first.scores[1]))})
    found = make_table(two, options)
    table = found.table
    assert (table.scores[1] != first.scores[1]).all()  # of the new file, in records and in memory
    assert table.definition["threshold"] == np.median(first.scores[1])
    assert table.definition["threshold_from"] == "embedding"
    assert (table.scores[1][table.accepted[1]] >= table.definition["threshold"]).all()
    assert ": 80 % of the embedding's scores of known correspondences reach it)" in "\n".join(lines(found))


def test_weights_that_cannot_be_used_are_refused_once(pool: Pool, tmp_path: Path) -> None:
    (tmp_path / "SAM.pth").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"SAM\.pth"):
        make_table(pool, Options("embedding", weights=tmp_path / "SAM.pth"))


def test_only_the_embedding_works_alone_on_another_device(
    pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, int] = {}

    def counted(function: Any, jobs: Any, processes: int, *rest: Any) -> Any:
        seen[function.__name__] = processes
        return work_on(function, jobs, 1, *rest)

    monkeypatch.setattr(corresponding, "work_on", counted)
    two = replace(pool, cases=pool.cases[:2], folder=tmp_path)
    weights = embedding(two, tmp_path / "embedding.pth")
    make_table(two, Options("embedding", points=2, reference="a", weights=weights, processes=3, device="cuda"))
    assert seen == {"find_box": 3, "match_by_embedding": 1}
    seen.clear()
    again = replace(two, folder=tmp_path / "cpu")
    make_table(again, Options("embedding", points=2, reference="a", weights=weights, processes=3))
    assert seen == {"find_box": 3, "match_by_embedding": 3}


def test_clipped_ct_is_looked_at_in_the_raw_file(tmp_path: Path) -> None:
    """The preprocessed image knows nothing below -100 HU, so fat and air are the same in it."""
    body, frame = Body(), scanner()
    hounsfield = 1150 * body.drawn(frame) - 1000
    raw = SimpleITK.GetImageFromArray(hounsfield)
    raw.SetSpacing((4.0, 4.0, 4.0))
    raw.SetOrigin(frame.to_lps([0, 0, 0]))
    SimpleITK.WriteImage(raw, str(tmp_path / "a_0000.nii.gz"))
    clipped = write_case(tmp_path / "cases", "a", np.clip(hounsfield, 200, 1000), frame)
    plans = plans_of("CTNormalization")
    plans["foreground_intensity_properties_per_channel"]["0"]["percentile_00_5"] = 200.0
    pool = Pool(tmp_path, (replace(clipped, raw=(str(tmp_path / "a_0000.nii.gz"),)),), plans, "3d_fullres", {})
    looking = Looking.at(pool)
    assert looking.ct
    assert looking.level is None
    box = looking.box(pool.cases[0])
    np.testing.assert_allclose(box, [[-90, -60, -100], [90, 60, 100]], atol=8.1)
    without = looking.box(replace(pool.cases[0], raw=(str(tmp_path / "gone.nii.gz"),)))
    assert (without[1] - without[0] < box[1] - box[0]).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (Options("elastic"), "allowed are overlap"),
        (Options("affine", points=0), "at least 1"),
        (Options("affine", threshold=3.0), "from -1 to 1"),
        (Options("embedding"), "--weights FILE"),
        (Options("affine", reference="z"), "no such case; there are 3: a, b, c"),
    ],
)
def test_wrong_options_are_refused(options: Options, words: str, pool: Pool) -> None:
    with pytest.raises(UserError, match=words):
        make_table(pool, options)


def test_one_case_has_no_partner(pool: Pool) -> None:
    with pytest.raises(UserError, match="use --kind overlap"):
        make_table(replace(pool, cases=pool.cases[:1]), Options("affine"))
