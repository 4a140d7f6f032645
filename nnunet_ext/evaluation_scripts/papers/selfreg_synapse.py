"""SelfReg-UNet on Synapse: its mean, and the rows that are commonly quoted beside it."""

from __future__ import annotations

from nnunet_ext.evaluation_scripts.papers.numbering import eight_organs
from nnunet_ext.evaluation_scripts.papers.paper import Column, Paper, Row, ratio_columns

ORGANS = {
    "Aorta": "aorta",
    "GB": "gallbladder",
    "KL": "left kidney",
    "KR": "right kidney",
    "Liver": "liver",
    "PC": "pancreas",
    "SP": "spleen",
    "SM": "stomach",
}
*EACH, AVERAGE = ratio_columns(ORGANS, "DSC")
QUOTED = "as commonly quoted; not checked again"

PAPER = Paper(
    key="selfreg-synapse",
    title="SelfReg-UNet on Synapse (BTCV's eight organs)",
    source="W. Zhu et al., SelfReg-UNet, MICCAI 2024, arXiv:2406.14896; its mean from public listings of results "
    "(specification SelfReg-UNet, section 3.4)",
    convention="selfreg",
    structures=eight_organs,
    columns=(AVERAGE, Column("HD95", tuple(ORGANS.values()), "HD95"), *EACH),
    rows=(
        Row("U-Net", (76.85, 39.70, 89.07, 69.72, 77.77, 68.60, 93.43, 53.98, 86.67, 75.58), QUOTED),
        Row(
            "SwinUnet",
            (79.13, 21.55, 85.47, 66.53, 83.28, 79.61, 94.29, 56.58, 90.66, 76.60),
            f"mean and HD95 from its own paper, organs {QUOTED}",
        ),
        Row(
            "SwinUnet + SelfReg",
            (80.54, *(None,) * 9),
            "the best of the paper, from public listings; the paper itself was not at hand",
        ),
    ),
    method="SwinUnet + SelfReg",
    cases="12 of BTCV's 30 labelled cases, TransUNet's test cases",
    split=("synapse_transunet", "test"),
    caveats=(
        "The published checkpoint is the best on the 12 cases that are reported; there is no validation set.",
        "HD95 is in voxels, and 0, the best value, where an organ is missed or nothing is there on either side. A "
        "false organ counts Dice 1, a right absence 0.",
        "The authors score predictions that are made at 224² and zoomed back.",
        "A user who followed the README got 74 % instead of 80.5; no cause is known.",
    ),
    withheld=("SelfReg-UNet by organ, and its HD95: could not be obtained.",),
)
