"""The files of a download are found wherever they lie, and archives are read in place without being trusted."""

from __future__ import annotations

import io
import os
import pickle
import shutil
import tarfile
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from nnunet_ext.dataset_conversion.compressed import plain_tars, read_from
from nnunet_ext.dataset_conversion.sources import ending_of, open_download
from nnunet_ext.errors import UserError

CONTENT = {
    "Set/imagesTr/a.nii.gz": b"image a",
    "Set/labelsTr/a.nii.gz": b"label a",
    "Set/dataset.json": b"\xef\xbb\xbf{}",
}
HIDDEN = ("__MACOSX/Set/._a.nii.gz", "Set/.DS_Store", "Set/imagesTr/._a.nii.gz", "Set/Thumbs.db", "Set/desktop.ini")


def folder(root: Path, content: dict[str, bytes] = CONTENT) -> Path:
    for name, data in content.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def zipped(path: Path, content: dict[str, bytes] = CONTENT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return path


def tarred(path: Path, content: dict[str, bytes] = CONTENT, mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    writing: Any = mode
    with tarfile.open(path, writing) as archive:
        for name, data in content.items():
            item = tarfile.TarInfo(name)
            item.size = len(data)
            archive.addfile(item, io.BytesIO(data))
    return path


def names(*places: Path) -> list[str]:
    return [file.name for file in open_download(places).files]


def bad(*places: Path) -> str:
    with pytest.raises(UserError) as caught:
        open_download(places)
    return str(caught.value)


@pytest.mark.parametrize("kind", ["folder", "zip", "tar", "tar.gz", "tgz", "TAR.BZ2", "tar.xz", "ZIP"])
def test_folders_and_archives_look_alike(tmp_path: Path, kind: str) -> None:
    content = CONTENT | dict.fromkeys(HIDDEN, b"hidden") | {"Set/empty.nii": b""}
    if kind == "folder":
        place = folder(tmp_path / "download", content)
    elif kind.lower() == "zip":
        place = zipped(tmp_path / f"download.{kind}", content)
    else:
        compression = {"gz": "w:gz", "tgz": "w:gz", "bz2": "w:bz2", "xz": "w:xz"}.get(kind.lower().split(".")[-1], "w")
        place = tarred(tmp_path / f"download.{kind}", content, compression)
    found = open_download([place])
    assert {file.name: file.read() for file in found.files} == CONTENT
    assert [file.size for file in found.files] == [len(CONTENT[file.name]) for file in found.files]
    assert found.named("DATASET.json")[0].text() == "{}"  # without its byte-order mark
    assert [file.folder for file in found.images()] == ["imagesTr", "labelsTr"]
    assert len(found.notices) == 1
    assert "empty.nii: empty: passed over" in found.notices[0]
    again = pickle.loads(pickle.dumps(found.files))  # as worker processes get them
    assert again == found.files
    assert [file.read() for file in again] == [file.read() for file in found.files]


def test_streams_of_one_archive_do_not_disturb_each_other(tmp_path: Path) -> None:
    for place in (zipped(tmp_path / "a.zip"), tarred(tmp_path / "b.tar"), tarred(tmp_path / "c.tar.gz", mode="w:gz")):
        files = {file.name: file for file in open_download([place]).files}
        with files["Set/imagesTr/a.nii.gz"].open() as one, files["Set/labelsTr/a.nii.gz"].open() as other:
            assert (one.read(3), other.read(5), one.read(), other.read()) == (b"ima", b"label", b"ge a", b" a")
            one.seek(1)
            assert one.read(2) == b"ma"


@pytest.mark.parametrize("member", ["../evil.nii", "Set/../../evil.nii", "/evil.nii", "..\\evil.nii", "C:\\evil.nii"])
def test_names_that_leave_the_folder_are_refused(tmp_path: Path, member: str) -> None:
    for place in (
        zipped(tmp_path / "a.zip", {**CONTENT, member: b"x"}),
        tarred(tmp_path / "b.tar", {**CONTENT, member: b"x"}),
        tarred(tmp_path / "c.tgz", {**CONTENT, member: b"x"}, "w:gz"),
    ):
        assert "refused" in bad(place)
        assert repr(member) in bad(place)


def test_links_and_devices_in_archives_are_passed_over(tmp_path: Path) -> None:
    secret = tmp_path / "secret.nii"
    secret.write_bytes(b"secret")
    path = tarred(tmp_path / "a.tar")
    with tarfile.open(path, "a") as archive:
        for name, kind in (("s.nii", tarfile.SYMTYPE), ("h.nii", tarfile.LNKTYPE), ("d.nii", tarfile.CHRTYPE)):
            item = tarfile.TarInfo(name)
            item.type, item.linkname = kind, str(secret)
            archive.addfile(item)
    found = open_download([path])
    assert {file.name for file in found.files} == set(CONTENT)
    assert sum("a link or a device: passed over" in notice for notice in found.notices) == 3

    link = zipfile.ZipInfo("Set/link.nii")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as made:
        made.writestr("Set/a.nii", b"image")
        made.writestr(link, str(secret))
    assert names(tmp_path / "b.zip") == ["Set/a.nii"]


def test_encrypted_archives_say_so(tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.zip", {"a.nii": b"image"})
    content = bytearray(path.read_bytes())
    content[6] |= 1
    content[content.rindex(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    assert "encrypted (a.nii): unpack it with its password" in bad(path)


def test_damaged_archives_are_named(tmp_path: Path) -> None:
    content = {f"a{n}.nii": os.urandom(40000) for n in range(3)}
    for place in (
        zipped(tmp_path / "a.zip", content),
        tarred(tmp_path / "b.tar", content),
        tarred(tmp_path / "c.tar.gz", content, "w:gz"),
        tarred(tmp_path / "d.tar.xz", content, "w:xz"),
    ):
        place.write_bytes(place.read_bytes()[:90000])
        assert f"{place}: a damaged archive" in bad(place)
    (tmp_path / "e.zip").write_bytes(b"<html>please log in</html>")
    assert "download it again" in bad(tmp_path / "e.zip")
    (tmp_path / "f.tar").write_bytes(b"")
    assert "a damaged archive" in bad(tmp_path / "f.tar")


def test_a_damaged_member_is_named(tmp_path: Path) -> None:
    data = os.urandom(1000)
    path = zipped(tmp_path / "a.zip", {"a.nii": data})
    path.write_bytes(path.read_bytes().replace(data[500:510], bytes(10)))
    [file] = open_download([path]).files
    with pytest.raises(UserError, match=r"a\.zip:a\.nii: damaged"):
        file.read()


def test_what_changes_while_it_is_read_is_named(tmp_path: Path) -> None:
    [file] = open_download([folder(tmp_path, {"a.nii": b"12345"})]).files
    (tmp_path / "a.nii").write_bytes(b"1")
    with pytest.raises(UserError, match="1 bytes instead of 5"):
        file.read()
    (tmp_path / "a.nii").unlink()
    with pytest.raises(UserError, match=r"a\.nii: cannot be read"):
        file.open()


def test_an_archive_beside_its_folder_is_passed_over(tmp_path: Path) -> None:
    folder(tmp_path, {"images/a.nii": b"image"})
    zipped(tmp_path / "images.zip", {"a.nii": b"older"})
    (tmp_path / "labels").mkdir()
    zipped(tmp_path / "labels.zip", {"labels/b.nii": b"label"})  # its folder is empty
    found = open_download([tmp_path])
    assert [(file.name, file.read()) for file in found.files] == [
        ("images/a.nii", b"image"),
        ("labels/b.nii", b"label"),
    ]
    assert any("images.zip: passed over for the folder images beside it" in notice for notice in found.notices)


def test_archives_called_like_folders_that_hold_files_alone(tmp_path: Path) -> None:
    zipped(tmp_path / "imagesTr.zip", {"a.nii": b"1"})
    zipped(tmp_path / "labelsTr.zip", {"labelsTr/a.nii": b"1"})
    zipped(tmp_path / "other.zip", {"b.nii": b"1"})
    assert names(tmp_path) == ["b.nii", "imagesTr/a.nii", "labelsTr/a.nii"]


def test_archives_in_folders_and_in_archives(tmp_path: Path) -> None:
    zipped(tmp_path / "Training/part1.zip", {"p/a.nii": b"image"})
    zipped(tmp_path / "Training/part2.zip", {"q\\b.nii": b"image", "inner.tar": b"x"})
    (tmp_path / "rest.7z").write_bytes(b"x")
    found = open_download([tmp_path])
    assert [file.name for file in found.files] == ["Training/p/a.nii", "Training/q/b.nii"]
    assert [file.read() for file in found.files] == [b"image"] * 2
    assert any("an archive in an archive" in notice for notice in found.notices)
    assert any("rest.7z: this kind of archive is not read: unpack it first" in notice for notice in found.notices)
    assert [file.name for file in open_download([tmp_path], skip=r"part2\.zip").files] == ["Training/p/a.nii"]


def test_of_members_of_one_name_the_last_counts(tmp_path: Path) -> None:
    path = tarred(tmp_path / "a.tar", {"a.nii": b"old"})
    with tarfile.open(path, "a") as archive:
        item = tarfile.TarInfo("a.nii")
        item.size = 5
        archive.addfile(item, io.BytesIO(b"newer"))
    [file] = open_download([path]).files
    assert file.read() == b"newer"


@pytest.mark.parametrize("archive", [False, True])
def test_a_folder_called_like_its_image(tmp_path: Path, archive: bool) -> None:
    content = {
        "p1/p1_t1.nii/p1_t1.nii": b"same name",
        "p1/p1_t2.nii/00000057_t2.nii": b"another name",
        "p1/p1_seg.nii.gz/p1_seg.nii": b"another ending",
        "p2/both.nii/a.nii": b"two of them",
        "p2/both.nii/b.nii": b"two of them",
    }
    place = zipped(tmp_path / "a.zip", content) if archive else folder(tmp_path, content)
    assert sorted(names(place)) == [
        "p1/p1_seg.nii", "p1/p1_t1.nii", "p1/p1_t2.nii", "p2/both.nii/a.nii", "p2/both.nii/b.nii"
    ]  # fmt: skip


def test_several_places(tmp_path: Path) -> None:
    one, two = folder(tmp_path / "one", {"a.nii": b"1"}), folder(tmp_path / "two", {"sub/a.nii": b"2"})
    archive = zipped(tmp_path / "three.zip", {"b.nii": b"3"})
    assert names(one, two, archive) == ["b.nii", "one/a.nii", "two/sub/a.nii"]
    assert names(one, one) == ["a.nii"]
    assert names(two, two / "sub") == ["two/sub/a.nii"]  # overlapping places list a file once


def test_a_list_stands_for_its_folder(tmp_path: Path) -> None:
    folder(tmp_path, {"list.json": b"{}", "imagesTr/a.nii": b"1"})
    found = open_download([tmp_path / "list.json"])
    assert found.roots == (tmp_path / "list.json",)
    assert [file.name for file in found.files] == ["imagesTr/a.nii", "list.json"]


def test_links_on_the_disk(tmp_path: Path) -> None:
    store = folder(tmp_path / "store", {"a.nii": b"1"})
    place = tmp_path / "place"
    (place / "images").mkdir(parents=True)
    (place / "images/a.nii").symlink_to(store / "a.nii")
    (place / "images/gone.nii").symlink_to(store / "gone.nii")
    (place / "images/up").symlink_to(place)
    found = open_download([place])
    assert [file.name for file in found.files] == ["images/a.nii"]
    assert any("gone.nii: a broken link" in notice for notice in found.notices)
    assert any("a link to a folder above itself" in notice for notice in found.notices)


@pytest.mark.parametrize("link", [False, True])
def test_nnunets_own_folders_are_no_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, link: bool) -> None:
    content = {"a.nii": b"1", "raw/Dataset001_A/imagesTr/a_0000.nii": b"2", "results/b.nii": b"3", "other/c.nii": b"4"}
    folder(tmp_path, content)
    raw = tmp_path / "raw"
    if link:
        raw = tmp_path / "way" / "raw"
        raw.parent.mkdir()
        raw.symlink_to(tmp_path / "raw")
    monkeypatch.setenv("nnUNet_raw", str(raw))
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results") + "/")
    monkeypatch.delenv("nnUNet_preprocessed", raising=False)
    found = open_download([tmp_path])
    assert [file.name for file in found.files] == ["a.nii", "other/c.nii"]
    assert any(f"{tmp_path / 'raw'}: the folder that nnUNet_raw names: passed over" in said for said in found.notices)
    assert any("nnUNet_results names" in said for said in found.notices)
    named = "Dataset001_A/imagesTr/a_0000.nii"
    assert names(tmp_path / "raw") == [named]
    assert names(raw / "Dataset001_A") == ["imagesTr/a_0000.nii"]
    assert names(tmp_path / "other", tmp_path / "raw") == ["other/c.nii", f"raw/{named}"]


def test_depth_is_bounded(tmp_path: Path) -> None:
    folder(tmp_path, {"1/2/3/4/5/6/a.nii": b"1", "1/2/3/4/5/6/7/b.nii": b"1"})
    found = open_download([tmp_path])
    assert [file.base for file in found.files] == ["a.nii"]
    assert "6 folders deep" in found.notices[0]


def test_places_that_are_nothing(tmp_path: Path) -> None:
    assert "does not exist" in bad(tmp_path / "nowhere")
    (tmp_path / "a.rar").write_bytes(b"x")
    assert "neither a folder nor an archive (.zip, .tar" in bad(tmp_path / "a.rar")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/a.nii").write_bytes(b"")
    assert "no files there" in bad(tmp_path / "empty")
    assert "a.nii: empty" in bad(tmp_path / "empty")


def test_endings() -> None:
    known = {"A.NII.GZ": ".nii.gz", "a.b.nii": ".nii", "x.TAR.GZ": ".tar.gz", "v.1.json": ".json", "README": ""}
    assert {name: ending_of(name) for name in known} == known


def test_patterns_ignore_case_and_start_at_a_part(tmp_path: Path) -> None:
    found = open_download([folder(tmp_path, {"Tr/Case1.NII.GZ": b"1", "Tr/xcase2.nii": b"1"})])
    matches = [match["id"] for _, match in found.matching(r"(?P<id>case\d)\.nii(\.gz)?")]
    assert matches == ["Case1"]
    [file] = [file for file in found.files if file.base == "Case1.NII.GZ"]
    assert (file.stem, file.ending, file.is_image) == ("Case1", ".nii.gz", True)


def test_compressed_tars_are_decompressed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = {f"Set/a{n}.nii.gz": os.urandom(1000 + n) for n in range(20)}
    place = folder(tmp_path / "download", {"b.nii": b"1"})
    tarred(place / "one.tar.gz", content, "w:gz")
    tarred(place / "two.tar", {"c.nii": b"2"})
    shutil.move(tarred(place / "x.tar.xz", {"d.nii": b"3"}, "w:xz"), place / "misnamed.tar")
    files = open_download([place]).files
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    tars = plain_tars(files, scratch)
    assert set(tars) == {place / "one.tar.gz", place / "misnamed.tar"}
    assert len(list(scratch.iterdir())) == 2
    quick = [read_from(file, tars) for file in files]
    shutil.move(place / "one.tar.gz", place / "away")
    expected = {**content, "b.nii": b"1", "c.nii": b"2", "d.nii": b"3"}
    assert {file.name: file.read() for file in quick} == expected
    assert [file.where for file in quick] == [file.where for file in files]  # what people are told stays
    assert plain_tars([file for file in files if file.member is None], scratch) == {}


def test_decompressing_needs_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage(NamedTuple):
        free: int

    files = open_download([tarred(tmp_path / "a.tgz", mode="w:gz")]).files
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", lambda _: Usage(10))
        with pytest.raises(UserError, match=r"needs .* GB in .*: make room, or unpack it elsewhere"):
            plain_tars(files, tmp_path)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfileobj", full)
    with pytest.raises(UserError, match="No space left on device"):
        plain_tars(files, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tgz"]
