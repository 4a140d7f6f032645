"""UNETR++ on the Decathlon's lung tumours, with the methods that the paper compares."""

from __future__ import annotations

from nnunet_ext.evaluation_scripts.papers.numbering import only_label
from nnunet_ext.evaluation_scripts.papers.paper import Column, Paper, Row

PAPER = Paper(
    key="unetrpp-lung",
    title="UNETR++ on Lung (Decathlon, Task06)",
    source="A. M. Shaker et al., UNETR++, IEEE TMI 2024, arXiv:2212.04497, table on Lung (specification UNETR++, "
    "section 5.3)",
    convention="unetrpp-lung",
    structures=only_label("tumour"),
    columns=(Column("DSC", ("tumour",)),),
    rows=(
        Row("nnUNet", (74.31,)),
        Row("SwinUNETR", (75.55,)),
        Row("nnFormer", (77.95,)),
        Row("UNETR", (73.29,)),
        Row("UNETR++", (80.68,)),
    ),
    method="UNETR++",
    cases="13 of the task's 63 labelled cases",
    split=("unetrpp_lung", "val"),
    caveats=(
        "The published code validates during training on the very 13 cases that it reports.",
        "Its post-processing (largest component) is determined and applied on them, too.",
        "13 cases with small tumours: one that is missed costs 6 points or more. A user's re-training gave 73.",
    ),
)
