"""The landmark table: files, draws and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nnunet_ext.errors import UserError
from nnunet_ext.pretraining.landmarks import LandmarkTable, table_path


def table(kind: str = "affine") -> LandmarkTable:
    """Three cases, four points: the third case has none that is accepted; point 3 is in the first case only."""
    points = np.arange(36, dtype=np.float64).reshape(3, 4, 3)
    points[1, 0] = np.nan
    accepted = np.array([[1, 1, 1, 1], [0, 1, 1, 0], [0, 0, 0, 0]], dtype=bool)
    scores = np.where(accepted, np.float32(0.5), np.float32(np.nan))
    definition = {"reference": "a", "threshold": 0.3}
    return LandmarkTable(kind, ("a", "b", "c"), points, scores, accepted, kind == "overlap", definition)


@pytest.mark.parametrize("kind", ["affine", "overlap"])
def test_files_come_back(kind: str, tmp_path: Path) -> None:
    before, path = table(kind), table_path(tmp_path / "pool", kind)
    before.save(path)
    after = LandmarkTable.load(path)
    assert path.name == f"landmarks_{kind}.npz"
    assert (after.kind, after.cases, after.same_volume) == (before.kind, before.cases, before.same_volume)
    assert after.definition == before.definition
    for name in ("points", "scores", "accepted"):
        np.testing.assert_array_equal(getattr(after, name), getattr(before, name))
    first = path.read_bytes()
    before.save(path)
    assert path.read_bytes() == first


def test_draws_are_of_shared_accepted_points() -> None:
    content, rng = table(), np.random.default_rng(0)
    drawn = [content.draw(rng, 0) for _ in range(50)]
    kept = [one for one in drawn if one is not None]
    assert len(kept) == 50
    assert {partner for partner, _, _ in kept} == {1}
    assert {tuple(here) for _, here, _ in kept} == {(3, 4, 5), (6, 7, 8)}
    assert all((there - here == 12).all() for _, here, there in kept)
    assert content.draw(rng, 2) is None
    assert content.acceptance() == pytest.approx(2 / 8)
    assert content.median_score() == 0.5


def test_overlap_draws_the_case_itself() -> None:
    drawn = table("overlap").draw(np.random.default_rng(1), 1)
    assert drawn is not None
    assert drawn[0] == 1
    np.testing.assert_array_equal(drawn[1], drawn[2])


def test_draws_are_repeatable() -> None:
    first, second = ([table().draw(np.random.default_rng(7), 1) for _ in range(3)] for _ in range(2))
    assert str(first) == str(second)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        LandmarkTable.load(tmp_path / "none.npz")
    for content in (b"", b"PK\x03\x04 broken", b"text"):
        (tmp_path / "other.npz").write_bytes(content)
        with pytest.raises(UserError, match="no landmark table"):
            LandmarkTable.load(tmp_path / "other.npz")
    np.savez(tmp_path / "other.npz", head=np.array([{}], dtype=object))
    with pytest.raises(UserError, match="no landmark table"):
        LandmarkTable.load(tmp_path / "other.npz")
    np.savez(tmp_path / "other.npz", points=np.zeros(3))
    with pytest.raises(UserError, match="no landmark table"):
        LandmarkTable.load(tmp_path / "other.npz")


def test_parts_that_do_not_fit_are_refused() -> None:
    good = table()
    with pytest.raises(UserError, match="make it again"):
        LandmarkTable("affine", ("a", "b"), good.points, good.scores, good.accepted, False, {})
    with pytest.raises(UserError, match="are none"):
        LandmarkTable("affine", good.cases, good.points, good.scores, np.ones((3, 4), bool), False, {})
    with pytest.raises(UserError, match="allowed: overlap"):
        LandmarkTable("elastic", good.cases, good.points, good.scores, good.accepted, False, {})
