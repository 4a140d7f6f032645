"""Nothing of a user's is lost: second downloads, corrected labels, files of others, runs that were killed."""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toy_converter
from toy_converter import SHAPE
from trees import volumes

from nnunet_ext import cli, dataset_conversion
from nnunet_ext.dataset_conversion import files
from nnunet_ext.dataset_conversion.options import Options
from nnunet_ext.dataset_conversion.run import convert
from nnunet_ext.dataset_conversion.state import State
from nnunet_ext.errors import UserError

pytestmark = pytest.mark.usefixtures("toy")

NAME = "Dataset077_Toy"
COPY = Options(mode="copy")


@pytest.fixture
def download(nnunet_folders: Path) -> Path:
    toy_converter.build(nnunet_folders / "download", ("p1a", "p2a", "p3a"))
    return nnunet_folders / "download"


def cases_of(folder: Path, name: str = "labelsTr") -> list[str]:
    return sorted(path.name[:-7] for path in (folder / name).glob("*.nii.gz"))


def test_second_download_joins_the_first(nnunet_folders: Path, download: Path) -> None:
    """As LiTS' two batches, the first of which was deleted after its conversion."""
    first = convert("toy", [download], COPY)
    shutil.rmtree(download)
    toy_converter.build(nnunet_folders / "second", ("p4a", "p5a"))
    report = convert("toy", [nnunet_folders / "second"], COPY)
    assert cases_of(first.folder) == ["p1a", "p2a", "p3a", "p4a", "p5a"]
    assert report.counts == {"training": 5}
    assert any("3 cases of an earlier conversion stay" in notice for notice in report.notices)
    assert json.loads((first.folder / "dataset.json").read_text())["numTraining"] == 5


def test_force_drops_cases_that_the_download_has_not(nnunet_folders: Path, download: Path) -> None:
    first = convert("toy", [download], COPY)
    toy_converter.build(nnunet_folders / "second", ("p4a", "p5a"))
    convert("toy", [nnunet_folders / "second"], Options(mode="copy", force=True))
    assert cases_of(first.folder) == ["p4a", "p5a"]


def test_cases_with_other_labels_do_not_mix(nnunet_folders: Path, download: Path) -> None:
    convert("toy", [download], COPY)
    toy_converter.build(nnunet_folders / "second", ("p4a", "p5a"))
    with pytest.raises(UserError, match=r"with other labels or channels \(p1a, p2a, p3a\).*--force"):
        convert("toy", [nnunet_folders / "second"], COPY, {"label_map": {0: 0, 1: 1, 2: 2, 4: 3}})


def test_copy_of_a_case_that_is_damaged_since_stays(nnunet_folders: Path, download: Path) -> None:
    first = convert("toy", [download], COPY)
    (download / "p2a" / "p2a_seg.nii.gz").write_bytes(b"damaged")
    report = convert("toy", [download], COPY)
    assert [fault.case for fault in report.faults] == ["p2a"]
    assert cases_of(first.folder) == ["p1a", "p2a", "p3a"]
    assert cases_of(first.folder, "imagesTr") == [f"p{n}a_000{c}" for n in (1, 2, 3) for c in (0, 1)]


def test_links_to_a_case_that_is_damaged_since_go(nnunet_folders: Path, download: Path) -> None:
    first = convert("toy", [download])
    (download / "p2a" / "p2a_t1.nii.gz").write_bytes(b"damaged")
    report = convert("toy", [download])
    assert [fault.case for fault in report.faults] == ["p2a"]
    assert not list(first.folder.glob("images*/p2a*"))
    assert cases_of(first.folder / "put_aside") == ["p2a"]  # its label was written, and is not thrown away


def test_corrected_label_stays(nnunet_folders: Path, download: Path) -> None:
    first = convert("toy", [download])
    path = first.folder / "labelsTr" / "p2a.nii.gz"
    corrected = volumes.labels(77, (1, 3), SHAPE)
    volumes.save(path, corrected, volumes.affine(seed=1))
    report = convert("toy", [download])
    assert any("p2a.nii.gz was edited" in notice for notice in report.notices)
    np.testing.assert_array_equal(volumes.load(path)[0], corrected)
    assert convert("toy", [download]).skipped == 3
    convert("toy", [download], Options(force=True))
    assert not np.array_equal(volumes.load(path)[0], corrected)


