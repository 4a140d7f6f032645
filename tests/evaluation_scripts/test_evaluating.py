"""Whole folders under conventions: empty masks, missing predictions, averages, ignored voxels, kept results."""

from __future__ import annotations

import json
import math
import os
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from evaluated import LABELS, cube, data_set, label_map, save

from nnunet_ext.errors import UserError
from nnunet_ext.evaluation_scripts import case_evaluation, evaluating, nnunet_summary, results
from nnunet_ext.evaluation_scripts.conventions import CONVENTIONS
from nnunet_ext.evaluation_scripts.evaluating import evaluate
from nnunet_ext.evaluation_scripts.metric_grammar import parse
from nnunet_ext.evaluation_scripts.pairing import find_pairs
from nnunet_ext.evaluation_scripts.results import Evaluation

EMPTY = label_map()
ONE, TWO = label_map(cube(1)), label_map(cube(1), cube(2, 5))


def evaluated(
    folders: tuple[Path, Path], convention: str = "sound", labels: Any = LABELS, **options: Any
) -> Evaluation:
    return evaluate(find_pairs(folders[0], [folders[1]]), {"labels": labels}, CONVENTIONS[convention], **options)


def values(evaluation: Evaluation, metric: str) -> list[list[float]]:
    return [[float(value) for value in row] for row in evaluation.table(metric)]


# Of "front": a (both empty), b (only the prediction), c (only the reference), d (right).
STATES = {"a": (EMPTY, EMPTY), "b": (EMPTY, ONE), "c": (ONE, EMPTY), "d": (ONE, ONE)}
NAN = math.nan


@pytest.mark.parametrize(
    ("convention", "metric", "expected"),
    [
        ("sound", "Dice", (NAN, 0, 0, 1)),
        ("sound", "HD95", (NAN, NAN, NAN, 0)),
        ("sound", "NSD", (NAN, 0, 0, 1)),
        ("nnunet", "Dice", (NAN, 0, 0, 1)),
        ("nnunet", "IoU", (NAN, 0, 0, 1)),
        ("monai", "Dice", (NAN, NAN, 0, 1)),
        ("nnformer", "Dice", (1, 0, 0, 1)),
        ("nnformer", "HD95", (0, 0, 0, 0)),
        ("transunet", "Dice", (0, 1, 0, 1)),
        ("transunet", "HD95", (0, 0, 0, 0)),
        ("selfreg", "Jaccard", (0, 1, 0, 1)),
        ("ossnet", "Dice", (0, 0, 0, 1)),
        ("acdc", "HD", (NAN, NAN, NAN, 0)),
        ("amos", "NSD", (NAN, 0, 0, 1)),
    ],
)
def test_empty_masks(tmp_path: Path, convention: str, metric: str, expected: tuple[float, ...]) -> None:
    folders = data_set(tmp_path, {c: r for c, (r, _) in STATES.items()}, {c: p for c, (_, p) in STATES.items()})
    found = evaluated(folders, convention, {"background": 0, "front": 1})
    assert found.table(metric)[:, 0] == pytest.approx(expected, nan_ok=True)
    defined = [value for value in expected if not math.isnan(value)]
    assert found.mean(metric) == pytest.approx(sum(defined) / len(defined))


def test_brats2020_penalties(tmp_path: Path) -> None:
    folders = data_set(tmp_path, {c: r for c, (r, _) in STATES.items()}, {c: p for c, (_, p) in STATES.items()})
    found = evaluated(folders, "brats2020", {"background": 0, "ED": 1, "NCR": 2, "ET": 3})
    assert found.table("HD95")[:, 0] == pytest.approx([0, 373.12866, 373.12866, 0])
    assert found.table("Dice")[:, 0] == pytest.approx([1, 0, 0, 1])
    assert found.table("Sensitivity")[:, 0] == pytest.approx([1, 1, 0, 1])


