"""`nnunet-ext ensemble`: nnU-Net's own mean to the last bit, votes, STAPLE, memory, and faults of files."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import tracemalloc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import predicted
import pytest
import SimpleITK
from nnunetv2.ensembling.ensemble import merge_files
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from nnunet_ext.cli import main
from nnunet_ext.errors import UserError
from nnunet_ext.inference import ensemble_mean
from nnunet_ext.inference.ensemble import ensemble
from nnunet_ext.inference.ensemble_mean import Channels, mean_labels
from nnunet_ext.inference.ensemble_votes import staple, vote
from nnunet_ext.inference.probability_files import ProbabilityStream

DATA_SETS = {"labels": predicted.LABELS, "ignore label": predicted.IGNORED, "regions": predicted.REGIONS}


def models(folder: Path, dataset_json: Mapping[str, Any], count: int = 3, cases: int = 2) -> list[Path]:
    places = []
    for model in range(count):
        places.append(predicted.described(folder / f"model{model}", dataset_json))
        for case in range(cases):
            predicted.export(places[-1], f"case{case}", 10 * model + case, dataset_json)
    return places


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    models(folder, predicted.LABELS)
    return folder


@pytest.fixture
def three(made: Path, tmp_path: Path) -> list[Path]:
    """Three models' folders of a test's own."""
    return [Path(shutil.copytree(made / f"model{model}", tmp_path / f"model{model}")) for model in range(3)]


def probabilities(path: Path) -> np.ndarray:
    with np.load(path) as content:
        return np.asarray(content["probabilities"])


def store(path: Path, values: np.ndarray, properties_of: Path | None = None) -> None:
    np.savez_compressed(path, probabilities=values)
    if properties_of is not None:
        shutil.copyfile(properties_of.with_suffix(".pkl"), path.with_suffix(".pkl"))


# ----------------------------------------------------------------------------------------------------------- the mean


@pytest.mark.parametrize("kind", DATA_SETS)
def test_equal_weights_give_nnunets_files(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ensemble_mean, "CHUNK", 64)  # several pieces a class
    dataset_json = DATA_SETS[kind]
    folders = models(tmp_path, dataset_json)
    out, theirs = tmp_path / "out", tmp_path / "theirs"
    theirs.mkdir()
    found = ensemble(folders, out, weights=[2, 2, 2], save_probabilities=True)
    assert sorted(found.done) == ["case0", "case1"]
    for case in ("case0", "case1"):
        files = [str(folder / f"{case}.npz") for folder in folders]
        arguments = (str(theirs / case), ".nii.gz", SimpleITKIO(), predicted.manager(dataset_json), True)
        merge_files(files, *arguments)
        assert (out / f"{case}.nii.gz").read_bytes() == (theirs / f"{case}.nii.gz").read_bytes()
        ours = probabilities(out / f"{case}.npz")
        assert ours.dtype == np.float32
        assert np.array_equal(ours, probabilities(theirs / f"{case}.npz"))
        assert (out / f"{case}.pkl").read_bytes() == (folders[0] / f"{case}.pkl").read_bytes()
        assert len(np.unique(predicted.read_labels(out / f"{case}.nii.gz"))) > 2
    assert json.loads((out / "dataset.json").read_text()) == json.loads((folders[0] / "dataset.json").read_text())
    assert (out / "plans.json").read_bytes() == (folders[0] / "plans.json").read_bytes()
    assert not list(out.glob(".*"))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_ties_break_as_nnunets_in_any_floating_type(dtype: type, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    paths = []
    for model in range(3):
        values = rng.integers(0, 3, (4, 6, 7, 8)) / 2
        store(tmp_path / f"{model}.npz", values.astype(dtype))
        paths.append(tmp_path / f"{model}.npz")
    names = {"background": 0, "a": 1, "b": 2, "c": 3}
    total = np.zeros((4, 6, 7, 8), np.float32)
    for path in paths:
        total += probabilities(path)
    expected = predicted.manager({"labels": names}).convert_probabilities_to_segmentation(total / 3)
    assert np.array_equal(mean_labels(paths, Channels(4, None)), expected)
    regions = mean_labels(paths, Channels(4, (3, 1, 2, 300)))
    assert regions.dtype == np.uint16
    by_hand = np.zeros((6, 7, 8))
    for channel, label in enumerate((3, 1, 2, 300)):
        by_hand[(total / 3)[channel] > 0.5] = label
    assert np.array_equal(regions, by_hand)


def test_weights_are_of_any_sum(three: list[Path], tmp_path: Path) -> None:
    ensemble(three, tmp_path / "out", weights=[3, 1, 0.5], save_probabilities=True)
    values = [probabilities(folder / "case1.npz").astype(np.float64) for folder in three]
    expected = (3 * values[0] + values[1] + 0.5 * values[2]) / 4.5
    assert np.abs(probabilities(tmp_path / "out/case1.npz") - expected).max() < 1e-7
    assert np.array_equal(predicted.read_labels(tmp_path / "out/case1.nii.gz"), expected.argmax(0))


@pytest.mark.parametrize("channels", [1, 3])
def test_axes_stored_the_other_way_round(channels: int, tmp_path: Path) -> None:
    """Numpy writes the first axis fastest where an array lies so in memory: a region of nnU-Net's swapped axes does."""
    values = np.random.default_rng(1).random((channels, 4, 5, 6)).astype(np.float32)
    store(tmp_path / "a.npz", np.asfortranarray(values))
    store(tmp_path / "b.npz", values)
    kind = Channels(channels, tuple(range(1, channels + 1)))
    assert np.array_equal(mean_labels([tmp_path / "a.npz"] * 2, kind), mean_labels([tmp_path / "b.npz"] * 2, kind))