def test_damaged_label_is_made_again_and_not_thrown_away(nnunet_folders: Path, download: Path) -> None:
    first = convert("toy", [download])
    path = first.folder / "labelsTr" / "p2a.nii.gz"
    whole = path.read_bytes()
    path.write_bytes(b"something else")
    report = convert("toy", [download])
    assert path.read_bytes() == whole
    assert (first.folder / "put_aside" / "labelsTr" / "p2a.nii.gz").read_bytes() == b"something else"
    assert any("moved to put_aside" in notice for notice in report.notices)


def test_touched_label_of_the_same_content_is_ready(nnunet_folders: Path, download: Path) -> None:
    first = convert("toy", [download])
    for path in (first.folder / "labelsTr").iterdir():
        os.utime(path, ns=(1, 1))
    report = convert("toy", [download])
    assert report.skipped == 3
    assert not any("edited" in notice for notice in report.notices)


def test_file_of_somebody_else_is_not_overwritten(nnunet_folders: Path, download: Path) -> None:
    first = convert("toy", [download])
    own = first.folder / "imagesTr" / "p4a_0001.nii.gz"
    own.write_bytes(b"mine")
    toy_converter.build(download, ("p1a", "p2a", "p3a", "p4a"))
    report = convert("toy", [download])
    assert {fault.case: "no conversion wrote it" in fault.reason for fault in report.faults} == {"p4a": True}
    assert own.read_bytes() == b"mine"


def test_case_that_becomes_a_test_case_leaves_training(nnunet_folders: Path, download: Path) -> None:
    first = convert("toy", [download], Options(splits=("cv",)))
    report = convert("toy", [download], Options(splits=("cv",), hold_out=True))
    tested = cases_of(first.folder, "labelsTs")
    assert len(tested) == 1
    assert sorted(cases_of(first.folder) + tested) == ["p1a", "p2a", "p3a"]
    assert not list(first.folder.glob(f"imagesTr/{tested[0]}*"))
    assert report.counts == {"training": 2, "test": 1}


