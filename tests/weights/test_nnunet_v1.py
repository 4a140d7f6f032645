"""nnU-Net v1's pickles are read without executing them, and become what nnU-Net v2's plans say."""

from __future__ import annotations

import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from published_unetrpp import SMALL, Command, save_checkpoint, save_pickle, side_file, v1_plans

from nnunet_ext.weights.loading import CheckpointError, read_checkpoint
from nnunet_ext.weights.nnunet_v1 import read_plans
from nnunet_ext.weights.pickles import _ALLOWED, _encode, read_pickle
from nnunet_ext.weights.plain_numpy import STAND_INS, PlainArray, PlainDtype
from nnunet_ext.weights.plans_json import imported_plans


def read(tmp_path: Path, content: Any) -> Any:
    return read_plans(save_pickle(tmp_path / "plans.pkl", content))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_data_survives(tmp_path: Path, protocol: int) -> None:
    content = {
        "numbers": [1, 2.5, True, None, 1j, np.float32(0.5), np.int64(7), np.bool_(True), np.str_("text"), b"bytes"],
        "containers": ((1, 2), {3, 4}, frozenset({5}), OrderedDict(a=1)),
        "arrays": [np.arange(6).reshape(2, 3), np.asfortranarray(np.eye(3)), np.array(["a", "bc"]), np.array(1.5)],
        "big endian": np.array([1, 2], dtype=">i4"),
    }
    read_back = read_pickle(save_pickle(tmp_path / "a.pkl", content, protocol))
    assert read_back["numbers"] == content["numbers"]
    assert read_back["containers"] == content["containers"]
    for ours, theirs in zip(read_back["arrays"], content["arrays"], strict=True):
        np.testing.assert_array_equal(ours, theirs)
        assert ours.dtype == theirs.dtype
    np.testing.assert_array_equal(read_back["big endian"], [1, 2])


@pytest.mark.parametrize("protocol", [0, 1])
def test_pickles_without_a_marker_are_recognised(tmp_path: Path, protocol: int) -> None:
    path = save_pickle(tmp_path / "plans.pkl", side_file(v1_plans()), protocol)
    assert read_plans(path).num_classes == 4
    with pytest.raises(CheckpointError, match="this is a plain Python pickle"):
        read_checkpoint(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="not a readable pickle, perhaps cut off"):
        read_plans(path)


def test_names_of_both_numpy_versions(tmp_path: Path) -> None:
    written = pickle.dumps(np.float64(0.5), 2)
    other = written.replace(b"numpy._core", b"numpy.core") if b"_core" in written else written
    assert other != written or b"numpy.core" in written
    path = tmp_path / "a.pkl"
    path.write_bytes(other)
    assert read_pickle(path) == 0.5


def test_code_in_the_file_does_not_run(tmp_path: Path) -> None:
    trap = tmp_path / "executed"
    path = save_pickle(tmp_path / "plans.pkl", {**v1_plans(), "extra": Command(f"touch {trap}")})
    with pytest.raises(CheckpointError, match=r"plans\.pkl: the file asks for Python objects \(\w+\.system\)"):
        read_plans(path)
    assert not trap.exists()
    pickle.loads(path.read_bytes())
    assert trap.exists(), "the file was dangerous indeed"


@pytest.mark.parametrize(
    "content",
    [
        np.array([Path("a"), None], dtype=object),
        np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")]),
        np.dtype("O"),
        np.datetime64("2020-01-01"),
        torch.zeros(2),
        Path("a"),
        bytearray(3),
        print,
    ],
    ids=lambda content: type(content).__name__,
)
def test_other_objects_are_refused(tmp_path: Path, content: Any) -> None:
    with pytest.raises(CheckpointError, match=r"a\.pkl: "):
        read_pickle(save_pickle(tmp_path / "a.pkl", [content]))


def test_declared_sizes_are_checked(tmp_path: Path) -> None:
    """A number that claims more bytes than it has would be read beyond its memory by numpy itself."""
    written = pickle.dumps(np.float64(0.5), 2).replace(b"f8", b"i2")
    path = tmp_path / "a.pkl"
    path.write_bytes(written)
    with pytest.raises(CheckpointError, match="a number's contents"):
        read_pickle(path)


