"""Whether a converted data set holds what the download held, each voxel of each channel."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from trees.volumes import Tree, Truth, load

from nnunet_ext.dataset_conversion.options import Report


def check(report: Report, tree: Tree, label_map: Mapping[int, int] | None = None, tested: Iterable[str] = ()) -> None:
    """Compare labels with what is known of the tree, images with the files of the download; and the record with both.

    Args:
        report: of the conversion.
        tree: that was converted; its labels are in the download's values.
        label_map: value of the download -> value that is expected; the same where it says nothing.
        tested: test cases whose labels are there.
    """
    assert report.problem is None
    assert report.faults == []
    record = json.loads((report.folder / "conversion.json").read_text())
    assert set(record["cases"]) == set(tree.training) | set(tree.test)
    labelled = set(tested)
    for cases, part, folder in ((tree.training, "training", "Tr"), (tree.test, "test", "Ts")):
        for case, known in cases.items():
            entry = record["cases"][case]
            assert entry["part"] == part
            _check_images(report.folder, case, folder, entry, known)
            if part == "training" or case in labelled:
                labels, affine = load(report.folder / f"labels{folder}" / f"{case}.nii.gz")
                np.testing.assert_array_equal(labels, _mapped(known.labels, label_map))
                np.testing.assert_allclose(affine, known.affine, atol=1e-5)
                assert labels.dtype.kind in "iu"
            else:
                assert entry["label"] is None
    described = json.loads((report.folder / "dataset.json").read_text())
    assert described["numTraining"] == len(tree.training)
    assert record["label_map"] == (None if label_map is None else {str(old): new for old, new in label_map.items()})


def _check_images(folder: Path, case: str, part: str, entry: Mapping[str, Any], known: Truth) -> None:
    for channel, file in enumerate(entry["images"]):
        assert file["file"] == f"images{part}/{case}_{channel:04d}.nii.gz"
        written, affine = load(folder / file["file"])
        np.testing.assert_allclose(affine, known.affine, atol=1e-5)
        np.testing.assert_allclose(entry["geometry"]["original"]["affine"], known.affine, atol=1e-5)
        if file["member"] is None:
            source, _ = load(Path(file["source"]))
            np.testing.assert_array_equal(written, source[..., channel] if source.ndim == 4 else source)


def _mapped(labels: np.ndarray, label_map: Mapping[int, int] | None) -> np.ndarray:
    table = np.arange(256, dtype=np.uint8)
    for old, new in (label_map or {}).items():
        table[old] = new
    return table[labels]