def test_swapped_axes_of_nnunets_export(tmp_path: Path) -> None:
    folders = [predicted.described(tmp_path / name, predicted.LABELS) for name in "ab"]
    for number, folder in enumerate(folders):
        predicted.export(folder, "case", number, predicted.LABELS, transposed=(2, 0, 1))
    ensemble(folders, tmp_path / "out")
    total = probabilities(folders[0] / "case.npz") + probabilities(folders[1] / "case.npz")
    assert np.array_equal(predicted.read_labels(tmp_path / "out/case.nii.gz"), total.argmax(0))


def test_memory_holds_one_class_whatever_the_number_of_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ensemble_mean, "CHUNK", 1 << 14)
    shape = (6, 64, 64, 64)
    store(tmp_path / "a.npz", np.full(shape, 0.25, np.float32))
    voxels = 64**3
    peaks = []
    for count in (2, 12):
        tracemalloc.start()
        mean_labels([tmp_path / "a.npz"] * count, Channels(6, None))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[0] < 1.6 * 5 * voxels  # float32 of a class and uint8 labels; nnU-Net: 2 * 6 * 4 bytes a voxel
    assert peaks[1] < peaks[0] + 10 * 70_000  # an open file each


def test_pictures(tmp_path: Path) -> None:
    from skimage import io

    dataset_json = {**predicted.LABELS, "file_ending": ".png"}
    folders = [predicted.described(tmp_path / name, dataset_json, None) for name in "ab"]
    for number, folder in enumerate(folders):
        store(folder / "a.npz", np.random.default_rng(number).random((3, 1, 9, 8)).astype(np.float32))
        (folder / "a.pkl").write_bytes(pickle.dumps({"spacing": (999, 1, 1)}))
    assert main(["ensemble", *map(str, folders), "-o", str(tmp_path / "out"), "--weights", "1e308", "1.5e308"]) == 0
    total = probabilities(folders[0] / "a.npz") + 1.5 * probabilities(folders[1] / "a.npz")
    assert np.array_equal(io.imread(tmp_path / "out/a.png"), total.argmax(0)[0])


# --------------------------------------------------------------------------------------------------- votes and STAPLE