def test_order_of_averaging(tmp_path: Path) -> None:
    """Structures first: (mean(1, 0) + mean(1)) / 2, not the mean of three values."""
    folders = data_set(tmp_path, {"a": TWO, "b": ONE}, {"a": TWO, "b": EMPTY})
    found = evaluated(folders)
    assert values(found, "Dice") == [[1, 1], [0, pytest.approx(NAN, nan_ok=True)]]
    assert found.mean_of_structures("Dice") == {"front": 0.5, "back": 1.0}
    assert found.mean("Dice") == 0.75
    by_case = results.Evaluation(**{**vars(found), "averaging": "cases"})
    assert by_case.mean("Dice") == 0.5  # (mean(1, 1) + mean(0)) / 2


def test_nnunet_mean_is_nan_where_a_label_never_occurs(tmp_path: Path) -> None:
    folders = data_set(tmp_path, {"a": ONE}, {"a": ONE})
    assert math.isnan(evaluated(folders, "nnunet").mean("Dice"))
    assert evaluated(folders, "sound").mean("Dice") == 1


def test_values_by_hand(tmp_path: Path) -> None:
    """A box of 2 x 2 x 2 against 2 x 2 x 3, voxels of 3 x 2 x 0.5 mm: 8 voxels common, one layer of 4 too many."""
    folders = data_set(tmp_path, {"a": ONE}, {"a": label_map(cube(1, wider=1))}, spacing=(3.0, 2.0, 0.5))
    found = evaluated(folders, labels={"background": 0, "front": 1})
    assert values(found, "Dice") == [[pytest.approx(16 / 20)]]
    assert found.table("HD95") == pytest.approx(0.5)  # of 20 distances, 4 are 0.5 mm
    assert found.table("ASSD") == pytest.approx(4 * 0.5 / 20)
    assert found.cases[0].extra["counts"]["front"] == [8, 4, 0, 8 * 10 * 12 - 12]
    in_voxels = evaluated(folders, "nnformer", {"background": 0, "front": 1})
    assert in_voxels.table("HD95") == pytest.approx(1.0)
    assert in_voxels.metrics["HD95"]["unit"] == "voxels"


@pytest.mark.parametrize(
    ("convention", "dice"), [("sound", [0, NAN]), ("nnformer", [0, 0]), ("transunet", [0, 0]), ("ossnet", [0])]
)
def test_missing_predictions_are_never_right(tmp_path: Path, convention: str, dice: list[float]) -> None:
    """The case that is missing has no "back": its empty prediction would be right about it."""
    folders = data_set(tmp_path, {"a": TWO, "b": ONE}, {"a": TWO})
    found = evaluated(folders, convention)
    assert found.table("Dice")[1] == pytest.approx(dice, nan_ok=True)
    assert found.missing() == ["b"]
    assert any("1 case has no prediction" in notice and notice.endswith(": b") for notice in found.notices)


def test_missing_predictions_have_the_penalty(tmp_path: Path) -> None:
    folders = data_set(tmp_path, {"a": ONE, "b": ONE}, {"a": ONE})
    labels = {"background": 0, "ED": 1, "NCR": 2, "ET": 3}
    found = evaluated(folders, "brats2020", labels)
    assert found.cases[1].values["ET"] == {"Dice": 0, "HD95": 373.12866, "Sensitivity": 0, "Specificity": 0}
    lesions = evaluated(folders, "brats2023", labels).cases[1].values["ET"]
    assert lesions == {"LesionWise Dice": 0, "LesionWise HD95": 374, "Dice": 0, "HD95": 374}


def test_missing_predictions_left_out_or_refused(tmp_path: Path) -> None:
    folders = data_set(tmp_path, {"a": ONE, "b": ONE}, {"a": ONE})
    found = evaluated(folders, missing="skip")
    assert [case.case for case in found.cases] == ["a"]
    assert any("left out: b" in notice for notice in found.notices)
    with pytest.raises(UserError, match="1 of 2 cases have no prediction: b"):
        evaluated(folders, missing="error")
    with pytest.raises(UserError, match="--missing perhaps: expected one of error, skip, worst"):
        evaluated(folders, missing="perhaps")


