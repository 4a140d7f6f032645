"""SelfReg-UNet on ACDC: its mean, and a row that is commonly quoted beside it."""

from __future__ import annotations

from nnunet_ext.evaluation_scripts.papers.numbering import heart
from nnunet_ext.evaluation_scripts.papers.paper import Paper, Row, ratio_columns

PAPER = Paper(
    key="selfreg-acdc",
    title="SelfReg-UNet on ACDC",
    source="W. Zhu et al., SelfReg-UNet, MICCAI 2024, arXiv:2406.14896; its mean from public listings of results "
    "(specification SelfReg-UNet, section 3.4)",
    convention="selfreg",
    structures=heart,
    columns=ratio_columns({"RV": "RV", "Myo": "Myo", "LV": "LV"}, "DSC"),
    rows=(
        Row(
            "SwinUnet",
            (88.55, 85.62, 95.83, 90.00),
            "mean from its own paper, structures as commonly quoted; not checked again",
        ),
        Row(
            "SwinUnet + SelfReg",
            (None, None, None, 91.49),
            "the best of the paper, from public listings; the paper itself was not at hand",
        ),
    ),
    method="SwinUnet + SelfReg",
    cases="40 frames (ED and ES) of 20 of the challenge's 100 training patients, TransUNet's test patients",
    split=("acdc_nnformer", "test"),
    caveats=(
        "At each new best of the validation the authors evaluate the test set; that validation is by a binary Dice.",
        "Not the challenge's test patients, and not its measure.",
        "A false structure counts Dice 1, a right absence 0.",
    ),
    withheld=("SelfReg-UNet by structure: could not be obtained.",),
)
