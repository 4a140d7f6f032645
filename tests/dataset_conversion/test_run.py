"""A whole conversion: where it goes, what it writes beside the cases, and what it refuses to touch."""

from __future__ import annotations

import hashlib
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import toy_converter
from trees import volumes

from nnunet_ext import cli
from nnunet_ext.dataset_conversion.options import Options
from nnunet_ext.dataset_conversion.run import convert
from nnunet_ext.errors import UserError

pytestmark = pytest.mark.usefixtures("toy")

NAME = "Dataset077_Toy"


@pytest.fixture
def download(nnunet_folders: Path) -> Path:
    toy_converter.build(nnunet_folders / "download")
    return nnunet_folders / "download"


def splits(nnunet_folders: Path) -> list[dict[str, list[str]]]:
    content: list[dict[str, list[str]]] = json.loads(
        (nnunet_folders / "nnUNet_preprocessed" / NAME / "splits_final.json").read_text()
    )
    return content


def test_record_names_source_checksum_change_and_versions_of_every_case(nnunet_folders: Path, download: Path) -> None:
    report = convert("toy", [download])
    record = json.loads((report.folder / "conversion.json").read_text())
    assert record["versions"]["nnunetv2"].startswith("2.")
    assert record["label_map"] == {"0": 0, "1": 2, "2": 1, "4": 3}
    assert sorted(record["cases"]) == ["p1a", "p1b", "p2a", "p3a", "p4a", "p5a"]
    for case, entry in record["cases"].items():
        for file in (*entry["images"], entry["label"]):
            source = Path(file["source"])
            assert file["sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()
            assert file["size"] == source.stat().st_size
            assert (report.folder / file["file"]).exists()
        assert entry["group"] == case[:2]
        assert entry["label"]["changes"] == ["labels mapped: 1 to 2, 2 to 1, 4 to 3"]
        assert [file["action"] for file in entry["images"]] == ["link", "link"]


def test_files_after_a_conversion_are_nnunets(nnunet_folders: Path, download: Path) -> None:
    report = convert("toy", [download])
    assert sorted(path.name for path in report.folder.iterdir()) == [
        "conversion.json",
        "dataset.json",
        "imagesTr",
        "labelsTr",
    ]
    description = json.loads((report.folder / "dataset.json").read_text())
    assert description["channel_names"] == {"0": "T1", "1": "T2"}
    assert description["labels"] == {"background": 0, "one": 1, "two": 2, "three": 3}
    assert description["numTraining"] == 6
    assert report.labels == dict.fromkeys(("one", "two", "three"), (6, 48))


def test_folds_keep_patients_together(nnunet_folders: Path, download: Path) -> None:
    convert("toy", [download])
    folds = splits(nnunet_folders)
    assert len(folds) == 5
    assert sorted(case for fold in folds for case in fold["val"]) == ["p1a", "p1b", "p2a", "p3a", "p4a", "p5a"]
    for fold in folds:
        assert not {case[:2] for case in fold["train"]} & {case[:2] for case in fold["val"]}


def test_folds_of_others_are_left_unless_forced(nnunet_folders: Path, download: Path) -> None:
    path = nnunet_folders / "nnUNet_preprocessed" / NAME / "splits_final.json"
    path.parent.mkdir()
    path.write_text('[{"train": ["p1a"], "val": ["p2a"]}]')
    report = convert("toy", [download])
    assert any("made by others" in notice for notice in report.notices)
    assert len(splits(nnunet_folders)) == 1
    convert("toy", [download], Options(force=True))
    assert len(splits(nnunet_folders)) == 5


def test_trained_folds_are_remembered_when_the_split_changes(nnunet_folders: Path, download: Path) -> None:
    convert("toy", [download])
    (nnunet_folders / "nnUNet_results" / NAME / "nnUNetTrainer__nnUNetPlans__3d_fullres" / "fold_0").mkdir(parents=True)
    for path in (download / "p5a").iterdir():
        path.unlink()
    report = convert("toy", [download])
    assert any("1 folds were trained on the earlier ones" in notice for notice in report.notices)


def test_changed_cases_make_preprocessed_data_stale(nnunet_folders: Path, download: Path) -> None:
    convert("toy", [download])
    (nnunet_folders / "nnUNet_preprocessed" / NAME / "dataset_fingerprint.json").write_text("{}")
    assert not any("run nnUNetv2_plan" in notice for notice in convert("toy", [download]).notices)
    labels = volumes.labels(9, (1, 2), toy_converter.SHAPE)
    volumes.save(download / "p1a" / "p1a_seg.nii.gz", labels, volumes.affine(seed=0))
    report = convert("toy", [download])
    assert any("1 cases changed" in notice and "run nnUNetv2_plan" in notice for notice in report.notices)


def test_dry_run_writes_nothing(nnunet_folders: Path, download: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["convert", "toy", str(download), "--dry-run"]) == 0
    assert "Dataset077_Toy would be made of 6 training cases" in capsys.readouterr().out
    assert not list((nnunet_folders / "nnUNet_raw").iterdir())
    assert not list((nnunet_folders / "nnUNet_preprocessed").iterdir())


def test_id_of_another_data_set_is_refused(nnunet_folders: Path, download: Path) -> None:
    (nnunet_folders / "nnUNet_results" / "Dataset077_Foo").mkdir()
    with pytest.raises(UserError, match=r"id 77 is already taken by Dataset077_Foo \(in nnUNet_results.*-d"):
        convert("toy", [download])
    assert convert("toy", [download], Options(number=78)).name == "Dataset078_Toy"


def test_folder_of_others_is_not_touched(nnunet_folders: Path, download: Path) -> None:
    folder = nnunet_folders / "nnUNet_raw" / NAME
    folder.mkdir()
    (folder / "precious.txt").write_text("precious")
    with pytest.raises(UserError, match=r"not made by nnunet-ext convert"):
        convert("toy", [download])
    assert [path.name for path in folder.iterdir()] == ["precious.txt"]


def test_folder_converted_as_something_else_is_not_touched(
    nnunet_folders: Path, download: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert("toy", [download])
    monkeypatch.setattr(toy_converter.Toy, "key", "other")
    with pytest.raises(UserError, match="was converted as toy, not as other"):
        convert("toy", [download])


@pytest.mark.parametrize(("number", "name"), [(0, "Toy"), (1000, "Toy"), (5, "a b"), (5, "../up")])
def test_ids_and_names_that_nnunet_has_not(nnunet_folders: Path, download: Path, number: int, name: str) -> None:
    with pytest.raises(UserError, match=r"Choose one with -[dn]"):
        convert("toy", [download], Options(number=number, name=name))


def test_missing_variable_is_named(nnunet_folders: Path, download: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("nnUNet_raw")
    with pytest.raises(UserError, match="nnUNet_raw is not set"):
        convert("toy", [download])


def test_same_image_twice_is_noticed(nnunet_folders: Path, download: Path) -> None:
    for name in ("t1", "t2", "seg"):
        (download / "p2a" / f"p2a_{name}.nii.gz").write_bytes((download / "p3a" / f"p3a_{name}.nii.gz").read_bytes())
    report = convert("toy", [download])
    assert "p2a and p3a have the same image: one patient twice?" in report.notices


def test_compressed_tar_is_read_through_a_plain_copy_that_goes_with_the_run(
    nnunet_folders: Path, download: Path
) -> None:
    with tarfile.open(nnunet_folders / "download.tar.gz", "w:gz") as archive:
        archive.add(download, "toy")
    report = convert("toy", [nnunet_folders / "download.tar.gz"])
    assert report.ok
    assert report.actions == {"copy": 12, "write": 6}
    for path in (report.folder / "imagesTr").iterdir():
        case, channel = path.name[:3], int(path.name[7]) + 1
        assert path.read_bytes() == (download / case / f"{case}_t{channel}.nii.gz").read_bytes()
    assert not [path for path in report.folder.iterdir() if path.name.startswith(".")]
    assert convert("toy", [nnunet_folders / "download.tar.gz"]).skipped == 6


def test_report_as_json(nnunet_folders: Path, download: Path) -> None:
    (download / "p1a" / "p1a_t2.nii.gz").unlink()
    assert cli.main(["convert", "toy", str(download), "-np", "1", "--json", str(nnunet_folders / "report.json")]) == 1
    content = json.loads((nnunet_folders / "report.json").read_text())
    assert content["counts"] == {"training": 5}
    assert [fault["case"] for fault in content["faults"]] == ["p1a"]
    assert content["ok"] is False


# ------------------------------------------------------------------------------------------------------------ in place


def raw_data_set(nnunet_folders: Path, dtype: type = np.uint8) -> Path:
    """A data set that already lies in nnUNet_raw, made by somebody else."""
    folder = nnunet_folders / "nnUNet_raw" / "Dataset050_Mine"
    for number in range(3):
        transform = volumes.affine(seed=number)
        volumes.save(folder / "imagesTr" / f"case{number}_0000.nii.gz", volumes.image(number), transform)
        labels: np.ndarray = volumes.labels(number, (1, 2)).astype(dtype)
        volumes.save(folder / "labelsTr" / f"case{number}.nii.gz", labels, transform)
    description = {
        "channel_names": {"0": "MRI"},
        "labels": {"background": 0, "a": 1, "b": 2},
        "numTraining": 3,
        "file_ending": ".nii.gz",
        "mine": "kept",
    }
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_data_set_in_place_is_checked_and_gets_folds_only(nnunet_folders: Path) -> None:
    folder = raw_data_set(nnunet_folders)
    before = contents(folder)
    report = convert("generic", [folder], Options(number=50, name="Mine"))
    assert report.ok
    assert report.actions == {"keep": 6}
    after = contents(folder)
    assert set(after) - set(before) == {"conversion.json"}
    assert {name: after[name] for name in before} == before
    assert (nnunet_folders / "nnUNet_preprocessed" / "Dataset050_Mine" / "splits_final.json").is_file()


def test_labels_in_place_are_never_rewritten(nnunet_folders: Path) -> None:
    """What would have to be changed is left out with its reason; the files stay as they are."""
    folder = raw_data_set(nnunet_folders)
    before = contents(folder)
    merged = {"label_names": ["c=1+2"]}
    with pytest.raises(
        UserError, match=r"would have to be changed \(labels mapped: 2 to 1\).*choose another id with -d"
    ):
        convert("generic", [folder], Options(number=50, name="Mine"), merged)
    after = contents(folder)
    assert {name: after.get(name) for name in before} == before


def test_labels_in_place_that_nnunet_can_read_stay(nnunet_folders: Path) -> None:
    folder = raw_data_set(nnunet_folders, np.float32)
    before = contents(folder)
    report = convert("generic", [folder], Options(number=50, name="Mine"))
    assert report.ok
    assert any("stored as float32" in notice for notice in report.notices)
    assert {name: contents(folder)[name] for name in before} == before


def test_wrong_dataset_json_in_place_is_put_right_and_kept(nnunet_folders: Path) -> None:
    folder = raw_data_set(nnunet_folders)
    description = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps({**description, "numTraining": 7}))
    report = convert("generic", [folder], Options(number=50, name="Mine"))
    assert any("numTraining put right" in notice for notice in report.notices)
    assert json.loads((folder / "dataset.json").read_text()) == description
    assert json.loads((folder / "dataset_before_conversion.json").read_text())["numTraining"] == 7


def test_data_sets_may_be_called_in_capitals(
    nnunet_folders: Path, download: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["convert", "TOY", str(download), "--dry-run"]) == 0
    assert "Dataset077_Toy" in capsys.readouterr().out
