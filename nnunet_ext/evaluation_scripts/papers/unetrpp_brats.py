"""UNETR++ on the Decathlon's brain tumours, with the methods that the paper compares."""

from __future__ import annotations

from nnunet_ext.evaluation_scripts.papers.paper import Column, Paper, Row
from nnunet_ext.evaluation_scripts.structures import tumour_classes_and_regions

_NONE = (None, None, None, None, None)

PAPER = Paper(
    key="unetrpp-brats",
    title="UNETR++ on BraTS (Decathlon, Task01)",
    source="A. M. Shaker et al., UNETR++, IEEE TMI 2024, arXiv:2212.04497, table on BraTS (specification UNETR++, "
    "section 5.3)",
    convention="unetrpp-brats",
    structures=tumour_classes_and_regions,
    columns=(
        Column("ET", ("ET",)),
        Column("TC", ("TC",)),
        Column("WT", ("WT",)),
        Column("ED", ("ED",)),
        Column("NET", ("NET",)),
        Column("mean of ET, TC, WT", ("ET", "TC", "WT")),
        Column("mean of all five", ("ET", "TC", "WT", "ED", "NET")),
    ),
    rows=(
        Row("UNETR", (*_NONE, 81.2, 81.2)),
        Row("SwinUNETR", (*_NONE, 81.5, 81.5)),
        Row("nnFormer", (*_NONE, 82.3, 82.3)),
        Row("UNETR++", (*_NONE, 82.8, 82.8)),
    ),
    method="UNETR++",
    cases="24 of the task's 484 labelled cases, nnFormer's test cases",
    split=("unetrpp_tumor", "test"),
    caveats=(
        "One number is published, and it is not said of which mean; it stands beside both. The authors' script prints "
        'the mean of five values, with edema and non-enhancing tumour counted apart, as "Dice".',
        "Users report far lower values after re-training.",
    ),
    withheld=("Regions and classes: no table by region was found.",),
    digits=1,
)
