"""Whether a converted data set is what a test's download held, voxel by voxel."""

from __future__ import annotations

import numpy as np
from trees.volumes import Tree, load

from nnunet_ext.dataset_conversion.options import Report


def check_training(report: Report, tree: Tree, ending: str = ".nii.gz") -> None:
    """All training cases are there, with the labels and the geometry of the originals, and nnU-Net is content."""
    assert report.problem is None
    written = {path.name[: -len(ending)] for path in (report.folder / "labelsTr").glob(f"*{ending}")}
    assert written == set(tree.training)
    images = {path.name[: -len(f"_0000{ending}")] for path in (report.folder / "imagesTs").glob(f"*{ending}")}
    assert images == set(tree.test)
    for case, known in tree.training.items():
        labels, affine = load(report.folder / "labelsTr" / f"{case}{ending}")
        np.testing.assert_array_equal(labels, known.labels)
        assert labels.dtype == np.uint8
        np.testing.assert_allclose(affine, known.affine, atol=1e-5)
        image, affine = load(report.folder / "imagesTr" / f"{case}_0000{ending}")
        assert image.shape == labels.shape
        np.testing.assert_allclose(affine, known.affine, atol=1e-5)