@pytest.mark.parametrize("name", _ALLOWED)
@pytest.mark.parametrize(
    "state",
    [(None, {"__defaults__": ("utf-8",)}), {"extra": 1}, (None, {"_function": 1}), (None, {"__class__": 1}), 1],
    ids=["defaults", "dict", "slot", "class", "number"],
)
def test_a_refused_pickle_changes_nothing(tmp_path: Path, name: str, state: Any) -> None:
    """BUILD sets attributes of whatever is on the stack, as of a function that the allow-list names."""
    module, _, attribute = name.rpartition(".")
    before = {known: (id(made), id(made._function)) for known, made in _ALLOWED.items()}
    path = tmp_path / "a.pkl"
    path.write_bytes(f"c{module}\n{attribute}\n".encode() + pickle.dumps(state, 0)[:-1] + b"b.")
    with pytest.raises(CheckpointError, match=r"a\.pkl: not a readable pickle.*the file tries to change a function"):
        read_pickle(path)
    assert _encode.__defaults__ == ("latin1",)
    assert before == {known: (id(made), id(made._function)) for known, made in _ALLOWED.items()}
    assert not hasattr(PlainArray, "extra")
    assert not hasattr(PlainDtype, "extra")


@pytest.mark.parametrize("name", [name for name in STAND_INS if not name.endswith("dtype")])
def test_a_refused_checkpoint_changes_nothing(tmp_path: Path, name: str) -> None:
    """torch's restricted unpickler knows the same instruction."""
    module, _, attribute = name.rpartition(".")
    harmless = tmp_path / "harmless.pt"
    torch.save({"a": 1}, harmless)
    with zipfile.ZipFile(harmless) as source, zipfile.ZipFile(tmp_path / "a.pt", "w") as target:
        for entry in source.namelist():
            state = b"N}(X\x0c\x00\x00\x00__defaults__K\x01u\x86b."
            hostile = b"\x80\x02c" + f"{module}\n{attribute}\n".encode() + state
            target.writestr(entry, hostile if entry.endswith("data.pkl") else source.read(entry))
    with pytest.raises(CheckpointError):
        read_checkpoint(tmp_path / "a.pt")
    assert not hasattr(STAND_INS[name], "__defaults__")


def test_arrays_are_made_in_one_way_only(tmp_path: Path) -> None:
    """numpy's constructor would hand out memory that nobody has filled, or make an array of objects."""
    path = tmp_path / "a.pkl"
    path.write_bytes(b"cnumpy\nndarray\n((I9\ntS'O'\ntR.")
    with pytest.raises(CheckpointError, match="makes an array in a way that numpy does not write"):
        read_pickle(path)