def test_order_of_labels_and_files_does_not_matter(tmp_path: Path) -> None:
    maps = {"b": TWO, "a": label_map(cube(1, 2), cube(2, 6)), "c": label_map(cube(2, 5, 3))}
    others = {"c": TWO, "b": label_map(cube(1, 1, 3)), "a": TWO}
    one = evaluated(data_set(tmp_path / "one", maps, others))
    other = evaluated(
        data_set(tmp_path / "other", dict(sorted(maps.items())), dict(sorted(others.items()))),
        labels={"back": 2, "front": 1, "background": 0},
    )
    for metric in one.metrics:
        assert one.mean_of_structures(metric) == other.mean_of_structures(metric)
        assert one.mean(metric) == other.mean(metric)


def test_regions_are_unions(tmp_path: Path) -> None:
    """Swapped labels are wrong, their union is right."""
    swapped = label_map(cube(2), cube(1, 5))
    folders = data_set(tmp_path, {"a": TWO}, {"a": swapped})
    found = evaluated(folders, labels={"background": 0, "whole": [1, 2], "core": 2})
    assert found.structures == {"whole": (1, 2), "core": (2,)}
    assert values(found, "Dice") == [[1, 0]]
    assert found.table("HD95")[0, 0] == 0


def test_ignored_voxels_count_nowhere(tmp_path: Path) -> None:
    """The prediction is wrong in the ignored voxels alone; these are no true negatives either."""
    ignored = label_map(cube(1), cube(3, 5))
    folders = data_set(tmp_path, {"a": ignored}, {"a": TWO})
    labels = {"background": 0, "front": 1, "back": 2, "ignore": 3}
    found = evaluated(folders, labels=labels, metrics=parse(["dice", "specificity"]))
    assert list(found.structures) == ["front", "back"]
    assert found.table("Dice")[0] == pytest.approx([1, NAN], nan_ok=True)
    assert found.cases[0].extra["counts"]["front"] == [8, 0, 0, 8 * 10 * 12 - 16]


def test_metrics_by_hand(tmp_path: Path) -> None:
    folders = data_set(tmp_path, {"a": ONE}, {"a": EMPTY})
    own = CONVENTIONS["nnformer"].metrics
    found = evaluated(folders, "nnformer", metrics=parse(["hd95:voxels", "hd", "nsd@1.5"], own))
    assert list(found.metrics) == ["HD95 voxels", "HD", "NSD 1.5 mm"]
    assert found.table("HD95 voxels")[0, 0] == 0  # by the convention's rule
    assert math.isnan(found.table("HD")[0, 0])  # the convention has no rule
    assert "Metrics chosen by hand" in found.definition
    assert found.metrics["NSD 1.5 mm"]["tolerance"] == 1.5


@pytest.mark.parametrize("ending", [".png", ".tif"])
def test_pictures_are_in_pixels(tmp_path: Path, ending: str) -> None:
    one, other = (label_map((1, ((1, 3), (1, 3 + wider))), shape=(8, 9)) for wider in (0, 2))
    folders = data_set(tmp_path, {"a": one}, {"a": other}, ending=ending)
    found = evaluated(folders)
    assert found.table("Dice")[0, 0] == pytest.approx(2 * 4 / 12)
    assert found.table("HD95")[0, 0] == 2
    assert found.metrics["HD95"]["unit"] == "pixels"
    assert "IN PIXELS" in found.definition
    volumes = evaluated(folders, metrics=parse(["reference_ml", "hd95:voxels"]))
    assert (volumes.table("Reference volume")[0, 0], volumes.metrics["Reference volume"]["unit"]) == (4, "pixels")


def test_tiff_volumes_with_a_spacing_are_in_millimetres(tmp_path: Path) -> None:
    folders = data_set(tmp_path, {"a": ONE}, {"a": label_map(cube(1, wider=1))}, ending=".tif")
    for folder in folders:
        (folder / "a.json").write_text(json.dumps({"spacing": [3.0, 2.0, 0.5]}))
    found = evaluated(folders)
    assert (found.table("HD95")[0, 0], found.metrics["HD95"]["unit"]) == (0.5, "mm")


