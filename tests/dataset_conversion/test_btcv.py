"""BTCV: every known layout gives the same cases, told apart by their numbers."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conversions import check_converted
from trees import btcv
from trees.volumes import load

from nnunet_ext.dataset_conversion.btcv import BTCV, EIGHT_ORGANS, ORGANS, Synapse
from nnunet_ext.dataset_conversion.cases import Found
from nnunet_ext.dataset_conversion.options import Options
from nnunet_ext.dataset_conversion.run import convert
from nnunet_ext.dataset_conversion.sources import open_download
from nnunet_ext.errors import UserError

TRAINING = ["img0001", "img0002", "img0003", "img0021"]
TEST = ["img0061", "img0062"]


def find(*places: Path) -> Found:
    return BTCV().find(open_download(places, BTCV.skip))


def ids(found: Found, part: str) -> list[str]:
    return [case.id for case in found.cases if case.part == part]


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """RawData without the faulty case."""
    place = btcv.build(tmp_path).place
    for path in place.rglob("*0004.nii*"):
        path.unlink()
    return place


def moved(raw: Path, target: Path, name: str) -> Path:
    """Move the files of one kind and part to another place; `name` may use {n}, the number."""
    for path in sorted(path for path in raw.rglob("*.nii.gz") if path.is_file() and not path.name.startswith(".")):
        number = path.name.removeprefix("img").removeprefix("label")[:4]
        part, kind = ("Test" if int(number) > 60 else "Train"), path.name[: -len("0000.nii.gz")]
        goal = target / name.format(n=number, Part=part, Ing=f"{part}ing", kind=kind, base=path.name)
        goal.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(path, goal)
    return target


def decathlon(raw: Path, target: Path) -> Path:
    """imagesTr, labelsTr and imagesTs, with the 20 withheld cases in the last: SSH-UNet's."""
    for path in sorted(path for path in raw.rglob("*.nii.gz") if path.is_file() and not path.name.startswith(".")):
        folder = "labelsTr" if path.name.startswith("label") else "imagesTs" if "img006" in path.name else "imagesTr"
        (target / folder).mkdir(parents=True, exist_ok=True)
        shutil.move(path, target / folder / path.name)
    return target


def test_raw_data(tmp_path: Path) -> None:
    tree = btcv.build(tmp_path)
    found = find(tree.place)
    assert ids(found, "training") == list(tree.training) == TRAINING
    assert ids(found, "test") == list(tree.test) == TEST
    assert {fault.case for fault in found.faults} == tree.faulty
    assert "duplicate id" in found.faults[0].reason
    for case in found.cases:
        assert case.images[0].base == f"{case.id}.nii.gz"
        assert case.label is None or case.label.base == f"label{case.id[3:]}.nii.gz"
        assert case.group == case.id


@pytest.mark.parametrize(
    "name",
    [
        "Abdomen/RawData/{Ing}/{kind}/{base}",
        "{Ing}/{kind}/{n}/{base}",
        "{Part}Set/{kind}/{base}",
        "{Part}/{kind}/{base}",
        "{base}",
    ],
)
def test_layouts(raw: Path, tmp_path: Path, name: str) -> None:
    found = find(moved(raw, tmp_path / "other", name))
    assert (ids(found, "training"), ids(found, "test"), found.faults) == (TRAINING, TEST, ())


def test_sshunet_layout(raw: Path, tmp_path: Path) -> None:
    found = find(decathlon(raw, tmp_path / "other"))
    assert (ids(found, "training"), ids(found, "test"), found.faults) == (TRAINING, TEST, ())


def test_nnformer_layout(raw: Path, tmp_path: Path) -> None:
    """Labelled cases that lie in imagesTs too are taken once, those that lie only there as well."""
    other = decathlon(raw, tmp_path / "Task02_Synapse")
    shutil.rmtree(other / "imagesTs")
    (other / "imagesTs").mkdir()
    (other / "labelsTs").mkdir()
    shutil.copy(other / "imagesTr" / "img0001.nii.gz", other / "imagesTs")
    shutil.copy(other / "labelsTr" / "label0001.nii.gz", other / "labelsTs")
    shutil.move(other / "imagesTr" / "img0002.nii.gz", other / "imagesTs")
    shutil.move(other / "labelsTr" / "label0002.nii.gz", other / "labelsTs")
    found = find(other)
    assert (ids(found, "training"), ids(found, "test"), found.faults) == (TRAINING, [], ())
    assert found.cases[0].images[0].folder == "imagesTr"
    assert "img0001" in found.notices[0]
    assert "img0002" not in found.notices[0]


def test_labels_named_like_images(raw: Path, tmp_path: Path) -> None:
    other = decathlon(raw, tmp_path / "other")
    for path in (other / "labelsTr").iterdir():
        path.rename(path.with_name(path.name.replace("label", "img")))
    for path in (other / "imagesTr").iterdir():
        path.rename(path.with_name(path.name.replace(".nii", "_0000.nii")))
    found = find(other)
    assert (ids(found, "training"), found.faults) == (TRAINING, ())


def test_archive(raw: Path, tmp_path: Path) -> None:
    archive = Path(shutil.make_archive(str(tmp_path / "zipped" / "RawData"), "zip", raw.parent, "RawData"))
    found = find(archive)
    assert ids(found, "training") == TRAINING
    assert all(case.images[0].member for case in found.cases)


def test_number_that_does_not_exist(raw: Path) -> None:
    (raw / "Training" / "img" / "img0001.nii.gz").rename(raw / "Training" / "img" / "img0015.nii.gz")
    found = find(raw)
    reasons = {fault.case: fault.reason for fault in found.faults}
    assert "no case 15" in reasons["img0015"]
    assert "has no image" in reasons["img0001"]
    assert ids(found, "training") == TRAINING[1:]


