"""OSS-Net on LiTS: liver with its tumours."""

from __future__ import annotations

from nnunet_ext.evaluation_scripts.papers.ossnet_rows import BEST_EPOCH, COLUMNS, LITS, SOURCE
from nnunet_ext.evaluation_scripts.papers.paper import Paper
from nnunet_ext.evaluation_scripts.structures import foreground_as_one

PAPER = Paper(
    key="ossnet-lits",
    title="OSS-Net on LiTS, liver with tumours",
    source=SOURCE,
    convention="ossnet",
    structures=foreground_as_one,
    columns=COLUMNS,
    rows=LITS,
    method="OSS-Net C",
    cases="20 of the challenge's 131 training cases; their ids are not published",
    split=None,
    caveats=(
        "NOT COMPARABLE with ours, which are of all voxels: the published numbers are of 2^14 points a case, 40 % of "
        "them near the border, where errors are. Dense Dice of the liver is about 0.95 for nnU-Net. They compare among "
        "themselves only.",
        "The authors scored on volumes resized to 512³ whatever their spacing.",
        BEST_EPOCH,
    ),
    percent=False,
    digits=4,
)