def test_a_single_slice_is_a_picture(tmp_path: Path) -> None:
    """5 x 5 against 5 x 6 pixels: in three axes, all pixels would lie on the border."""
    one, other = (label_map((1, ((0, 1), (1, 6), (1, 6 + wider))), shape=(1, 10, 12)) for wider in (0, 1))
    folders = data_set(tmp_path, {"a": one}, {"a": other}, spacing=(4.0, 1.0, 1.0))
    found = evaluated(folders, metrics=parse(["assd", "reference_ml"]))
    # 16 border pixels of the reference: its last column (5) is 1 from the prediction's, but for the two corners,
    # which lie on its upper and lower edge; the prediction's last column (5) is 1 from the reference's.
    assert found.table("ASSD")[0, 0] == pytest.approx((3 + 5) / (16 + 18))
    assert found.table("Reference volume")[0, 0] == pytest.approx(25 * 4 / 1000)


def computed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The cases that are computed from now on."""
    done: list[str] = []

    def noted(job: case_evaluation.Job) -> results.CaseResult:
        done.append(job.case)
        return case_evaluation.evaluate_case(job)

    monkeypatch.setattr(evaluating, "evaluate_case", noted)
    return done


def test_cache_is_used_and_follows_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = data_set(tmp_path, {"a": TWO, "b": TWO}, {"a": TWO, "b": ONE})
    cache = tmp_path / "kept" / "cases.jsonl"
    done = computed(monkeypatch)
    first = evaluated(folders, cache=cache)
    assert sorted(done) == ["a", "b"]
    assert results.as_json(evaluated(folders, cache=cache)) == results.as_json(first)
    assert len(done) == 2
    save(folders[1] / "b.nii.gz", TWO)
    assert evaluated(folders, cache=cache).mean("Dice") == 1
    assert done[2:] == ["b"]
    evaluated(folders, cache=cache, metrics=parse(["jaccard"]))
    assert sorted(done[3:]) == ["a", "b"]
    text = cache.read_text()
    cache.write_text(text[: len(text) - 20])  # a run was killed as it wrote its last line
    evaluated(folders, cache=cache, metrics=parse(["jaccard"]))
    evaluated(folders, cache=cache, metrics=parse(["jaccard"]))
    assert len(done) == 6


def test_what_was_computed_survives_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = data_set(tmp_path, {"a": TWO, "b": TWO, "c": ONE}, {"a": TWO, "b": EMPTY, "c": ONE})
    (folders[1] / "b.nii.gz").write_bytes(b"no gzip")
    save(folders[1] / "a.nii.gz", label_map(cube(7)))
    cache = tmp_path / "cases.jsonl"
    with pytest.raises(UserError) as caught:
        evaluated(folders, cache=cache)
    assert "2 cases can't be evaluated" in str(caught.value)
    assert str(folders[1] / "b.nii.gz") in str(caught.value)
    assert "labels [7]" in str(caught.value)
    save(folders[1] / "a.nii.gz", TWO)
    save(folders[1] / "b.nii.gz", TWO)
    done = computed(monkeypatch)
    assert evaluated(folders, cache=cache).mean("Dice") == 1
    assert sorted(done) == ["a", "b"]


def test_two_processes_find_the_same(tmp_path: Path) -> None:
    maps = {name: label_map(cube(1, place)) for place, name in enumerate("abc")}
    folders = data_set(tmp_path, maps, dict.fromkeys(maps, TWO))
    (folders[1] / "b.nii.gz").unlink()
    one, two = (evaluated(folders, processes=number) for number in (1, 2))
    assert results.as_json(one) == results.as_json(two)


def test_wrong_geometry_names_the_files(tmp_path: Path) -> None:
    folders = data_set(tmp_path, {"a": TWO}, {"a": TWO})
    save(folders[1] / "a.nii.gz", TWO[:-1])
    with pytest.raises(UserError) as caught:
        evaluated(folders)
    assert all(str(folder / "a.nii.gz") in str(caught.value) for folder in folders)
    save(folders[1] / "a.nii.gz", TWO, (2.0, 1.0, 1.0))
    with pytest.raises(UserError, match=r"spacing \(2\.0, 1\.0, 1\.0\) mm, but \(1\.0, 1\.0, 1\.0\) mm"):
        evaluated(folders)


def test_wrong_labels_name_the_file(tmp_path: Path) -> None:
    folders = data_set(tmp_path, {"a": label_map(cube(9))}, {"a": TWO})
    with pytest.raises(UserError, match=r"labelsTr/a\.nii\.gz: labels \[9\] that dataset\.json does not have"):
        evaluated(folders)


def test_one_case(tmp_path: Path) -> None:
    found = evaluated(data_set(tmp_path, {"a": TWO}, {"a": TWO}), processes=2)
    assert found.mean("Dice") == 1


def test_evaluation_survives_json(tmp_path: Path) -> None:
    folders = data_set(tmp_path, {"a": TWO, "b": ONE}, {"a": ONE, "b": EMPTY})
    found = evaluated(folders)
    content = json.loads(json.dumps({**results.as_json(found), "summary": {}}, allow_nan=False))
    assert results.as_json(results.from_json(content, "file")) == results.as_json(found)


@pytest.mark.parametrize("regions", [False, True])
def test_nnunet_preset_is_nnunets_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, regions: bool) -> None:
    from nnunetv2.evaluation import evaluate_predictions
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    generator = np.random.default_rng(0)
    maps = {name: generator.integers(0, 4, (5, 6, 7)).astype(np.uint8) for name in "abc"}
    predicted = {name: generator.integers(0, 3, (5, 6, 7)).astype(np.uint8) for name in "abc"}
    maps["a"][maps["a"] == 2] = 0
    predicted["a"][predicted["a"] == 2] = 1
    folders = data_set(tmp_path, maps, predicted)
    labels: dict[str, Any] = {"background": 0, "whole": [1, 2], "core": 2} if regions else dict(LABELS)
    keys: list[Any] = [(1, 2), 2] if regions else [1, 2]
    threads = SimpleNamespace(get_context=lambda _: SimpleNamespace(Pool=ThreadPool))
    monkeypatch.setattr(evaluate_predictions, "multiprocessing", threads)
    theirs = evaluate_predictions.compute_metrics_on_folder(
        *map(str, folders), str(tmp_path / "theirs.json"), SimpleITKIO(), ".nii.gz", keys, 3, 1
    )
    found = evaluated(folders, "nnunet", {**labels, "ignore": 3})
    for name in ("Dice", "IoU"):
        assert list(found.mean_of_structures(name).values()) == [theirs["mean"][key][name] for key in keys]
        assert found.mean(name) == pytest.approx(theirs["foreground_mean"][name], abs=1e-15)
    ours, expected = json.loads(nnunet_summary.as_text(found)), json.loads((tmp_path / "theirs.json").read_text())
    assert ours.keys() == expected.keys()
    assert ours["foreground_mean"] == pytest.approx(expected["foreground_mean"], abs=1e-15)
    for key, values_of_key in expected["mean"].items():
        assert ours["mean"][key] == pytest.approx(values_of_key, abs=1e-12)
    for case, other in zip(ours["metric_per_case"], expected["metric_per_case"], strict=True):
        assert case["prediction_file"] == other["prediction_file"]
        for key, values_of_key in other["metrics"].items():
            assert case["metrics"][key] == pytest.approx(values_of_key, nan_ok=True, abs=1e-15)


def test_results_do_not_depend_on_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache that was made by relative paths is not taken for other files of the same names."""
    for name, predicted in (("one", TWO), ("two", EMPTY)):
        data_set(tmp_path / name, {"a": TWO}, {"a": predicted})
        for path in (tmp_path / name).rglob("*.nii.gz"):
            os.utime(path, (0, 0))
    means = []
    for name in ("one", "two"):
        monkeypatch.chdir(tmp_path / name)
        found = evaluated((Path("labelsTr"), Path("predictions")), cache=tmp_path / "cases.jsonl")
        means.append(found.mean("Dice"))
    assert means == [1, 0]
