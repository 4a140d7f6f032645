"""Whether a converted data set holds what a test's download held, each voxel of each channel."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from trees.volumes import Tree, Truth, load

from nnunet_ext.dataset_conversion.options import Report

_PARTS = {"training": "Tr", "test": "Ts"}


def check_converted(
    report: Report, tree: Tree, label_map: Mapping[int, int] | None = None, tested: Iterable[str] = ()
) -> None:
    """Compare labels with what is known of the tree, images with the files of the download; and the record with both.

    Args:
        report: of the conversion.
        tree: that was converted; its labels are in the download's values.
        label_map: value of the download -> value that is expected; the same where it says nothing.
        tested: test cases whose labels are there.
    """
    assert report.problem is None
    assert {fault.case for fault in report.faults} == tree.faulty
    record = json.loads((report.folder / "conversion.json").read_text())
    assert record["label_map"] == (None if label_map is None else {str(old): new for old, new in label_map.items()})
    known = {"training": tree.training, "test": tree.test}
    for part, folder in _PARTS.items():
        found = {case: entry for case, entry in record["cases"].items() if entry["part"] == part}
        assert set(found) == set(known[part])
        named = [file["file"] for entry in found.values() for file in entry["images"]]
        assert sorted(named) == _listed(report.folder, f"images{folder}")
        labelled = set(found) if part == "training" else set(tested)
        assert sorted(f"labels{folder}/{case}.nii.gz" for case in labelled) == _listed(report.folder, f"labels{folder}")
        for case, entry in found.items():
            _check_images(report.folder, f"images{folder}/{case}", entry, known[part][case])
            assert (entry["label"] is not None) == (case in labelled)
        for case in labelled:
            _check_label(report.folder / f"labels{folder}" / f"{case}.nii.gz", known[part][case], label_map)
    described = json.loads((report.folder / "dataset.json").read_text())
    assert described["numTraining"] == len(tree.training)


def _listed(folder: Path, part: str) -> list[str]:
    return sorted(f"{part}/{path.name}" for path in (folder / part).glob("*"))


def _check_images(folder: Path, name: str, entry: Mapping[str, Any], known: Truth) -> None:
    np.testing.assert_allclose(entry["geometry"]["original"]["affine"], known.affine, atol=1e-5)
    for channel, file in enumerate(entry["images"]):
        assert file["file"] == f"{name}_{channel:04d}.nii.gz"
        written, affine = load(folder / file["file"])
        assert written.shape == known.labels.shape
        np.testing.assert_allclose(affine, known.affine, atol=1e-5)
        if file["member"] is None:
            source, _ = load(Path(file["source"]))
            np.testing.assert_array_equal(written, source[..., channel] if source.ndim == 4 else source)


def _check_label(path: Path, known: Truth, label_map: Mapping[int, int] | None) -> None:
    table = np.arange(256, dtype=np.uint8)
    for old, new in (label_map or {}).items():
        table[old] = new
    labels, affine = load(path)
    np.testing.assert_array_equal(labels, table[known.labels])
    np.testing.assert_allclose(affine, known.affine, atol=1e-5)
    assert labels.dtype.kind in "iu"