def test_votes() -> None:
    maps = [np.array(row, np.uint8) for row in ([0, 1, 2, 1], [0, 2, 1, 1], [0, 2, 3, 0])]
    assert vote(maps).tolist() == [0, 2, 2, 1]
    assert vote(maps[:2]).tolist() == [0, 1, 2, 1]  # of equally many, the first map's
    assert vote(maps, [1, 1, 3]).tolist() == [0, 2, 3, 0]
    assert vote(maps, [0.3, 0.1, 0.2]).tolist() == [0, 1, 2, 1]  # 0.1 + 0.2 is a tie with 0.3
    assert vote(maps, [1e-300, 1e300, 1]).tolist() == [0, 2, 1, 1]


def test_staple_is_simpleitks_and_undecided_voxels_are_voted() -> None:
    rng = np.random.default_rng(2)
    truth = np.zeros((6, 10, 10), np.uint8)
    truth[2:5, 2:8, 2:8] = 1
    truth[3, 4:6, 4:6] = 255
    maps = [np.where(rng.random(truth.shape) < noise, 0, truth).astype(np.uint8) for noise in (0.05, 0.1, 0.4)]
    images = [SimpleITK.GetImageFromArray(labels.astype(np.uint16)) for labels in maps]
    expected = SimpleITK.GetArrayFromImage(SimpleITK.MultiLabelSTAPLE(images, 999))
    voted = vote(maps)
    found = staple(maps)
    assert found.dtype == np.uint8
    assert np.array_equal(found, np.where(expected == 999, voted, expected))
    assert (found != truth).mean() < 0.02
    assert np.array_equal(staple([truth, truth]), truth)


@pytest.mark.parametrize("method", ["vote", "staple"])
def test_label_maps_need_no_probabilities(method: str, three: list[Path], tmp_path: Path) -> None:
    for folder in three:
        for path in (*folder.glob("*.npz"), *folder.glob("*.pkl")):
            path.unlink()
        (folder / "plans.json").unlink()  # as nnUNetv2_ensemble leaves it out
    assert main(["ensemble", *map(str, three), "-o", str(tmp_path / "out"), "--method", method, "-np", "1"]) == 0
    maps = [predicted.read_labels(folder / "case0.nii.gz") for folder in three]
    image = SimpleITK.ReadImage(str(tmp_path / "out/case0.nii.gz"))
    expected = vote(maps) if method == "vote" else staple(maps)
    assert np.array_equal(SimpleITK.GetArrayFromImage(image), expected)
    assert image.GetSpacing() == pytest.approx(predicted.SPACING)
    assert image.GetOrigin() == (3.0, -4.0, 5.5)


# ------------------------------------------------------------------------------------------------ folders, and resuming


def test_validation_cases_of_trained_models(three: list[Path], tmp_path: Path) -> None:
    trained = []
    for model, folder in enumerate(three[:2]):
        trained.append(predicted.described(tmp_path / f"Trainer{model}__plans__3d", predicted.LABELS))
        for fold, case in enumerate(("case0", "case1")):
            place = trained[-1] / f"fold_{fold}/validation"
            place.mkdir(parents=True)
            for ending in (".npz", ".pkl", ".nii.gz"):
                shutil.copyfile(folder / f"{case}{ending}", place / f"{case}{ending}")
    ensemble(three[:2], tmp_path / "flat")
    ensemble(trained, tmp_path / "out")
    for case in ("case0", "case1"):
        assert (tmp_path / f"out/{case}.nii.gz").read_bytes() == (tmp_path / f"flat/{case}.nii.gz").read_bytes()
    assert (tmp_path / "out/plans.json").is_file()