def test_missing_label(raw: Path) -> None:
    (raw / "Training" / "label" / "label0002.nii.gz").unlink()
    (fault,) = find(raw).faults
    assert fault.case == "img0002"
    assert "label0002.nii.gz was expected" in fault.reason


def test_something_else(tmp_path: Path) -> None:
    (tmp_path / "volume-0.nii").write_bytes(b"1")
    with pytest.raises(UserError, match=r"btcv: no case found.*volume-0\.nii.*RawData\.zip"):
        find(tmp_path)


def test_thirteen_organs() -> None:
    layout = BTCV().layout(Found(()))
    assert layout.channel_names == ("CT",)
    assert list(layout.labels) == list(ORGANS)
    assert list(layout.labels.values()) == list(range(14))
    rules = BTCV().rules(Found(()))
    assert rules.label_map is None
    assert rules.aligned
    assert rules.ct


@pytest.mark.parametrize(
    ("order", "organs"),
    [
        (None, "aorta,gallbladder,left kidney,right kidney,liver,pancreas,spleen,stomach"),
        ("cascade", "spleen,right kidney,left kidney,gallbladder,pancreas,liver,stomach,aorta"),
        ("btcv", "spleen,right kidney,left kidney,gallbladder,liver,stomach,aorta,pancreas"),
    ],
)
def test_eight_organs(order: str | None, organs: str, tmp_path: Path) -> None:
    converter = Synapse(labels=8, label_order=order)
    labels = converter.layout(Found(())).labels
    assert labels == {"background": 0} | {name: value for value, name in enumerate(organs.split(","), 1)}
    mapped = converter.rules(Found(())).label_map
    assert mapped is not None
    assert set(mapped) == set(range(14))
    assert {value: ORGANS[raw] for raw, value in mapped.items() if value} == dict(enumerate(organs.split(","), 1))


def test_eight_organs_are_another_data_set(raw: Path) -> None:
    download = open_download([raw])
    assert Synapse().default_name(download) == "Synapse"
    assert Synapse(labels=8).default_name(download) == "Synapse8"


@pytest.mark.parametrize("own", [{"labels": 9}, {"label_order": "transunet"}, {"labels": 8, "label_order": "x"}])
def test_options_that_make_no_sense(own: dict[str, object]) -> None:
    with pytest.raises(UserError, match="synapse: --label"):
        Synapse(**own)  # type: ignore[arg-type]


def test_arguments() -> None:
    parser = argparse.ArgumentParser()
    Synapse.add_arguments(parser.add_argument_group())
    converter = Synapse.from_arguments(vars(parser.parse_args(["--labels", "8", "--label-order", "cascade"])))
    assert isinstance(converter, Synapse)
    assert (converter.labels, converter.label_order) == (8, "cascade")
    assert set(EIGHT_ORGANS["cascade"]) == set(EIGHT_ORGANS["btcv"]) == set(EIGHT_ORGANS["transunet"])


def test_defaults() -> None:
    assert Synapse().default_split() == "synapse_transunet"
    assert BTCV().default_split() == "btcv_sshunet"
    assert set(BTCV().own_splits(())) == {"btcv_sshunet", "sshunet_5fold"}


def test_conversion(nnunet_folders: Path) -> None:
    tree = btcv.build(nnunet_folders)
    report = convert("btcv", [tree.place], Options(splits=("cv",)))
    check_converted(report, tree)
    assert report.counts == {"training": 4, "test": 2}
    record = json.loads((report.folder / "conversion.json").read_text())
    # Only img0003, whose label's origin was wrong, is written anew.
    assert [case for case, entry in record["cases"].items() if (entry["label"] or {}).get("changes")] == ["img0003"]


def test_conversion_of_eight_organs(nnunet_folders: Path) -> None:
    tree = btcv.build(nnunet_folders)
    report = convert("synapse", [tree.place], Options(splits=("cv",)), {"labels": 8})
    assert report.name == "Dataset805_Synapse8"
    for case, known in tree.training.items():
        written = load(report.folder / "labelsTr" / f"{case}.nii.gz")[0]
        wanted = np.zeros_like(known.labels)
        for value, organ in enumerate(EIGHT_ORGANS["transunet"], 1):
            wanted[known.labels == organ] = value
        np.testing.assert_array_equal(written, wanted)
    assert json.loads((report.folder / "conversion.json").read_text())["label_map"]["11"] == 6


@pytest.mark.parametrize(
    ("key", "split", "training", "test", "sizes"),
    [
        ("btcv", (), 30, 20, [(24, 6)]),
        ("btcv", ("sshunet_5fold",), 24, 26, [(19, 5)] * 4 + [(20, 4)]),
        ("synapse", (), 30, 20, [(18, 12)]),
    ],
)
def test_splits(
    nnunet_folders: Path, key: str, split: tuple[str, ...], training: int, test: int, sizes: list[tuple[int, int]]
) -> None:
    place = btcv.build(nnunet_folders, complete=True).place
    report = convert(key, [place], Options(splits=split, check="none"))
    assert report.counts == {"training": training, "test": test}
    folds = json.loads((nnunet_folders / "nnUNet_preprocessed" / report.name / "splits_final.json").read_text())
    assert [(len(fold["train"]), len(fold["val"])) for fold in folds] == sizes
    assert len(list((report.folder / "labelsTs").glob("*.nii.gz"))) == test - 20 if test > 20 else True
