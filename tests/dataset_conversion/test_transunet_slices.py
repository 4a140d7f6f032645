"""TransUNet's slices become volumes again, in BTCV's ids and axes."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from trees.volumes import image, labels, load

from nnunet_ext.dataset_conversion.btcv import Synapse
from nnunet_ext.dataset_conversion.cases import Found
from nnunet_ext.dataset_conversion.options import Options
from nnunet_ext.dataset_conversion.run import convert
from nnunet_ext.dataset_conversion.sources import open_download
from nnunet_ext.errors import UserError

OWN = {"from_transunet": True}
COUNTS = {23: 96, 27: 88}


def volume(number: int, slices: int) -> tuple[np.ndarray, np.ndarray]:
    """Image (x, y, slice) from 0 to 1, and label."""
    shape = (6, 8, slices)
    return image(number, shape).astype(np.float32) / 800, labels(number, tuple(range(1, 9)), shape)


@pytest.fixture
def slices(tmp_path: Path) -> Path:
    """Two training cases."""
    folder = tmp_path / "Synapse" / "train_npz"
    folder.mkdir(parents=True)
    for number, count in COUNTS.items():
        values, known = volume(number, count)
        for index in range(count):
            path = folder / f"case{number:04d}_slice{index:03d}.npz"
            np.savez(path, image=values[..., index], label=known[..., index].astype(np.float32))
    return folder


def find(place: Path) -> Found:
    return Synapse(from_transunet=True).find(open_download([place]))


@pytest.mark.parametrize("zipped", [False, True])
def test_conversion(nnunet_folders: Path, slices: Path, zipped: bool) -> None:
    place = slices.parent
    if zipped:
        place = Path(shutil.make_archive(str(nnunet_folders / "other"), "zip", place))
    report = convert("synapse", [place], Options(splits=("cv",)), OWN)
    assert report.ok
    assert report.name == "Dataset806_SynapseTransUNet"
    for number, count in COUNTS.items():
        values, known = volume(number, count)
        written, affine = load(report.folder / "labelsTr" / f"img{number:04d}.nii.gz")
        np.testing.assert_array_equal(written, known)
        assert written.dtype == np.uint8
        np.testing.assert_array_equal(load(report.folder / "imagesTr" / f"img{number:04d}_0000.nii.gz")[0], values)
        np.testing.assert_array_equal(affine, np.eye(4))
    described = json.loads((report.folder / "dataset.json").read_text())
    assert described["channel_names"]["0"].lower() != "ct"
    assert described["labels"]["aorta"] == 1
    again = convert("synapse", [place], Options(splits=("cv",)), OWN)
    assert again.skipped == 2


def test_test_volumes(nnunet_folders: Path, slices: Path) -> None:
    h5py = pytest.importorskip("h5py")
    values, known = volume(1, 10)
    folder = slices.parent / "test_vol_h5"
    folder.mkdir()
    with h5py.File(folder / "case0001.npy.h5", "w") as file:
        file["image"], file["label"] = values.transpose(2, 0, 1), known.transpose(2, 0, 1)
    report = convert("synapse", [slices.parent], Options(splits=("cv",)), OWN)
    np.testing.assert_array_equal(load(report.folder / "labelsTr" / "img0001.nii.gz")[0], known)
    np.testing.assert_array_equal(load(report.folder / "imagesTr" / "img0001_0000.nii.gz")[0], values)


def test_without_h5py(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    (tmp_path / "case0001.npy.h5").write_bytes(b"1")
    with pytest.raises(UserError, match="pip install h5py"):
        find(tmp_path)


def test_order_of_organs(slices: Path) -> None:
    rules = Synapse(from_transunet=True, label_order="cascade").rules(Found(()))
    assert rules.label_map == {0: 0, 1: 8, 2: 4, 3: 3, 4: 2, 5: 6, 6: 5, 7: 1, 8: 7}
    assert not rules.ct
    with pytest.raises(UserError, match="8 organs"):
        Synapse(labels=13, from_transunet=True)


def test_faults_are_named(slices: Path) -> None:
    (slices / "case0023_slice040.npz").unlink()
    (slices / "case0027_slice000.npz").write_bytes(b"nothing")
    reasons = {fault.case: fault.reason for fault in find(slices).faults}
    assert "1 of its 96 slices are missing (number 040" in reasons["img0023"]
    assert "case0027_slice000.npz: no 'image' can be read" in reasons["img0027"]


def test_damaged_slice_leaves_the_case_out(nnunet_folders: Path, slices: Path) -> None:
    (slices / "case0027_slice007.npz").write_bytes(b"nothing")
    np.savez(slices / "case0023_slice003.npz", image=np.zeros((6, 9)), label=np.zeros((6, 9)))
    with pytest.raises(UserError, match="no case could be used") as caught:
        convert("synapse", [slices], Options(splits=("cv",)), OWN)
    assert "case0027_slice007.npz: no 'image' can be read" in str(caught.value)
    assert "case0023_slice003.npz: its shape is not (6, 8)" in str(caught.value)


def test_something_else(tmp_path: Path) -> None:
    (tmp_path / "img0001.nii.gz").write_bytes(b"1")
    with pytest.raises(UserError, match=r"no case found.*--from-transunet: train_npz"):
        find(tmp_path)