@pytest.mark.parametrize("kind", ["truncated", "empty", "text", "missing", "checkpoint"])
def test_other_files(tmp_path: Path, kind: str) -> None:
    path, whole = tmp_path / "plans.pkl", pickle.dumps(v1_plans())
    if kind == "checkpoint":
        save_checkpoint(path, {"a": torch.zeros(1)})
    elif kind != "missing":
        path.write_bytes({"truncated": whole[: len(whole) // 2], "empty": b"", "text": b"{}"}[kind])
    message = {
        "truncated": "not a readable pickle, perhaps cut off",
        "empty": "not a Python pickle",
        "text": "not a Python pickle",
        "missing": "there is no such file",
        "checkpoint": "this is a PyTorch checkpoint, not a pickle of plans; give it as the checkpoint",
    }[kind]
    with pytest.raises(CheckpointError, match=message):
        read_plans(path)


def test_plans_of_version_2(tmp_path: Path) -> None:
    """The table of specification unetrpp 2.4."""
    v1 = read(tmp_path, v1_plans(transpose_forward=[1, 0, 2], transpose_backward=[1, 0, 2]))
    assert v1.num_classes == 4
    plans = imported_plans(v1.preprocessing, {}, dataset_name="Dataset001_X", plans_name="P", method="m")
    configuration = plans["configurations"]["3d_fullres"]
    assert configuration["patch_size"] == list(SMALL["tied"].patch)
    assert configuration["batch_size"] == 2
    assert configuration["spacing"] == [3.0, 0.76, 0.75], "already in the transposed order"
    assert configuration["median_image_size_in_voxels"] == [148, 512, 512]
    assert configuration["normalization_schemes"] == ["CTNormalization"]
    assert configuration["use_mask_for_norm"] == [False]
    assert configuration["batch_dice"] is True
    orders = {"data": (3, False), "seg": (1, True), "probabilities": (1, False)}
    for what, (order, is_seg) in orders.items():
        expected = {"is_seg": is_seg, "order": order, "order_z": 0, "force_separate_z": None}
        assert configuration[f"resampling_fn_{what}_kwargs"] == expected
    assert plans["original_median_spacing_after_transp"] == [0.7, 3.0, 0.8]
    assert plans["original_median_shape_after_transp"] == [512, 120, 511]
    assert plans["transpose_forward"] == plans["transpose_backward"] == [1, 0, 2]
    assert plans["image_reader_writer"] == "SimpleITKIO"
    assert plans["foreground_intensity_properties_per_channel"]["0"] == {
        "mean": 100.0,
        "std": 80.0,
        "median": 95.0,
        "min": -300.0,
        "max": 900.0,
        "percentile_00_5": -50.0,
        "percentile_99_5": 300.0,
    }


def test_magnetic_resonance(tmp_path: Path) -> None:
    v1 = read(tmp_path, v1_plans("no_bias", "MRI"))
    assert [channel.normalization for channel in v1.preprocessing.channels] == ["ZScoreNormalization"] * 4
    assert all(channel.use_mask for channel in v1.preprocessing.channels)


def test_side_file_names_stage_and_dice(tmp_path: Path) -> None:
    assert read(tmp_path, side_file(v1_plans())).preprocessing.spacing == (3.0, 0.76, 0.75)
    lowres = read(tmp_path, side_file(v1_plans(), stage=0, batch_dice=False))
    assert lowres.preprocessing.spacing == (6.0, 1.5, 1.5)
    assert not lowres.preprocessing.batch_dice
    assert read(tmp_path, side_file(v1_plans(), stage=None)).preprocessing.spacing == (3.0, 0.76, 0.75)


def changed_stage(**changes: Any) -> dict[str, Any]:
    plans = v1_plans()
    plans["plans_per_stage"][1].update(changes)
    return plans


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "an object of type list"),
        ({"a": 1}, "not nnU-Net v1's plans: normalization_schemes, .* missing, found a"),
        (v1_plans(normalization_schemes={0: "CT2"}), "channel 0 is normalised by 'CT2', which nnU-Net v2 lacks"),
        (changed_stage(patch_size=[64, 64], current_spacing=[1.0, 1.0]), "only plans of 3D configurations"),
        (changed_stage(current_spacing=[1.0, 0.0, 1.0]), "must be positive"),
        (changed_stage(current_spacing=[1.0, np.nan, 1.0]), r"not complete plans of nnU-Net v1 \(ValueError: .*finite"),
        (v1_plans(dataset_properties=None), r"not complete plans of nnU-Net v1 \(KeyError"),
        (v1_plans(plans_per_stage={}), "not complete plans of nnU-Net v1"),
        (v1_plans(plans_per_stage={0: [1]}), "not complete plans of nnU-Net v1"),
        (v1_plans(modalities=[0]), r"plans\.pkl: modalities must be a dict of the channels' names .*; got \[0\]"),
        (v1_plans(num_classes=np.inf), r"plans\.pkl: num_classes must be a whole number of at least 1; got inf"),
        (v1_plans(num_classes=10**400), r"not complete plans of nnU-Net v1 \(OverflowError"),
        (v1_plans(num_classes=0), "num_classes must be a whole number of at least 1; got 0"),
        (v1_plans(num_modalities=1.5), "num_modalities must be a whole number of at least 1; got 1.5"),
        (v1_plans(dataset_properties=[1]), r"not complete plans of nnU-Net v1 \(AttributeError"),
        (v1_plans(original_spacings=[(1.0, 1.0)]), r"original spacing must be three .* \(z, y, x\); got \(1.0, 1.0\)"),
        (v1_plans(original_sizes=[(1, 0, 1)]), "original image size must be three positive numbers"),
        (changed_stage(batch_size=0), r"plans\.pkl: batch_size must be a whole number of at least 1; got 0"),
        (changed_stage(batch_size=np.nan), "batch_size must be a whole number of at least 1; got nan"),
        (changed_stage(median_patient_size_in_voxels=[512, 512]), "the median image size must be three positive numb"),
        (changed_stage(patch_size=[16, 64, 64.5]), "each edge of the patch size must be a whole number"),
    ],
)
def test_unusable_plans(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as error:
        read(tmp_path, content)
    assert len(str(error.value)) < 400