def test_files_that_were_placed_but_not_noted_do_not_stay_in_training(
    nnunet_folders: Path, download: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that dies between the two leaves a file that the next one, which tests on this case, must remove."""

    def dies(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(State, "add", dies)
    with pytest.raises(KeyboardInterrupt):
        convert("toy", [download])
    folder = nnunet_folders / "nnUNet_raw" / NAME
    assert list(folder.glob("imagesTr/*"))
    monkeypatch.undo()
    monkeypatch.setitem(dataset_conversion.CONVERTERS, "toy", "toy_converter:Toy")
    monkeypatch.setattr("nnunet_ext.dataset_conversion.run.verify", lambda *_: None)
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(variable, str(nnunet_folders / variable))
    report = convert("toy", [download], Options(splits=("cv",), hold_out=True))
    for case in cases_of(folder, "labelsTs"):
        assert not list(folder.glob(f"*Tr/{case}*"))
    assert report.counts == {"training": 2, "test": 1}


def test_run_that_was_killed_before_its_first_case_is_gone_on_with(nnunet_folders: Path, download: Path) -> None:
    folder = nnunet_folders / "nnUNet_raw" / NAME
    (folder / f".tars{files.MARK}x").mkdir(parents=True)
    (folder / ".conversion.lock").write_text(json.dumps({"pid": 999_999_999, "host": socket.gethostname()}))
    assert convert("toy", [download]).ok


def test_lock_of_another_machine_is_respected(nnunet_folders: Path, download: Path) -> None:
    folder = nnunet_folders / "nnUNet_raw" / NAME
    folder.mkdir()
    lock = folder / ".conversion.lock"
    for content in (json.dumps({"pid": 999_999_999, "host": "elsewhere"}), ""):
        lock.write_text(content)
        with pytest.raises(UserError, match=r"is being converted by process .*remove .*conversion.lock"):
            convert("toy", [download])
        assert lock.read_text() == content


def test_changed_source_of_the_same_size_is_noticed(nnunet_folders: Path, download: Path) -> None:
    convert("toy", [download])
    path = download / "p1a" / "p1a_seg.nii.gz"
    os.utime(path, ns=(1, 1))
    assert convert("toy", [download]).skipped == 2


@pytest.mark.parametrize("name", ["../../precious.txt", "/precious.txt", "imagesTr/../../x", "dataset.json"])
def test_record_that_names_other_files_is_refused(nnunet_folders: Path, download: Path, name: str) -> None:
    precious = nnunet_folders / "precious.txt"
    precious.write_text("precious")
    first = convert("toy", [download])
    record = json.loads((first.folder / "conversion.json").read_text())
    record["cases"]["other"] = record["cases"]["p1a"] | {"images": [{"file": name, "action": "copy"}]}
    (first.folder / "conversion.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="changed by hand"):
        convert("toy", [download])
    assert precious.read_text() == "precious"


def test_odd_lines_of_the_state_are_passed_over(nnunet_folders: Path, download: Path) -> None:
    folder = nnunet_folders / "nnUNet_raw" / NAME
    folder.mkdir()
    (folder / ".conversion.partial.jsonl").write_text('[1]\n{"case": "x"}\n{"case": "y", "entry": 3}\nhalf')
    assert convert("toy", [download]).ok


# --------------------------------------------------------------------------------------------------------------- folds


def own_folds(nnunet_folders: Path) -> Path:
    path = nnunet_folders / "nnUNet_preprocessed" / NAME / "splits_final.json"
    path.parent.mkdir()
    path.write_text('[{"train": ["p1a"], "val": ["p2a"]}]')
    return path


def test_split_that_was_asked_for_does_not_replace_folds_of_others(nnunet_folders: Path, download: Path) -> None:
    path = own_folds(nnunet_folders)
    with pytest.raises(UserError, match=r"made by others\. --force replaces it"):
        convert("toy", [download], Options(splits=("cv",)))
    assert not (nnunet_folders / "nnUNet_raw" / NAME).exists()
    convert("toy", [download], Options(splits=("cv",), force=True))
    assert len(json.loads(path.read_text())) == 3
    assert len(json.loads(path.with_name("splits_before_conversion.json").read_text())) == 1


def test_folds_that_no_split_replaces_are_named_and_stay_ours(nnunet_folders: Path, download: Path) -> None:
    convert("toy", [download])
    report = convert("toy", [download], Options(splits=("none",)))
    assert any("is there from before" in notice for notice in report.notices)
    toy_converter.build(download, ("p1a", "p2a", "p3a", "p4a"))
    convert("toy", [download])
    path = nnunet_folders / "nnUNet_preprocessed" / NAME / "splits_final.json"
    assert len(json.loads(path.read_text())) == 4


def test_missing_folder_for_folds_is_noticed_before_the_work(
    nnunet_folders: Path, download: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("nnUNet_preprocessed")
    for options in (Options(), Options(dry_run=True)):
        with pytest.raises(UserError, match="nnUNet_preprocessed is not set"):
            convert("toy", [download], options)
    (nnunet_folders / "file").write_text("")
    monkeypatch.setenv("nnUNet_preprocessed", str(nnunet_folders / "file"))
    with pytest.raises(UserError, match="which is no folder"):
        convert("toy", [download])
    assert not list((nnunet_folders / "nnUNet_raw").iterdir())


def test_changed_labels_make_preprocessed_data_stale(
    nnunet_folders: Path, download: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert("toy", [download])
    (nnunet_folders / "nnUNet_preprocessed" / NAME / "dataset_fingerprint.json").write_text("{}")
    real = toy_converter.Toy.layout
    renamed = {"background": 0, "two": 1, "one": 2, "three": 3}
    monkeypatch.setattr(
        toy_converter.Toy, "layout", lambda self, found: real(self, found).__class__(("T1", "T2"), renamed)
    )
    report = convert("toy", [download])
    assert any("labels of dataset.json changed" in notice for notice in report.notices)


# ---------------------------------------------------------------------------------------------------------------- disk


def test_disk_without_links_gets_copies_and_says_so(
    nnunet_folders: Path, download: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(self: Path, target: str) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(Path, "symlink_to", refuses)
    report = convert("toy", [download])
    assert report.actions == {"copy": 6, "write": 3}
    assert any("6 files were copied" in notice for notice in report.notices)


def test_full_disk_while_linking_is_no_reason_to_copy(
    nnunet_folders: Path, download: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(self: Path, target: str) -> None:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(Path, "symlink_to", full)
    assert cli.main(["convert", "toy", str(download), "-np", "1"]) == 1
    assert "no space left on the device" in capsys.readouterr().err


def test_folder_that_may_not_be_written_is_one_sentence(
    nnunet_folders: Path, download: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuses(self: Path, *_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", refuses)
    report = nnunet_folders / "report.json"
    assert cli.main(["convert", "toy", str(download), "-np", "1", "--json", str(report)]) == 1
    error = capsys.readouterr().err
    assert "Permission denied" in error
    assert "Traceback" not in error
    assert json.loads(report.read_text())["ok"] is False
