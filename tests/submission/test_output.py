"""Putting a submission in its place: whole, undone after a kill at any moment, and nothing else ever replaced."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path

import pytest

from nnunet_ext.errors import UserError
from nnunet_ext.submission.archive import sha256_of
from nnunet_ext.submission.output import Output

posix = pytest.mark.skipif(os.name != "posix", reason="fork")


def _fill(new: Path, text: str) -> None:
    (new / "folder").mkdir()
    (new / "folder" / "a.txt").write_text(text)
    (new / "zip").write_text(f"zip of {text}")
    sums = {"a.txt": {"sha256": sha256_of(new / "folder" / "a.txt")}}
    (new / "record").write_text(json.dumps({"files": sums, "zip": {"sha256": sha256_of(new / "zip")}}))


def _write(out: Path, text: str, overwrite: bool = False) -> None:
    target = Output(out)
    target.recover()
    target.check(overwrite)
    with target.workshop() as new:
        _fill(new, text)
        target.move_in(new, overwrite)


def _state(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def _killed(out: Path, text: str, before_rename: int, overwrite: bool) -> None:
    """Write in a process that ends, without any clean-up, before one of its renames; 0: before it removes the rest."""
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return
    try:
        left, rename = [before_rename], os.rename

        def last(old: Path, new: Path) -> None:
            left[0] -= 1
            if left[0] == 0:
                os._exit(9)
            rename(old, new)

        os.rename = last  # type: ignore[assignment]
        import shutil

        shutil.rmtree = lambda *args, **options: os._exit(9)  # type: ignore[assignment]
        _write(out, text, overwrite)
    finally:
        os._exit(1)


@posix
@pytest.mark.parametrize("overwrite", [False, True])
def test_kill_at_any_moment_is_undone_by_the_next_run(tmp_path: Path, overwrite: bool) -> None:
    out = tmp_path / "out"
    if overwrite:
        _write(out, "earlier")
    before = _state(tmp_path)
    for moment in range(1, 7 if overwrite else 4):
        _killed(out, "new", moment, overwrite)
        assert list(tmp_path.glob(".out*"))
        Output(out).recover()
        assert _state(tmp_path) == before, moment
        assert not list(tmp_path.glob(".out*"))
    _killed(out, "new", 0, overwrite)
    Output(out).recover()
    assert (out / "a.txt").read_text() == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out.report.json", "out.zip"]
    _write(out, "again", overwrite=True)
    assert (out / "a.txt").read_text() == "again"


@posix
def test_what_was_changed_after_a_kill_is_not_moved(tmp_path: Path) -> None:
    out = tmp_path / "out"
    _write(out, "earlier")
    _killed(out, "new", 5, overwrite=True)
    (out / "a.txt").write_text("mine")
    before = _state(tmp_path)
    with pytest.raises(UserError, match=r"a\.txt is not as the run left it .* what was there before is in"):
        _write(out, "again", overwrite=True)
    assert _state(tmp_path) == before
    assert b"earlier" in before.values()


def test_workshop_of_a_run_that_lives_stays(tmp_path: Path) -> None:
    workshops = [tmp_path / f".out.report.json.{host}" for host in (f"{platform.node()}.{os.getppid()}-1", "other.1-1")]
    for workshop in workshops:
        (workshop / "new").mkdir(parents=True)
    _write(tmp_path / "out", "new")
    assert all((workshop / "new").is_dir() for workshop in workshops)


@pytest.mark.parametrize("name", ["out", "out.zip", "out.report.json"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_what_appears_meanwhile_is_kept(tmp_path: Path, name: str, overwrite: bool) -> None:
    target = Output(tmp_path / "out")
    target.check(overwrite)
    with target.workshop() as new:
        _fill(new, "new")
        (tmp_path / name).write_text("mine")
        with pytest.raises(UserError, match=name):
            target.move_in(new, overwrite)
    assert _state(tmp_path) == {name: b"mine"}


@pytest.mark.parametrize("name", ["out/a.txt", "out/b.txt", "out.zip", "out.report.json"])
def test_only_what_is_as_it_was_written_is_replaced(tmp_path: Path, name: str) -> None:
    _write(tmp_path / "out", "earlier")
    (tmp_path / name).write_text("mine")
    before = _state(tmp_path)
    with pytest.raises(UserError, match="it is not replaced"):
        _write(tmp_path / "out", "new", overwrite=True)
    assert _state(tmp_path) == before


@pytest.mark.parametrize("name", ["out", "out.zip", "out.report.json"])
def test_links_are_not_replaced(tmp_path: Path, name: str) -> None:
    (tmp_path / "real").mkdir()
    for target in (tmp_path / "real", tmp_path / "nowhere"):
        (tmp_path / name).unlink(missing_ok=True)
        (tmp_path / name).symlink_to(target)
        for overwrite in (False, True):
            with pytest.raises(UserError, match="is a link"):
                _write(tmp_path / "out", "new", overwrite)
    assert (tmp_path / name).is_symlink()


@pytest.mark.parametrize("name", [".", "..", "/", "../here"])
def test_folder_one_is_in_is_no_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(UserError, match="the folder you are in"):
        Output(name)


def test_nothing_is_written_into_what_is_read(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "read")
    for name in ("read/out", "read/deeper/out.zip", "link/out", "read"):
        with pytest.raises(UserError, match="which is read"):
            Output(tmp_path / name).keep_out_of([tmp_path / "read"])
    Output(tmp_path / "read2").keep_out_of([tmp_path / "read"])