def test_it_goes_on_where_it_stopped(three: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["ensemble", *map(str, three), "-o", str(tmp_path / "out"), "-np", "1"]
    damaged = three[1] / "case0.npz"
    content = damaged.read_bytes()
    damaged.write_bytes(content[: len(content) // 2])
    assert main(command) == 1
    told = capsys.readouterr()
    assert "combined  1 cases" in told.out
    assert f"case0 is not combined: {damaged} is cut off or damaged" in told.err
    assert "1 of 2 cases failed" in told.err
    assert not (tmp_path / "out/case0.nii.gz").exists()
    (tmp_path / "out/.case0.nii.gz.unfinished-999999999.nii.gz").touch()  # of a run that was killed
    damaged.write_bytes(content)
    assert main(command) == 0
    assert "combined  1 cases, 1 were there already" in capsys.readouterr().out
    assert not list((tmp_path / "out").glob(".*"))
    later = (tmp_path / "out/case1.nii.gz").stat().st_mtime_ns + 10**9
    os.utime(three[0] / "case1.npz", ns=(later, later))
    assert main(command) == 0
    assert "combined  1 cases, 1 were there already" in capsys.readouterr().out
    assert main([*command, "--weights", "1", "2", "3"]) == 1
    assert "choose another -o" in capsys.readouterr().err
    assert main([*command, "--weights", "1", "2", "3", "--overwrite"]) == 0
    assert "combined  2 cases  " in capsys.readouterr().out


def test_several_processes(three: list[Path], tmp_path: Path) -> None:
    assert sorted(ensemble(three, tmp_path / "out", processes=2).done) == ["case0", "case1"]


# -------------------------------------------------------------------------------------------------------------- faults


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": [1, 2]}, r"one number a folder: got 2 \(1 2\) for 3 folders"),
        ({"weights": [1, 0, 2]}, r"above 0; got 1 0 2"),
        ({"weights": [1, -1, 2]}, r"above 0; got 1 -1 2"),
        ({"weights": [1, float("nan"), 2]}, "above 0; got 1 nan 2"),
        ({"weights": [1, 1, 2], "method": "staple"}, "STAPLE estimates"),
        ({"method": "vote", "save_probabilities": True}, "vote has no probabilities"),
        ({"method": "median"}, "expected one of mean, vote, staple"),
    ],
)
def test_arguments(options: dict[str, Any], message: str, three: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        ensemble(three, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_folders(three: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="two folders or more, one a model; got 1"):
        ensemble(three[:1], tmp_path / "out")
    with pytest.raises(UserError, match="named twice"):
        ensemble([*three, three[0]], tmp_path / "out")
    with pytest.raises(UserError, match="no such folder"):
        ensemble([*three, tmp_path / "no"], tmp_path / "out")
    with pytest.raises(UserError, match="predictions are read from there"):
        ensemble(three, three[0])
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match="--save_probabilities"):
        ensemble([*three, empty], tmp_path / "out")
    with pytest.raises(UserError, match="no label maps"):
        ensemble([*three, empty], tmp_path / "out", method="vote")


def test_missing_cases_are_named(three: list[Path], tmp_path: Path) -> None:
    (three[1] / "case1.npz").unlink()
    with pytest.raises(
        UserError, match=r"model1 has no probabilities \(\.npz\) of case1: every folder must have all 2"
    ):
        ensemble(three, tmp_path / "out")
    (three[2] / "case0.nii.gz").unlink()
    with pytest.raises(UserError, match="model2 has no label map of case0"):
        ensemble(three, tmp_path / "out", method="vote")


def test_labels_must_be_the_same(three: list[Path], tmp_path: Path) -> None:
    renamed = {**predicted.LABELS, "labels": {"background": 0, "anterior": 1, "back": 2}}
    predicted.described(three[2], renamed)
    with pytest.raises(UserError, match=r"the labels differ: .*front.*model0.*anterior.*model2"):
        ensemble(three, tmp_path / "out")
    assert ensemble(three, tmp_path / "out", dataset_json=three[0] / "dataset.json").done
    predicted.described(three[1], predicted.REGIONS)
    with pytest.raises(UserError, match="the labels differ"):
        ensemble(three[:2], tmp_path / "other")
    more = {**predicted.LABELS, "labels": {"background": 0, "a": 1, "b": 2, "c": 3}}
    predicted.described(tmp_path, more)
    failed = ensemble(three, tmp_path / "other", dataset_json=tmp_path / "dataset.json").failed
    assert "has 3 channels, and dataset.json makes 4" in failed["case0"]


def test_order_of_regions_matters(tmp_path: Path) -> None:
    folders = models(tmp_path, predicted.REGIONS, count=2, cases=1)
    names = dict(reversed(predicted.REGIONS["labels"].items()))
    predicted.described(folders[1], {**predicted.REGIONS, "labels": names})
    with pytest.raises(UserError, match="the labels differ"):
        ensemble(folders, tmp_path / "out")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((3, 5, 6, 8), np.float32), "not the same image or labels"),
        (np.full((3, 5, 6, 7), 4.5, np.float32), "between 0 and 1"),
        (np.full((3, 5, 6, 7), np.nan, np.float32), "between 0 and 1"),
        (np.zeros((3, 5, 6, 7), np.int32), "expected probabilities"),
        (np.zeros((3, 5, 6), np.float32), "expected probabilities"),
        (np.array([{}], object), "expected probabilities"),
    ],
)
def test_files_that_hold_something_else(values: np.ndarray, message: str, three: list[Path], tmp_path: Path) -> None:
    store(three[1] / "case0.npz", values)
    found = ensemble(three, tmp_path / "out")
    assert message in found.failed["case0"]
    assert str(three[1] / "case0.npz") in found.failed["case0"]
    assert list(found.done) == ["case1"]


