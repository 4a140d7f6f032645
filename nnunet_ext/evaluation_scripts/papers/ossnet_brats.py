"""OSS-Net on BraTS 2020: the whole tumour."""

from __future__ import annotations

from nnunet_ext.evaluation_scripts.papers.ossnet_rows import BEST_EPOCH, BRATS, COLUMNS, SOURCE
from nnunet_ext.evaluation_scripts.papers.paper import Paper
from nnunet_ext.evaluation_scripts.structures import foreground_as_one

PAPER = Paper(
    key="ossnet-brats",
    title="OSS-Net on BraTS 2020, whole tumour",
    source=SOURCE,
    convention="ossnet",
    structures=foreground_as_one,
    columns=COLUMNS,
    rows=BRATS,
    method="OSS-Net C",
    cases="45 of the challenge's 369 training cases",
    split=("brats2020_ossnet", "val"),
    caveats=(
        "The published numbers are of 2^17 points a case, drawn uniformly from the padded volume, ours of all voxels: "
        "they estimate the same, with little noise.",
        BEST_EPOCH,
    ),
    percent=False,
    digits=4,
)
