"""Every data set, both ends: download, nnU-Net's raw data, nnU-Net's planning, predictions, the server's folder.

Predictions are the reference labels as nnU-Net's own reader and writer hand them on, so what is sent must be the
original labels, voxel by voxel, in the original image's geometry.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from trees import acdc, amos, brats2020, brats2021, brats_gli, btcv, flare22, lits, msd
from trees.volumes import Tree, Truth, load

from nnunet_ext.dataset_conversion.options import Options, Report
from nnunet_ext.dataset_conversion.run import convert
from nnunet_ext.dataset_conversion.volumes import set_affine, turn_to, turned_grid
from nnunet_ext.submission import check, submit

BUILDERS: dict[str, tuple[str, Callable[..., Tree], dict[str, Any]]] = {
    "btcv": ("btcv", btcv.build, {}),
    "acdc": ("acdc", acdc.build, {}),
    "acdc, .nii": ("acdc", partial(acdc.build, ending=".nii"), {}),
    "brats2020": ("brats2020", brats2020.build, {}),
    "brats2020, .nii": ("brats2020", partial(brats2020.build, ending=".nii"), {}),
    "brats2021": ("brats2021", brats2021.build, {}),
    "brats2023gli": ("brats2023gli", partial(brats_gli.build, year=2023), {}),
    "brats2024gli": ("brats2024gli", partial(brats_gli.build, year=2024), {}),
    "lits": ("lits", lits.build, {}),
    "lits, files in RAS": ("lits", lits.build, {"reorient": "files"}),
    "amos_ct": ("amos_ct", partial(amos.build, task=1), {}),
    "amos_ctmr": ("amos_ctmr", partial(amos.build, task=2), {}),
    "flare22": ("flare22", flare22.build, {}),
    "flare22, files in RAS": ("flare22", flare22.build, {"reorient": "files"}),
}


def predict(report: Report, truths: dict[str, Truth], folder: Path) -> None:
    """Write what a perfect network's predictions would be, by nnU-Net's reader and writer."""
    from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json

    record = json.loads((report.folder / "conversion.json").read_text())
    folder.mkdir()
    for case, truth in truths.items():
        entry = record["cases"][case]
        image = report.folder / entry["images"][0]["file"]
        reader = determine_reader_writer_from_dataset_json(record["dataset_json"], str(image), verbose=False)()
        labels, affine = truth.labels, truth.affine
        if record["label_map"] is not None:
            table = np.zeros(256, np.uint8)
            for old, new in record["label_map"].items():
                table[int(old)] = new
            labels = table[labels]
        written = np.asarray(entry["geometry"]["written"]["affine"])
        turn = turn_to(affine, written)
        labels = nibabel.orientations.apply_orientation(labels, turn)
        shape, affine = turned_grid(truth.labels.shape, affine, turn)
        np.testing.assert_allclose(affine, written, atol=1e-4)
        header = nibabel.Nifti1Header()
        set_affine(header, affine, shape)
        label_map = folder / "label_map.nii.gz"
        nibabel.save(nibabel.Nifti1Image(labels, affine, header), label_map)
        segmentation, _ = reader.read_seg(str(label_map))
        label_map.unlink()
        _, properties = reader.read_images([str(image)])
        reader.write_seg(segmentation[0], str(folder / f"{case}{record['file_ending']}"), properties)


def plan(report: Report) -> dict[str, Any]:
    """nnU-Net's own fingerprint and plans."""
    from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
    from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner

    extractor = DatasetFingerprintExtractor(report.name, 1, verbose=False)
    extractor.num_foreground_voxels_for_intensitystats = 1e4  # nnU-Net's 1e8 take half a minute
    extractor.run(overwrite_existing=True)
    made: dict[str, Any] = ExperimentPlanner(report.name).plan_experiment()
    return made


def check_sent(path: Path, truth: Truth) -> None:
    """The original labels in the original geometry."""
    labels, affine = load(path)
    np.testing.assert_array_equal(labels, truth.labels)
    np.testing.assert_allclose(affine, truth.affine, atol=1e-5)
    assert labels.dtype == np.uint8


@pytest.mark.parametrize("which", BUILDERS)
def test_download_to_server_and_back(which: str, nnunet_folders: Path) -> None:
    key, build, options = BUILDERS[which]
    tree = build(nnunet_folders / "download", complete=True)
    report = convert(key, [tree.place], Options(splits=("cv",), **options), tree.own)
    assert report.problem is None
    assert {fault.case for fault in report.faults} == tree.faulty
    plans = plan(report)
    assert "3d_fullres" in plans["configurations"]
    truths = tree.test or tree.training
    record = json.loads((report.folder / "conversion.json").read_text())
    if key.startswith("amos"):
        truths = {case: truth for case, truth in {**tree.training, **tree.test}.items() if _is_validation(record, case)}
    predict(report, truths, nnunet_folders / "predictions")
    submit(key, nnunet_folders / "predictions", report.folder, nnunet_folders / "sent")
    sent = sorted(path for path in (nnunet_folders / "sent").rglob("*") if path.is_file())
    assert len(sent) == len(truths)
    by_name = {tuple(_name(key, record, case)): truth for case, truth in truths.items()}
    assert len(by_name) == len(truths)
    for (name,), truth in by_name.items():
        check_sent(nnunet_folders / "sent" / name, truth)
    with zipfile.ZipFile(nnunet_folders / "sent.zip") as archive:
        assert sorted(archive.namelist()) == sorted(name for (name,) in by_name)
    assert not check(nnunet_folders / "sent.zip", challenge=key, raw=report.folder).problems


def _is_validation(record: dict[str, Any], case: str) -> bool:
    return bool(record["cases"][case]["details"].get("official") == "val")


def _name(key: str, record: dict[str, Any], case: str) -> tuple[str]:
    """What the server wants a case to be called, written down here once more."""
    names = {
        "btcv": f"label{case[3:]}.nii.gz",
        "acdc": f"{case[:10]}_{record['cases'][case]['details'].get('phase')}.nii.gz",
        "lits": f"test-segmentation-{case[5:]}.nii",
        "amos_ct": f"results/{case}.nii.gz",
        "amos_ctmr": f"results/{case}.nii.gz",
    }
    return (names.get(key, f"{case}.nii.gz"),)


def test_decathlon_tasks(nnunet_folders: Path) -> None:
    """A 4D task and a plain one; the other eight are filled with background from their downloads."""
    sent: dict[str, tuple[Report, Tree]] = {}
    empty = []
    for task in range(1, 11):
        tree = msd.build(nnunet_folders / f"download{task}", complete=True, task=task)
        if task > 2:
            empty.append(tree.place)
            continue
        report = convert("msd", [tree.place], Options(number=task, splits=("cv",)), tree.own)
        assert report.ok
        if task == 1:
            plan(report)
        predict(report, tree.test, nnunet_folders / f"predictions{task}")
        sent[tree.place.name] = (report, tree)
    submit(
        "msd",
        [nnunet_folders / f"predictions{task}" for task in (1, 2)],
        [report.folder for report, _ in sent.values()],
        nnunet_folders / "sent",
        fill_empty=empty,
    )
    for name, (_, tree) in sent.items():
        for case, truth in tree.test.items():
            check_sent(nnunet_folders / "sent" / name / f"{case}.nii.gz", truth)
    assert len([path for path in (nnunet_folders / "sent").iterdir() if path.is_dir()]) == 10