def test_other_keys_and_altered_bytes(three: list[Path], tmp_path: Path) -> None:
    np.savez_compressed(three[1] / "case0.npz", softmax=np.zeros((3, 5, 6, 7), np.float32))
    np.savez(three[2] / "case1.npz", probabilities=probabilities(three[2] / "case1.npz"))
    content = bytearray((three[2] / "case1.npz").read_bytes())
    content[600] ^= 1  # a bit of a value: its checksum tells
    (three[2] / "case1.npz").write_bytes(content)
    failed = ensemble(three, tmp_path / "out").failed
    assert 'has no "probabilities"' in failed["case0"]
    assert "cut off or damaged" in failed["case1"]


def test_properties_are_read_without_executing_anything(three: list[Path], tmp_path: Path) -> None:
    (three[0] / "case0.pkl").write_bytes(b"cos\nsystem\n(S'touch " + str(tmp_path / "x").encode() + b"'\ntR.")
    (three[0] / "case1.pkl").unlink()
    failed = ensemble(three, tmp_path / "out").failed
    assert "it asks for os.system" in failed["case0"]
    assert "nnU-Net writes it beside the probabilities" in failed["case1"]
    assert not (tmp_path / "x").exists()


def test_geometry_must_be_the_same(three: list[Path], tmp_path: Path) -> None:
    predicted.write_labels(three[1] / "case0.nii.gz", np.zeros(predicted.SHAPE), (1, 1, 1))
    predicted.write_labels(three[1] / "case1.nii.gz", np.zeros((2, 3, 4)))
    failed = ensemble(three, tmp_path / "out", method="vote").failed
    assert "has the spacing" in failed["case0"]
    assert "has the shape (2, 3, 4)" in failed["case1"]
    predicted.write_labels(three[1] / "case0.nii.gz", np.full(predicted.SHAPE, 7))
    failed = ensemble(three, tmp_path / "out", method="vote").failed
    assert "has labels [7]; dataset.json has [0, 1, 2]" in failed["case0"]


def test_a_stream_ends_where_its_header_says(tmp_path: Path) -> None:
    store(tmp_path / "a.npz", np.zeros((1, 2, 2, 2), np.float32))
    stream = ProbabilityStream(tmp_path / "a.npz")
    stream.read(4)
    with pytest.raises(UserError, match="goes on after"):
        stream.check_end()
    stream.close()
