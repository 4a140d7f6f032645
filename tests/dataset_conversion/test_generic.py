"""Data sets of any layout: pairs by patterns, and folders as nnU-Net has them."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conversions import check_converted
from trees import generic
from trees.volumes import affine, image, save

from nnunet_ext.dataset_conversion.cases import Found
from nnunet_ext.dataset_conversion.generic import Generic
from nnunet_ext.dataset_conversion.options import Options
from nnunet_ext.dataset_conversion.patterns import compile_pattern
from nnunet_ext.dataset_conversion.run import convert
from nnunet_ext.dataset_conversion.sources import open_download
from nnunet_ext.errors import UserError


def find(place: Path, **own: Any) -> tuple[Generic, Found]:
    converter = Generic(**own)
    return converter, converter.find(open_download([place]))


def refused(place: Path, **own: Any) -> str:
    with pytest.raises(UserError) as caught:
        find(place, **own)
    return str(caught.value)


def images(root: Path, *names: str) -> Path:
    for name in names:
        save(root / name, image(len(name)), affine())
    return root


def test_pairs_by_pattern(tmp_path: Path) -> None:
    tree = generic.build(tmp_path)
    converter, found = find(tree.place, **tree.own)
    assert found.faults == ()
    assert [(case.id, case.part, case.group) for case in found.cases] == [
        ("p1_a", "training", "p1"),
        ("p1_b", "training", "p1"),
        ("p2_a", "training", "p2"),
        ("p3_a", "test", "p3"),
    ]
    for case in found.cases:
        assert [file.stem.lower() for file in case.images] == ["t2", "t1"]  # in the order of --channels
        assert case.label is None or case.label.stem == case.id
    layout = converter.layout(found)
    assert layout.channel_names == ("T2", "T1")
    assert layout.labels == {"background": 0, "vessel": 1, "tumour": 2}
    assert layout.file_ending == ".nii.gz"
    assert converter.rules(found).label_map == {0: 0, 2: 1, 3: 1, 10: 2}


@pytest.mark.parametrize(
    ("pattern", "tokens", "expected"),
    [
        ("{id}.nii.gz", (), {("a_t1", ""), ("b_t1", ""), ("b_t1ce", "")}),
        ("sub/{id}_{channel}.nii.gz", ("t1", "t1ce"), {("a", "t1"), ("b", "t1"), ("b", "t1ce")}),
        ("./sub/{id}_{channel}.nii*", ("t1ce",), {("b", "t1ce")}),
        ("**/{id}_t?.nii.gz", (), {("a", ""), ("b", "")}),
        ("x/**/{id}_{channel}.nii.gz", (), {("a", "t1"), ("b", "t1"), ("b", "t1ce")}),
        ("{site}/*/{id}_t1.NII.GZ", (), {("x_a", ""), ("x_b", "")}),
        ("y/{id}/{id}.nii.gz", (), {("c", "")}),
    ],
)
def test_patterns(tmp_path: Path, pattern: str, tokens: tuple[str, ...], expected: set[tuple[str, str]]) -> None:
    names = ["x/sub/a_t1.nii.gz", "x/sub/b_t1.nii.gz", "x/sub/b_t1ce.nii.gz", "y/c/c.nii.gz", "y/c/d.nii.gz"]
    download = open_download([images(tmp_path, *names)])
    found = {(match.case, match.channel) for match in compile_pattern("--images", pattern, tokens).matches(download)}
    assert found - {("c", ""), ("d", "")} == expected - {("c", "")}
    assert (("c", "") in found) == (pattern in ("{id}.nii.gz", "y/{id}/{id}.nii.gz"))


@pytest.mark.parametrize(
    "pattern", ["study/{patient}/{id}/t1.nii", "{patient}/{id}/t1.nii", "/study/{patient}/{id}/t1.*"]
)
def test_patterns_may_begin_with_the_downloads_own_folder(tmp_path: Path, pattern: str) -> None:
    place = images(tmp_path / "study", "p1/a/t1.nii", "p2/a/t1.nii")
    _, found = find(place, images=pattern)
    assert [case.id for case in found.cases] == ["p1_a", "p2_a"]


def test_unnamed_channels_are_found_and_shown(tmp_path: Path) -> None:
    place = images(tmp_path, "a_flair.nii", "a_t1.nii", "b_flair.nii", "b_t1.nii")
    converter, found = find(place, images="{id}_{channel}.nii")
    assert converter.layout(found).channel_names == ("flair", "t1")
    assert "channels in this order: flair, t1" in found.notices[0]
    assert [case.part for case in found.cases] == ["unlabelled"] * 2


def test_labels_beside_images_are_no_images(tmp_path: Path) -> None:
    place = images(tmp_path, "a/t1.nii", "a/seg.nii", "b/t1.nii", "b/seg.nii")
    _, found = find(place, images="{id}/{channel}.nii", labels="{id}/seg.nii", label_names=["x=1"])
    assert [[file.name for file in case.images] for case in found.cases] == [["a/t1.nii"], ["b/t1.nii"]]
    assert found.faults == ()


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    tree = generic.build(tmp_path)
    (tree.place / "masks/p1_a.nii").unlink()
    (tree.place / "scans/p1/b/t1.nii.gz").unlink()
    images(tree.place, "masks/p9_z.nii", "scans/p2/a/T1.nii")
    own = {**tree.own, "images": "scans/{patient}/{id}/{channel}.nii*"}
    _, found = find(tree.place, **own)
    reasons = {fault.case: fault.reason for fault in found.faults}
    assert "nothing fits 'masks/{patient}_{id}.nii'" in reasons["p1_a"]
    assert "channel t1 missing" in reasons["p1_b"]
    assert "duplicate id: 2 files claim to be its image" in reasons["p2_a"]
    assert "p9_z.nii has no image" in reasons["p9_z"]
    assert [case.id for case in found.cases] == ["p3_a"]
    _, found = find(tree.place, **own, unlabelled=True)
    assert [(case.id, case.part) for case in found.cases] == [("p1_a", "unlabelled"), ("p3_a", "test")]


def test_a_case_is_for_training_or_for_testing(tmp_path: Path) -> None:
    place = images(tmp_path, "a.nii", "test/a.nii", "seg/a.nii")
    own = {"images": "{id}.nii", "labels": "seg/{id}.nii", "test_images": "test/{id}.nii", "label_names": ["x=1"]}
    assert "duplicate" in find(place, **own)[1].faults[0].reason


def test_errors_show_what_is_there(tmp_path: Path) -> None:
    place = images(tmp_path, "imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz")
    text = refused(place, images="images/{id}.nii.gz")
    assert "--images 'images/{id}.nii.gz' fits none of the 2 images there, such as: imagesTr/a_0000.nii.gz" in text
    assert "does not say where the case id stands" in refused(place, images="imagesTr/*.nii.gz")
    assert "--labels needs --images" in refused(place, labels="labelsTr/{id}.nii.gz")
    text = refused(place, images="imagesTr/{patient}_{id}.nii.gz", labels="labelsTr/{id}.nii.gz")
    assert "must have the same placeholders" in text
    both = {"images": "imagesTr/{id}_{channel}.nii.gz", "test_images": "imagesTs/{id}.nii.gz"}
    assert "must both have {channel}" in refused(place, **both)
    (tmp_path / "none").mkdir()
    (tmp_path / "none/a.txt").write_text("x")
    assert "no images there at all" in refused(tmp_path / "none", images="{id}.nii")
    assert "imagesTr/CASE_0000.nii.gz" in refused(tmp_path / "none")
    converter, found = find(place, images="imagesTr/{id}_0000.nii.gz", labels="labelsTr/{id}.nii.gz")
    with pytest.raises(UserError, match=r"what the label values mean is not known.*--label-names class1=1 class2=2"):
        converter.layout(found)


def test_formats_do_not_mix(tmp_path: Path) -> None:
    place = images(tmp_path, "a.nii.gz", "b.nii")
    converter, found = find(place, images="{id}.*")
    assert [case.id for case in found.cases] == ["a", "b"]
    assert converter.layout(found).file_ending == ".nii.gz"
    (place / "c.nrrd").write_bytes(b"x")
    converter, found = find(place, images="{id}.n*")
    with pytest.raises(UserError, match=r"one format, but there are \.nii\.gz .* \.nrrd"):
        converter.layout(found)
    (place / "d").mkdir()
    (place / "d/d.mhd").write_bytes(b"x")
    converter, found = find(place / "d", images="{id}.mhd")
    with pytest.raises(UserError, match=r"save as \.mha or \.nii\.gz"):
        converter.layout(found)


def test_folders_as_nnunet_has_them(tmp_path: Path) -> None:
    tree = generic.build(tmp_path, form="raw")
    converter, found = find(tree.place)
    assert [case.id for case in found.cases if case.part == "test"] == ["hippocampus_003"]
    assert [case.id for case in found.cases if case.part == "training"] == list(tree.training)
    layout = converter.layout(found)
    assert layout.channel_names == ("MRI",)
    assert (layout.licence, layout.reference, layout.release) == ("CC-BY-SA 4.0", "Vanderbilt", "1.0")
    download = open_download([tree.place])
    assert (converter.default_number(download), converter.default_name(download)) == (4, "Hippocampus")
    converter, found = find(tree.place, channels=["T1"], label_names=["hippocampus=1+2"])
    assert converter.layout(found).channel_names == ("T1",)
    assert converter.layout(found).labels == {"background": 0, "hippocampus": 1}
    (tree.place / "dataset.json").unlink()
    converter, found = find(tree.place, label_names=["a=1", "b=2"])
    assert converter.layout(found).channel_names == ("channel_0",)
    assert "--channels CT" in found.notices[0]


def test_several_folders_have_to_be_told_apart(tmp_path: Path) -> None:
    generic.build(tmp_path, form="raw")
    generic.build(tmp_path, form="frames")
    assert "several data sets are there: Dataset004_Hippocampus, Dataset902_CardiacLV" in refused(tmp_path)


def test_a_data_set_of_links_is_left_to_nnunet(tmp_path: Path) -> None:
    tree = generic.build(tmp_path, form="raw")
    (tree.place / "dataset.json").write_text('{"dataset": {"a": {}}}')
    assert "nnU-Net reads it as it is" in refused(tree.place)


def test_patients_and_a_split_beside_the_data(tmp_path: Path) -> None:
    tree = generic.build(tmp_path, form="frames")
    converter, found = find(tree.place, **tree.own)
    assert sorted({case.group for case in found.cases}) == ["SC-HF-I-01", "SC-HF-I-02", "SC-N-01", "SC-N-02"]
    assert converter.default_split() == "splits_final"
    assert len(converter.own_splits(found.cases)["splits_final"]().folds) == 2
    assert "fits none of the case ids, such as SC-HF-I-01_ED" in refused(tree.place, group=r"X(\d)")
    assert "no regular expression" in refused(tree.place, group="(")
    _, found = find(tree.place, group=r"(SC-N-\d+)_")
    assert "--group fits not: SC-HF-I-01_ED" in found.notices[0]
    assert {case.group for case in found.cases if "-N-" in case.id} == {"SC-N-01", "SC-N-02"}


@pytest.mark.parametrize("form", ["folders", "raw", "regions", "frames"])
def test_conversion(nnunet_folders: Path, form: generic.Form) -> None:
    tree = generic.build(nnunet_folders / "download", form=form)
    report = convert(tree.key, [tree.place], Options(), tree.own)
    check_converted(report, tree, {0: 0, 2: 1, 3: 1, 10: 2} if form == "folders" else None)
    described = json.loads((report.folder / "dataset.json").read_text())
    if form == "regions":
        assert described["labels"]["whole_tumour"] == [1, 2, 3]
        assert described["regions_class_order"] == [1, 2, 3]
    if form == "frames":
        splits = json.loads((nnunet_folders / f"nnUNet_preprocessed/{report.name}/splits_final.json").read_text())
        assert splits[0]["val"] == ["SC-HF-I-01_ED", "SC-HF-I-01_ES"]


def test_conversion_of_a_zip(nnunet_folders: Path) -> None:
    tree = generic.build(nnunet_folders / "download")
    path = nnunet_folders / "download.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(tree.place.rglob("*.*")):
            archive.write(file, file.relative_to(tree.place))
    report = convert(tree.key, [path], Options(), tree.own)
    assert report.actions.keys() == {"copy", "write"}
    check_converted(report, tree, {0: 0, 2: 1, 3: 1, 10: 2})


def test_conversion_of_images_alone(nnunet_folders: Path) -> None:
    tree = generic.build(nnunet_folders / "download", form="unlabelled")
    report = convert(tree.key, [tree.place], Options(), tree.own)
    assert report.ok
    assert [path.name for path in (report.folder / "imagesUn").iterdir()] == ["TS_C_0000.nii.gz"]


@pytest.mark.parametrize("form", ["nrrd", "png"])
def test_conversion_of_other_formats(nnunet_folders: Path, form: generic.Form) -> None:
    import SimpleITK
    from skimage import io

    tree = generic.build(nnunet_folders / "download", form=form)
    report = convert(tree.key, [tree.place], Options(name="Other"), tree.own)
    assert report.problem is None
    assert report.faults == []
    for case, truth in tree.training.items():
        path = report.folder / f"labelsTr/{case}.{form}"
        if form == "png":
            np.testing.assert_array_equal(io.imread(path), truth.labels // 255)
        else:
            np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path))).T, truth.labels)
            assert SimpleITK.ReadImage(str(path)).GetSpacing() == (1, 1, 2)
    described = json.loads((report.folder / "dataset.json").read_text())
    assert described["file_ending"] == f".{form}"
    assert len(described["channel_names"]) == (3 if form == "png" else 1)
